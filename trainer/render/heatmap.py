"""The conflict map as a picture: blocks, and the layers that interfere most, against pairs of adapters."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from trainer.render.analysis import Analysis, Meeting

MAX_PAIRS, MAX_LAYERS = 40, 24
_CELL_PX = (58, 22)
_LINE_PX, _GAP_PX, _FONT_PX, _CHARACTER_PX = 18, 8, 13, 7
_MAX_NAME_CHARS = 20  # of an adapter
_INK, _PAPER, _BARE = (40, 38, 36), (250, 249, 246), (232, 230, 225)
_WITH, _AGAINST = (196, 62, 38), (38, 92, 168)


def draw(analysis: Analysis) -> Image.Image:
    """The picture; of more than 40 pairs or 24 layers, those that interfere most, and it says so."""
    # Both are ranked already, the worst first.
    pairs, ranked = analysis.pairs[:MAX_PAIRS], list(analysis.layers)[:MAX_LAYERS]
    layers = [path for path in ranked if any(path in pair.layers for pair in pairs)]

    # Rows: the whole, blocks, a gap, layers.
    rows: list[tuple[str, Sequence[Meeting | None]]] = [("whole", [pair.total for pair in pairs])]
    rows += [(block, [pair.blocks.get(block) for pair in pairs]) for block in analysis.blocks]
    rows.append(("", ()))
    rows += [(path.partition(".")[2], [pair.layers.get(path) for pair in pairs]) for path in layers]
    # `shorten` puts a name on one line, whatever is in it.
    labels = [" + ".join(textwrap.shorten(name, 999)[:_MAX_NAME_CHARS] for name in pair.names) for pair in pairs]
    notes = [
        "Where the adapters of the stack meet",
        analysis.verdict,
        _legend(len(analysis.pairs), len(pairs), len(analysis.layers), len(layers)),
    ]
    return _sheet(rows, labels, notes)


def _legend(num_pairs: int, shown_pairs: int, num_layers: int, shown_layers: int) -> str:
    return (
        "Cells: overlap, 0 to 1. Red: they push the same way (cosine above 0); blue: they undo each other; grey: "
        f"one isn't there. Blocks, then the {shown_layers} of {num_layers} layers and {shown_pairs} of {num_pairs} "
        "pairs that interfere most."
    )


def _sheet(rows: list[tuple[str, Sequence[Meeting | None]]], labels: list[str], notes: list[str]) -> Image.Image:
    """The picture of the table: notes on top, labels of columns upright, a row each."""
    # Where the table begins.
    font = ImageFont.load_default(_FONT_PX)
    cell_width, cell_height = _CELL_PX
    left = 2 * _GAP_PX + max(_width(font, name) for name, _ in rows)
    width = max(left + len(labels) * cell_width + _GAP_PX, 640)
    lines = [line for note in notes for line in textwrap.wrap(note, (width - 2 * _GAP_PX) // _CHARACTER_PX)]
    below_notes = _GAP_PX + len(lines) * _LINE_PX + _GAP_PX
    top = below_notes + max([_width(font, label) for label in labels] + [0]) + _GAP_PX
    sheet = Image.new("RGB", (width, top + len(rows) * cell_height + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(sheet)

    # Notes and labels.
    for number, line in enumerate(lines):
        pen.text((_GAP_PX, _GAP_PX + number * _LINE_PX), line, _INK, font)
    for column, label in enumerate(labels):
        # Drawn level and turned: a font can't draw upwards.
        upright = Image.new("RGB", (_width(font, label), _LINE_PX), _PAPER)
        ImageDraw.Draw(upright).text((0, 0), label, _INK, font)
        turned = upright.rotate(90, expand=True)
        x = left + column * cell_width + (cell_width - _LINE_PX) // 2
        sheet.paste(turned, (x, top - _GAP_PX - turned.height))

    # Cells.
    for row, (name, meetings) in enumerate(rows):
        y = top + row * cell_height
        pen.text((_GAP_PX, y + 3), name, _INK, font)
        for column, meeting in enumerate(meetings):
            x = left + column * cell_width
            pen.rectangle((x, y, x + cell_width - 2, y + cell_height - 2), _colour(meeting))
            if meeting is not None:
                middle = (x + cell_width // 2, y + cell_height // 2)
                ink = _PAPER if meeting.overlap > 0.5 else _INK
                pen.text(middle, f"{meeting.overlap:.2f}", ink, font, anchor="mm")
    return sheet


def _colour(meeting: Meeting | None) -> tuple[int, int, int]:
    """Paper at no overlap, red or blue at 1."""
    if meeting is None:
        return _BARE
    end = _WITH if meeting.cosine >= 0 else _AGAINST
    red, green, blue = (
        round(paper + (colour - paper) * meeting.overlap) for paper, colour in zip(_PAPER, end, strict=True)
    )
    return red, green, blue


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(font.getlength(text)) + 1
