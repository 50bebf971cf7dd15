"""A carrier whose replicas are in this process: what hands pictures on can't tell it from Ray's."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving_parts import Served, served

from trainer import bases, families, files
from trainer.render.batch_recipe import base_hash
from trainer.render.spreading.worker import versions
from trainer.serving import server_state
from trainer.serving.log_lines import Log
from trainer.serving.replicas.carrier import Lost
from trainer.serving.replicas.messages import Plan, Sent, Told
from trainer.serving.replicas.remote import Remote
from trainer.serving.replicas.replica import Replica
from trainer.serving.settings import ServeSettings


def plan(settings: ServeSettings) -> Plan:
    """A plan for the base of these settings as it is here."""
    folder = bases.resolve(settings.base, families.registry()[bases.family_of(settings.base)])
    return Plan(settings, base_hash(folder), versions(), 0, 1 << 30)


class Here:
    """Carries pictures to replicas of this process, a replica for each base; `deaths` calls end at their first news."""

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self.replicas = replicas
        self.calls: list[tuple[str, str]] = []  # base and key
        self.num_open = self.most_open = self.num_cancelled = self.deaths = 0
        self.num_there = 1

    def num_replicas(self, base: str) -> int:
        return self.num_there

    def digest(self, path: Path) -> str:
        return files.sha256(path)

    async def call(self, base: str, key: str, sent: Sent, places: dict[str, Path]) -> _Call:
        self.calls.append((base, key))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        return _Call(self, self.replicas[base].news(sent, lambda sha256: places[sha256].read_bytes()))


class _Call:
    def __init__(self, carrier: Here, told: AsyncIterator[Told]) -> None:
        self.carrier, self.told = carrier, told

    async def news(self) -> AsyncIterator[Told]:
        try:
            async for told in self.told:
                if self.carrier.deaths:
                    self.carrier.deaths -= 1
                    raise Lost("killed by the test")
                yield told
        finally:
            self.carrier.num_open -= 1

    def cancel(self) -> None:
        self.carrier.num_cancelled += 1


@contextmanager
def serving_from(carrier: Here, workspace: Path, *bases: str, **settings: Any) -> Iterator[Served]:
    """A server whose pictures the carrier's replicas draw."""
    made = ServeSettings(base=bases[0], more_bases=bases[1:], workspace=workspace, port=0, **settings)
    log = io.StringIO()
    about = {base: replica.about() for base, replica in carrier.replicas.items()}
    lines = Log(made.log_prompts, log)
    state = server_state.make_with(
        made, lambda line, metrics: Remote(carrier, about, line, made, metrics, lines), lines
    )  # fmt: skip
    with served(state, log) as running:
        yield running
