"""Sheets of pictures, with every cell's own picture: what a cell was made from can be taken into the form."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config import StackConfig
from trainer.render import modes

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.axes import Axis
    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

Expect = Callable[[int], None]  # is told how many pictures there will be
_MOST_COLUMNS = 8


@dataclass(frozen=True)
class Sheet:
    """The labelled sheet, and its pictures one by one, row by row."""

    image: Image
    pictures: list[Picture]
    labels: list[str]
    num_columns: int


def over_axes(engine: Engine, stack: StackConfig, axes: list[Axis], expect: Expect) -> Sheet:
    """The stack at every value of one to three settings. Raises: ConfigError, AdapterError."""
    from trainer.render import axes as grids
    from trainer.render import checkpoints

    stack, axes = checkpoints.spelled_out(engine, stack, axes)
    labels = [[axis.label(value, stack) for value in axis.values] for axis in axes]
    cells = [", ".join(parts) for parts in itertools.product(*labels)]
    expect(len(cells))
    image, pictures = grids.draw(engine, stack, axes)
    return Sheet(image, pictures, cells, _columns(len(axes[-1].values)))


def over_weights(engine: Engine, stack: StackConfig, weights: list[list[float]], expect: Expect) -> Sheet:
    """The stack's first one or two LoRAs at every weight: rows the first, columns the second."""
    from trainer.render.axes import Axis

    axes = [Axis(f"adapters.{number}.weight", tuple(values)) for number, values in enumerate(weights)]
    return over_axes(engine, stack, axes, expect)


def of_each(engine: Engine, stack: StackConfig, expect: Expect) -> Sheet:
    """The base, each LoRA alone, all but each, and all. Raises: ConfigError if no LoRA is on."""
    from trainer.render import grid
    from trainer.render.contact_sheet import contact_sheet

    num = sum(adapter.enabled for adapter in stack.adapters)
    expect(1 + num * (2 if num > 2 else 1) + (num > 1))
    pictures, labels = grid.attributed(engine, stack)
    image = contact_sheet([[picture.image for picture in pictures]], [""], labels, stack.prompt)
    return Sheet(image, pictures, labels, _columns(len(pictures)))


def of_modes(engine: Engine, stack: StackConfig, expect: Expect) -> Sheet:
    """The stack in every mode that it can be drawn in."""
    from trainer.render import grid
    from trainer.render.contact_sheet import contact_sheet

    expect(len(modes.registry()))
    pictures, labels, _ = grid.in_modes(engine, stack)
    image = contact_sheet([[picture.image for picture in pictures]], [""], labels, stack.prompt)
    return Sheet(image, pictures, labels, _columns(len(pictures)))


def _columns(num: int) -> int:
    """Columns to show so many pictures in."""
    return max(1, min(num, _MOST_COLUMNS))
