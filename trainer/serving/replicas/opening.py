"""Opens a server whose pictures are drawn by replicas: starts or joins Ray, deploys them, and takes all down again.

Imported only once `ray_access` has said how Ray may be used.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from trainer import bases, families
from trainer.errors import RunError
from trainer.render.batch_recipe import base_hash
from trainer.render.spreading.cluster import Layout, joined
from trainer.render.spreading.worker import versions
from trainer.serving import server_state
from trainer.serving.log_lines import Log
from trainer.serving.replicas.messages import Plan, keys_of
from trainer.serving.replicas.ray_carrier import RayCarrier
from trainer.serving.replicas.remote import Remote
from trainer.serving.replicas.wanted_replicas import Replicas
from trainer.serving.server import Opening
from trainer.serving.server_state import ServerState
from trainer.serving.settings import ServeSettings

_SENT_BYTES = 20 << 30  # most that a machine with replicas keeps of the files that it was sent


def on_ray(replicas: Replicas) -> Opening:
    """What opens a server with these replicas of each base."""

    @contextmanager
    def opened(settings: ServeSettings, log: Log, loras: tuple[Path, ...] = ()) -> Iterator[ServerState]:
        """Raises: AdapterError, ConfigError, ModelError, RunError."""
        settings.folder.mkdir(parents=True, exist_ok=True)
        # Bases and pinned LoRAs first: what isn't here is said before Ray starts.
        hashes, pinned = {base: _hash(base) for base in settings.bases}, _pinned(settings, loras)
        with joined(replicas.address, replicas.most * len(hashes)) as layout:
            _check_room(layout, replicas.least * len(hashes))
            plans = {base: _plan(settings, base, sha256, layout, pinned) for base, sha256 in hashes.items()}
            # On a cluster others may serve too.
            name = f"velatura-{os.getpid()}-{secrets.token_hex(4)}"
            carrier = RayCarrier(name, plans, layout, replicas)
            try:
                about = carrier.about()
                yield server_state.make_with(
                    settings, lambda line, metrics: Remote(carrier, about, line, settings, metrics, log), log, loras
                )
            finally:
                carrier.end()

    return opened


def _hash(base: str) -> str:
    """Raises: ModelError if there is no such base."""
    return base_hash(bases.resolve(base, families.registry()[bases.family_of(base)]))


def _pinned(settings: ServeSettings, loras: tuple[Path, ...]) -> frozenset[str]:
    """The pinned LoRAs as they are called on their way. Raises: AdapterError."""
    views = server_state.lora_views(settings, loras)
    views.look()
    return keys_of(server_state.pinned_files(settings, views))


def _plan(settings: ServeSettings, base: str, base_sha256: str, layout: Layout, pinned: frozenset[str]) -> Plan:
    """What a replica of a base is told: nothing of this machine's files or of who may ask."""
    own = dataclasses.replace(
        settings, base=base, more_bases=(), workspace=Path(), keys=None, hosts=(), public_url="", uploads=False
    )
    return Plan(own, base_sha256, versions(), layout.threads, _SENT_BYTES, pinned)


def _check_room(layout: Layout, num_replicas: int) -> None:
    """Raises: RunError if so many replicas can't all be there."""
    # All that the cluster has, free or not.
    there = ray.cluster_resources()
    for name, each in (("CPU", layout.num_cpus), ("GPU", layout.num_gpus)):
        if num_replicas * each > there.get(name, 0):
            raise RunError(
                f"{num_replicas} replicas need {num_replicas * each} of the cluster's {name}s, which has "
                f"{there.get(name, 0):g}; ask for fewer with --replicas or --base, or add machines."
            )
