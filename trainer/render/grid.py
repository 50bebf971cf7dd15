"""Several pictures as one labelled contact sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from trainer.config import StackConfig
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.render.engine import Engine

_GAP_PX = 8
_LEGIBLE_PX = 160  # pictures whose longer side is less than this are shown at twice their size
_INK, _PAPER = (40, 38, 36), (250, 249, 246)


def contact_sheet(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str], title: str = "") -> Image.Image:
    """One sheet of pictures of one size, small ones enlarged, with a label a row, a label a column and a title."""
    rows = [[_legible(picture) for picture in pictures] for pictures in rows]
    width, height = rows[0][0].size
    size = max(11, min(16, width // 10))
    font, line = ImageFont.load_default(size), int(size * 1.35)
    left = max([_width(font, label) for label in row_labels] + [0]) + 2 * _GAP_PX
    columns = [_wrapped(font, label, width) for label in column_labels]
    across = left + len(rows[0]) * (width + _GAP_PX)
    titles = _wrapped(font, title, across - 2 * _GAP_PX) if title else []
    title_height = len(titles) * line + _GAP_PX if titles else 0
    top = title_height + max((len(lines) for lines in columns), default=0) * line + 2 * _GAP_PX
    sheet = Image.new("RGB", (across, top + len(rows) * (height + _GAP_PX)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(titles):
        pen.text((_GAP_PX, _GAP_PX + number * line), text, _INK, font)
    for column, lines in enumerate(columns):
        for number, text in enumerate(lines):
            pen.text((left + column * (width + _GAP_PX), title_height + _GAP_PX + number * line), text, _INK, font)
    for row, (label, pictures) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * (height + _GAP_PX)
        pen.text((_GAP_PX, y + (height - line) // 2), label, _INK, font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (width + _GAP_PX), y))
    return sheet


def _legible(picture: Image.Image) -> Image.Image:
    """The picture, twice as large if it is small."""
    if max(picture.size) >= _LEGIBLE_PX:
        return picture
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)


def stacked(sheets: list[Image.Image], title: str) -> Image.Image:
    """Sheets one below the other under a title."""
    font = ImageFont.load_default(22)
    top = 4 * _GAP_PX + 22
    whole = Image.new("RGB", (max(sheet.width for sheet in sheets), top + sum(sheet.height for sheet in sheets)), _PAPER)
    ImageDraw.Draw(whole).text((_GAP_PX, 2 * _GAP_PX), title, _INK, font)
    y = top
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(font.getlength(text)) + 1


def _wrapped(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width_px: int) -> list[str]:
    """The text in lines that fit the width; a word that doesn't fit alone is cut."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _width(font, joined) > width_px and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    while lines and any(_width(font, line) > width_px for line in lines):
        lines = [line if _width(font, line) <= width_px else line[:-2].rstrip("…") + "…" for line in lines]
    return lines


def weight_grid(engine: Engine, stack: StackConfig, weights: list[list[float]]) -> Image.Image:
    """The stack at every combination of weights of its first one or two adapters: rows the first, columns the second.

    Raises: ConfigError if the axes don't fit the stack.
    """
    num = len(weights)
    if num not in (1, 2) or num > len(stack.adapters) or not all(weights):
        raise ConfigError(
            f"a weight grid has one or two axes with a weight at least, and an adapter for each; found {num} axes and {len(stack.adapters)} adapters."
        )
    from trainer.render import axes

    return axes.draw(engine, stack, [axes.Axis(f"adapters.{number}.weight", tuple(map(float, values))) for number, values in enumerate(weights)])[0]


def attribution(engine: Engine, stack: StackConfig) -> Image.Image:
    """What each LoRA does: the base, each alone, all but each, and all; one prompt and seed, as few batches as can be.

    Raises: ConfigError if no LoRA is on.
    """
    resolved = engine.resolve(stack)
    on = [number for number, adapter in enumerate(resolved.adapters) if adapter.enabled and (adapter.weight or adapter.text_weight)]
    if not on:
        raise ConfigError("an attribution strip needs a LoRA that is on; the stack has none.")

    def only(numbers: list[int]) -> StackConfig:
        adapters = [adapter.model_copy(update={"enabled": number in numbers}) for number, adapter in enumerate(resolved.adapters)]
        mode = resolved.mode if len(numbers) == len(on) else "sum"
        return resolved.model_copy(update={"adapters": tuple(adapters), "mode": mode})

    names = [resolved.adapters[number].name for number in on]
    alone, without = [[number] for number in on], [[other for other in on if other != number] for number in on]
    asked = [[], *alone, *(without if len(on) > 2 else []), *([on] if len(on) > 1 else [])]
    labels = ["base", *names, *([f"all but {name}" for name in names] if len(on) > 2 else []), *(["all"] if len(on) > 1 else [])]
    found = [picture.image for picture in engine.render_all(map(only, asked))]
    return contact_sheet([found], [""], labels, resolved.prompt)


def of_modes(engine: Engine, stack: StackConfig) -> tuple[Image.Image, dict[str, float]]:
    """The stack in every mode that it can be drawn in, as one sheet, and seconds for each."""
    import time

    from trainer.render import modes

    pictures, seconds = [], {}
    engine.resolve(stack)
    fitting = [mode for mode in modes.registry().values() if _is_usable(engine, stack.model_copy(update={"mode": mode.name}))]
    for mode in fitting:
        began = time.perf_counter()
        pictures.append(engine.render(stack.model_copy(update={"mode": mode.name})).image)
        seconds[mode.name] = time.perf_counter() - began
    labels = [f"{mode.title} {seconds[mode.name]:.2f} s" for mode in fitting]
    return contact_sheet([pictures], [""], labels, stack.prompt), seconds


def _is_usable(engine: Engine, stack: StackConfig) -> bool:
    """Whether a stack that can be drawn as a sum can be in its own mode."""
    try:
        engine.resolve(stack)
    except ConfigError:
        return False
    return True
