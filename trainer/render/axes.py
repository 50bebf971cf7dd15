"""Grids over one to three settings of a stack: rows, columns and pages; a labelled sheet, and every picture for itself.

Any setting can be an axis: weights, prompts, seeds, steps, guidance, modes, files of one LoRA, the checkpoints of a
training (`checkpoints`), and words within the prompts. Cells that can be one batch are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import presets
from trainer.config import StackConfig, parse
from trainer.errors import ConfigError
from trainer.lazy import Image

if TYPE_CHECKING:
    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

WORDS = "words"  # no setting of a stack: the first value stands in its prompts, and each takes its place in turn
MAX_CELLS = 400
MAX_AXES = 3


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes."""

    key: str  # such as `adapters.0.weight` or `seed`
    values: tuple[Any, ...]
    note: str = ""  # goes into the sheet's title

    def label(self, value: Any, stack: StackConfig) -> str:
        """A value as the sheet names it."""
        parts = self.key.split(".")
        setting = parts[-1]
        text = Path(value).stem if setting == "file" else str(value)
        shown = f"{value:g}" if isinstance(value, float) else text
        # These say for themselves what they are; of an adapter's settings only the weight does.
        if parts[0] != "adapters" or setting == "file":
            return shown if setting in ("prompt", WORDS, "mode", "file") else f"{setting.removesuffix('_px')} {shown}"
        adapter = stack.adapters[int(parts[1])]
        name = adapter.name or Path(adapter.file).stem
        return f"{name} {shown}" if setting == "weight" else f"{name} {setting} {shown}"


def axis(text: str) -> Axis:
    """The axis of `KEY=V1,V2,...`, or with | between values that hold commas. Raises: ConfigError."""
    # A bar goes before commas, so that prompts can be values.
    key, equals, values = text.partition("=")
    parts = [part.strip() for part in values.split("|" if "|" in values else ",")]
    if not equals or not key.strip() or not all(parts):
        raise ConfigError(
            f"--axis {text[:80]!r} can't be read; write it as KEY=VALUE,VALUE such as seed=1,2,3, with | between "
            f"values that hold commas."
        )
    if key.strip() == WORDS:  # as they stand, so that a number among them stays what is written
        return Axis(WORDS, tuple(parts))
    return Axis(key.strip(), tuple(presets.parse_overrides([f"{key}={part}"])[key.strip()] for part in parts))


def changed(stack: StackConfig, changes: dict[str, Any], where: str) -> StackConfig:
    """The stack with settings changed, by dotted key such as `mode` or `adapters.0.schedule`. Raises: ConfigError."""
    values = stack.model_dump(exclude_unset=True)  # what was left out stays so
    for key, value in changes.items():
        # The table that the setting stands in.
        *parents, last = key.split(".")
        place: Any = values
        try:
            for part in parents:
                place = place[int(part)] if isinstance(place, list | tuple) else place[part]
        except (KeyError, ValueError, IndexError, TypeError):
            place = None
        if not isinstance(place, dict):
            raise ConfigError(
                f"{where} {key[:80]}: there is no such setting; allowed: {', '.join(StackConfig.model_fields)}, or "
                f"adapters.NUMBER.SETTING."
            )
        place[last] = value
        if last == "file":  # another file has another name and hash
            place |= {"name": "", "sha256": ""}
    return parse(StackConfig, values, where)


def draw(engine: Engine, stack: StackConfig, axes: list[Axis]) -> tuple[Image.Image, list[Picture]]:
    """The sheet and its pictures. Raises: ConfigError, AdapterError before anything is drawn, as `cells`."""
    pictures = list(engine.render_all(cells(engine, stack, axes)))
    return sheet(stack, axes, [picture.image for picture in pictures]), pictures


def cells(engine: Engine, stack: StackConfig, axes: list[Axis]) -> list[StackConfig]:
    """The stacks of a grid's pictures, the last axis going fastest: columns, then rows, then pages.

    Raises: ConfigError, AdapterError if an axis or a cell can't be used.
    """
    num_cells = math.prod(len(axis_.values) for axis_ in axes)
    if not 1 <= len(axes) <= MAX_AXES or num_cells > MAX_CELLS:
        raise ConfigError(
            f"a grid of {len(axes)} axes and {num_cells} pictures can't be drawn; allowed: 1 to {MAX_AXES} axes, up to "
            f"{MAX_CELLS} pictures."
        )
    stacks = [_cell(stack, axes, values) for values in itertools.product(*(axis_.values for axis_ in axes))]
    # All of them are looked at before the first is drawn.
    for cell in stacks:
        engine.resolve(cell)
    return stacks


def _cell(stack: StackConfig, axes: list[Axis], values: tuple[Any, ...]) -> StackConfig:
    """The stack with a value of each axis; words are put into the prompts that the other axes leave."""
    each = list(zip(axes, values, strict=True))
    cell = changed(stack, {axis_.key: value for axis_, value in each if axis_.key != WORDS}, "--axis")
    for axis_, value in each:
        if axis_.key == WORDS:
            cell = _reworded(cell, str(axis_.values[0]), str(value))
    return cell


def _reworded(stack: StackConfig, words: str, others: str) -> StackConfig:
    """The stack with other words in place of some, wherever these stand in its prompts. Raises: ConfigError."""
    prompts = {"prompt": stack.prompt, "negative_prompt": stack.negative_prompt}
    if not any(words in text for text in prompts.values()):
        raise ConfigError(
            f"the words {words[:80]!r} are not in the prompt {stack.prompt[:80]!r}; the first of an axis's words must "
            f"stand in it, and the others take its place."
        )
    changes = {name: text.replace(words, others) for name, text in prompts.items() if words in text}
    return changed(stack, changes, "--axis")


def sheet(stack: StackConfig, axes: list[Axis], images: Sequence[Image.Image]) -> Image.Image:
    """The labelled sheet of a grid's pictures, in the order of `cells`; a sheet for each page, one below the other."""
    from trainer.render.contact_sheet import contact_sheet

    # Labels. An axis that isn't there has one place; the first page names what goes for all.
    columns = [axes[-1].label(value, stack) for value in axes[-1].values]
    rows = [axes[-2].label(value, stack) for value in axes[-2].values] if len(axes) > 1 else [""]
    titles = [axes[0].label(value, stack) for value in axes[0].values] if len(axes) > 2 else [stack.prompt]
    titles[0] = " - ".join(filter(None, [titles[0], *(axis_.note for axis_ in axes)]))

    # Pages.
    each = iter(images)
    pages = [contact_sheet([[next(each) for _ in columns] for _ in rows], rows, columns, title) for title in titles]
    whole = Image.new("RGB", (max(page.width for page in pages), sum(page.height for page in pages)), "white")
    top = 0
    for page in pages:
        whole.paste(page, (0, top))
        top += page.height
    return whole
