"""Sheets of pictures, with every cell's own picture: what a cell was made from can be taken into the form.

The cells lie in a folder beside the sheet, each a picture with its recipe: `grid-1.png` and `grid-1.cells`.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.render_requests import Cancelled, Rendering
from trainer import files
from trainer.config import StackConfig
from trainer.render import axes as grids
from trainer.render.axes import Axis

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

_MOST_COLUMNS = 8
_TOGETHER = 4  # as many as are drawn at once of 512 px
STRIP = "strip-"  # how the names of sheets of each LoRA begin
_CELLS, _LIST = ".cells", "cells.json"


@dataclass(frozen=True)
class Sheet:
    """The labelled sheet, and its pictures one by one, row by row; one that was ended lacks the last of them."""

    image: Image
    pictures: list[Picture]
    labels: list[str]  # of every place
    num_columns: int


def over_axes(engine: Engine, stack: StackConfig, axes: list[Axis], rendering: Rendering) -> Sheet:
    """The stack at every value of one to three settings. Raises: ConfigError, AdapterError, Cancelled."""
    from trainer.render import checkpoints

    stack, axes = checkpoints.spelled_out(engine, stack, axes)
    names = [[axis.label(value, stack) for value in axis.values] for axis in axes]
    labels = [", ".join(parts) for parts in itertools.product(*names)]
    rendering.expect(len(labels))
    pictures = _until_ended(_few_by_few(engine, grids.cells(engine, stack, axes)), rendering)
    image = grids.sheet(stack, axes, _in_places(pictures, len(labels)))
    return Sheet(image, pictures, labels, _columns(len(axes[-1].values)))


def over_weights(engine: Engine, stack: StackConfig, weights: list[list[float]], rendering: Rendering) -> Sheet:
    """The stack's first one or two LoRAs at every weight: rows the first, columns the second."""
    axes = [Axis(f"adapters.{number}.weight", tuple(values)) for number, values in enumerate(weights)]
    return over_axes(engine, stack, axes, rendering)


def of_each(engine: Engine, stack: StackConfig, rendering: Rendering) -> Sheet:
    """The base, each LoRA alone, all but each, and all. Raises: ConfigError if no LoRA is on; Cancelled."""
    from trainer.render import grid

    stacks, labels = grid.subsets(engine, stack)
    rendering.expect(len(stacks))
    return _in_a_row(_until_ended(_few_by_few(engine, stacks), rendering), labels, stack.prompt)


def of_modes(engine: Engine, stack: StackConfig, rendering: Rendering) -> Sheet:
    """The stack in every mode that it can be drawn in. Raises: ConfigError, AdapterError, Cancelled."""
    from trainer.render import grid

    fitting = grid.usable_modes(engine, stack)
    rendering.expect(len(fitting))
    labels = [mode.title for mode in fitting]

    def drawn() -> Iterator[Picture]:
        for place, mode in enumerate(fitting):
            picture, seconds = grid.in_mode(engine, stack, mode)
            labels[place] = grid.mode_label(mode, seconds)
            yield picture

    return _in_a_row(_until_ended(drawn(), rendering), labels, stack.prompt)


def _few_by_few(engine: Engine, stacks: list[StackConfig]) -> Iterator[Picture]:
    """The stacks' pictures; small ones too come a few at a time, so that a sheet that is ended has some."""
    for first in range(0, len(stacks), _TOGETHER):
        yield from engine.render_all(stacks[first : first + _TOGETHER])


def _until_ended(pictures: Iterator[Picture], rendering: Rendering) -> list[Picture]:
    """The pictures as they come; those that are there, if it was ended and these are wanted. Raises: Cancelled."""
    drawn: list[Picture] = []
    try:
        for picture in pictures:
            drawn.append(picture)
            rendering.drew(picture.image)
    except Cancelled:
        if not rendering.is_kept or not drawn:
            raise
    return drawn


def _in_places(pictures: list[Picture], num_places: int) -> list[Image]:
    """The pictures, and an empty place for each that was not drawn."""
    from trainer.render.contact_sheet import empty_place

    images = [picture.image for picture in pictures]
    return images + [empty_place(images[0].size)] * (num_places - len(images))


def _in_a_row(pictures: list[Picture], labels: list[str], title: str) -> Sheet:
    """A sheet of one row, a column a label."""
    from trainer.render.contact_sheet import contact_sheet

    image = contact_sheet([_in_places(pictures, len(labels))], [""], labels, title)
    return Sheet(image, pictures, labels, _columns(len(labels)))


def _columns(num: int) -> int:
    """Columns to show so many pictures in."""
    return max(1, min(num, _MOST_COLUMNS))


# As files.


@dataclass(frozen=True)
class Cells:
    """A sheet's pictures as they lie beside it; one that was ended has fewer of them than labels."""

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
    listed = {"labels": sheet.labels, "columns": sheet.num_columns, "drawn": len(sheet.pictures)}
    files.write(cells / _LIST, json.dumps(listed).encode())
    return path


def cells_of(sheet: Path) -> Cells | None:
    """The cells that lie beside a sheet; None for a picture, and for a sheet that was drawn elsewhere."""
    folder = cells_folder(sheet)
    try:
        listed = json.loads((folder / _LIST).read_bytes())
        labels, columns = [str(label) for label in listed["labels"]], int(listed["columns"])
        num_drawn = int(listed.get("drawn", len(labels)))  # older lists don't say: all are there
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    paths = sorted(folder.glob("[0-9]*.png"))
    return Cells(paths, labels, max(1, columns)) if len(paths) == num_drawn <= len(labels) else None
