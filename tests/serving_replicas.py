"""A carrier whose replicas are in this process: what hands pictures on can't tell it from Ray's."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from serving_parts import Served, served

from trainer import bases, families, files
from trainer.render.batch_recipe import base_hash
from trainer.render.spreading.worker import versions
from trainer.serving import server_state
from trainer.serving.log_lines import Log
from trainer.serving.orders import Begun, Drawn
from trainer.serving.replicas.carrier import Lost
from trainer.serving.replicas.messages import Plan, Sent, Told
from trainer.serving.replicas.remote import Remote
from trainer.serving.replicas.replica import Replica
from trainer.serving.settings import ServeSettings


def plan(settings: ServeSettings, pinned: frozenset[str] = frozenset()) -> Plan:
    """A plan for the base of these settings as it is here."""
    folder = bases.resolve(settings.base, families.registry()[bases.family_of(settings.base)])
    return Plan(settings, base_hash(folder), versions(), 0, 1 << 30, pinned)


class Here:
    """Carries pictures to replicas of this process, a replica for each base; `deaths` calls end at their first news.

    A picture with `deadly` in its prompt ends all calls that are open once it is being drawn.
    """

    def __init__(self, replicas: dict[str, Replica]) -> None:
        self.replicas = replicas
        self.calls: list[tuple[str, str]] = []  # base and key
        self.num_open = self.most_open = self.num_cancelled = self.deaths = 0
        self.num_there = 1
        self.deadly = ""
        self.num_killed = 0
        self.answer_s = 0.0  # that an answer is under way
        self._died = asyncio.Event()

    def num_replicas(self, base: str) -> int:
        return self.num_there

    def digest(self, path: Path) -> str:
        return files.sha256(path)

    async def call(self, base: str, key: str, sent: Sent, places: dict[str, Path]) -> _Call:
        self.calls.append((base, key))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        told = self.replicas[base].news(sent, lambda sha256: places[sha256].read_bytes())
        return _Call(self, told, bool(self.deadly) and self.deadly in sent.stack)

    def die(self) -> None:
        """End all open calls, as the death of their replica does."""
        self.num_killed += 1
        self._died.set()
        self._died = asyncio.Event()

    @property
    def died(self) -> asyncio.Event:
        """What is set by the next death."""
        return self._died


class _Call:
    def __init__(self, carrier: Here, told: AsyncGenerator[Told, None], is_deadly: bool) -> None:
        self.carrier, self.told, self.is_deadly = carrier, told, is_deadly

    async def news(self) -> AsyncIterator[Told]:
        dying = asyncio.ensure_future(self.carrier.died.wait())
        coming: asyncio.Future[Told] = asyncio.ensure_future(anext(self.told))
        try:
            while True:
                await asyncio.wait({coming, dying}, return_when=asyncio.FIRST_COMPLETED)
                if not dying.done() and isinstance(coming.result(), Drawn):
                    await asyncio.wait({dying}, timeout=self.carrier.answer_s)
                if dying.done():
                    raise Lost("its replica was killed by another picture")
                told = coming.result()
                if self.carrier.deaths:
                    self.carrier.deaths -= 1
                    raise Lost("killed by the test")
                yield told
                if self.is_deadly and isinstance(told, Begun):
                    self.carrier.die()
                coming = asyncio.ensure_future(anext(self.told))
        except StopAsyncIteration:
            return
        finally:
            self.carrier.num_open -= 1
            for future in (dying, coming):
                future.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await future
            await self.told.aclose()

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
