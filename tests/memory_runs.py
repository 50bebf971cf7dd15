"""Runs under memory settings: settings, the kinds of quantised bases, a run to its end, and its losses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import plain
from trainer import presets, runs, session
from trainer.config import TrainConfig
from trainer.events import Finished, Step
from trainer.memory import quantising

KINDS = [
    "int8",
    "fp8",
    pytest.param("nf4", marks=pytest.mark.skipif(not quantising.has_nf4(), reason="needs bitsandbytes")),
]
SHORTAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def settings_of(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    """`settings_of(tiny, pictures)(memory__budget_gib=1)`: settings of four pictures at once, changed by keywords."""

    def make(**changes: Any) -> TrainConfig:
        values = {
            "base": str(tiny), "data.folder": str(pictures), "resolution_px": 32, "max_steps": 4, "batch_size": 4,
            "checkpoint_every_steps": 2, "preview_every_steps": 0, "preview.steps": 1, "preview.prompts": ["a dot"],
            "learning_rate": 1e-2, "adapter.rank": 4, "adapter.alpha": 4,
        }  # fmt: skip
        return presets.load(plain.CHARACTER, values | {key.replace("__", "."): value for key, value in changes.items()})

    return make


def train(config, parent: Path) -> tuple[runs.Run, list]:
    """The run, finished, and its events."""
    run, stream = session.start(config, parent, "x", runs.find_resumable(parent, "x"))
    events = list(stream)
    assert isinstance(events[-1], Finished)
    return run, events


def losses(events: list) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]
