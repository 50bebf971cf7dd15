"""Runs on a family's tiny model: their settings, and a run to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import plain
from trainer import presets, session
from trainer.config import TrainConfig
from trainer.families.contract import Family

SIZE_PX = 64


def config(family: Family, tiny: Path, folder: Path, **changes: Any) -> TrainConfig:
    """Everything the family can target, alpha unlike rank; keywords are settings with `__` for the dot."""
    settings = {
        "family": family.name, "base": str(tiny), "resolution_px": SIZE_PX, "max_steps": 3, "batch_size": 2,
        "learning_rate": 0.05,
        "preview_every_steps": 0, "adapter.targets": "all", "adapter.rank": 3, "adapter.alpha": 6.0,
        "adapter.text_encoder": len(family.components) > 1,
        "data.folder": str(folder), "dtype": "float32", "preview.guidance_rescale": 0.0,
    }  # fmt: skip
    return presets.load(plain.STYLE, settings | {key.replace("__", "."): value for key, value in changes.items()})


def train(settings: TrainConfig, parent: Path, name: str) -> tuple[Path, list[Any]]:
    run, stream = session.start(settings, parent, name, None)
    events = list(stream)
    assert events[-1].kind == "finished"
    return run.lora_file, events
