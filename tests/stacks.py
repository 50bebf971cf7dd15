"""Small stacks: an adapter of a file, a stack of adapters, its pixels, and how far two pictures are apart."""

from __future__ import annotations

from pathlib import Path

import numpy

from trainer.config import AdapterChoice, StackConfig
from trainer.render.engine import Engine

STEPS = 4


def choice(path: Path, weight: float = 1.0, **values: object) -> AdapterChoice:
    return AdapterChoice(file=str(path), weight=weight, **values)


def stack(*adapters: AdapterChoice, **values: object) -> StackConfig:
    return StackConfig(adapters=adapters, **({"prompt": "a fox, noto style", "steps": STEPS} | values))


def pixels(engine: Engine, made: StackConfig) -> numpy.ndarray:
    return numpy.asarray(engine.render(made).image, dtype=int)


def apart(left: object, right: object) -> int:
    """The largest difference of two pictures, of 255."""
    return int(numpy.abs(numpy.asarray(left, dtype=int) - numpy.asarray(right, dtype=int)).max())
