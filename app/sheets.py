"""Sheets of pictures, with every cell's own picture: what a cell was made from can be taken into the form.

The cells lie in a folder beside the sheet, each a picture with its recipe: `grid-1.png` and `grid-1.cells`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import files
from trainer.config import StackConfig
from trainer.render import axes as grids
from trainer.render import modes
from trainer.render.axes import Axis

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

Expect = Callable[[int], None]  # is told how many pictures there will be
_MOST_COLUMNS = 8
STRIP = "strip-"  # how the names of sheets of each LoRA begin
_CELLS, _LIST = ".cells", "cells.json"


@dataclass(frozen=True)
class Sheet:
    """The labelled sheet, and its pictures one by one, row by row."""

    image: Image
    pictures: list[Picture]
    labels: list[str]
    num_columns: int


def over_axes(engine: Engine, stack: StackConfig, axes: list[Axis], expect: Expect) -> Sheet:
    """The stack at every value of one to three settings. Raises: ConfigError, AdapterError."""
    from trainer.render import checkpoints

    stack, axes = checkpoints.spelled_out(engine, stack, axes)
    labels = [[axis.label(value, stack) for value in axis.values] for axis in axes]
    cells = [", ".join(parts) for parts in itertools.product(*labels)]
    expect(len(cells))
    image, pictures = grids.draw(engine, stack, axes)
    return Sheet(image, pictures, cells, _columns(len(axes[-1].values)))


def over_weights(engine: Engine, stack: StackConfig, weights: list[list[float]], expect: Expect) -> Sheet:
    """The stack's first one or two LoRAs at every weight: rows the first, columns the second."""
    axes = [Axis(f"adapters.{number}.weight", tuple(values)) for number, values in enumerate(weights)]
    return over_axes(engine, stack, axes, expect)


def of_each(engine: Engine, stack: StackConfig, expect: Expect) -> Sheet:
    """The base, each LoRA alone, all but each, and all. Raises: ConfigError if no LoRA is on."""
    from trainer.render import grid
    from trainer.render.contact_sheet import contact_sheet

    # The base, each alone, all but each where there are more than two, and all where there are two or more.
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


# As files.


@dataclass(frozen=True)
class Cells:
    """A sheet's pictures as they lie beside it."""

    paths: list[Path]
    labels: list[str]
    num_columns: int


def cells_folder(sheet: Path) -> Path:
    """Where the cells of a sheet lie, if it has any."""
    return sheet.with_suffix(_CELLS)


def save(sheet: Sheet, folder: Path, name: str) -> Path:
    """The sheet's new file, its cells beside it."""
    from trainer.render import picture_metadata  # loads torch, which the page itself must not

    path = picture_metadata.save_free_sheet(sheet.image, folder, name)
    cells = cells_folder(path)
    shutil.rmtree(cells, ignore_errors=True)  # of a sheet of that name that is gone
    cells.mkdir()
    for number, picture in enumerate(sheet.pictures):
        picture_metadata.save(picture, cells / f"{number:04}.png")
    listed = {"labels": sheet.labels, "columns": sheet.num_columns}
    files.write(cells / _LIST, json.dumps(listed).encode())
    return path


def cells_of(sheet: Path) -> Cells | None:
    """The cells that lie beside a sheet; None for a picture, and for a sheet that was drawn elsewhere."""
    folder = cells_folder(sheet)
    try:
        listed = json.loads((folder / _LIST).read_bytes())
        labels, columns = [str(label) for label in listed["labels"]], int(listed["columns"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    paths = sorted(folder.glob("[0-9]*.png"))
    return Cells(paths, labels, max(1, columns)) if len(paths) == len(labels) else None
