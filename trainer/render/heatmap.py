"""The conflict map as a picture: blocks, and the layers that interfere most, against pairs of adapters."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from trainer.render.analysis import Analysis, Meeting

MAX_PAIRS, MAX_LAYERS = 40, 24
_CELL_PX, _LINE_PX, _GAP_PX, _SIZE_PX, _CHARACTER_PX = (58, 22), 18, 8, 13, 7
_NAME = 20  # characters of an adapter's
_INK, _PAPER, _BARE = (40, 38, 36), (250, 249, 246), (232, 230, 225)
_WITH, _AGAINST = (196, 62, 38), (38, 92, 168)


def draw(analysis: Analysis) -> Image.Image:
    """The picture; of more than 40 pairs or 24 layers, those that interfere most, and it says so."""
    pairs, ranked = analysis.pairs[:MAX_PAIRS], list(analysis.layers)[:MAX_LAYERS]
    layers = [path for path in ranked if any(path in pair.layers for pair in pairs)]
    rows: list[tuple[str, Sequence[Meeting | None]]] = [("whole", [pair.total for pair in pairs])]
    rows += [(block, [pair.blocks.get(block) for pair in pairs]) for block in analysis.blocks]
    rows.append(("", ()))
    rows += [(path.partition(".")[2], [pair.layers.get(path) for pair in pairs]) for path in layers]
    labels = [" + ".join(textwrap.shorten(name, 999)[:_NAME] for name in pair.names) for pair in pairs]  # on one line, whatever the name
    notes = ["Where the adapters of the stack meet", analysis.verdict, _legend(len(analysis.pairs), len(pairs), len(analysis.layers), len(layers))]
    return _sheet(rows, labels, notes)


def _legend(num_pairs: int, shown_pairs: int, num_layers: int, shown_layers: int) -> str:
    said = "Cells: overlap, 0 to 1. Red: they push the same way (cosine above 0); blue: they undo each other; grey: one isn't there."
    return f"{said} Blocks, then the {shown_layers} of {num_layers} layers and {shown_pairs} of {num_pairs} pairs that interfere most."


def _sheet(rows: list[tuple[str, Sequence[Meeting | None]]], labels: list[str], notes: list[str]) -> Image.Image:
    font = ImageFont.load_default(_SIZE_PX)
    cell, line = _CELL_PX
    left = 2 * _GAP_PX + max(_width(font, name) for name, _ in rows)
    width = max(left + len(labels) * cell + _GAP_PX, 640)
    text = [one for note in notes for one in textwrap.wrap(note, (width - 2 * _GAP_PX) // _CHARACTER_PX)]
    below_notes = _GAP_PX + len(text) * _LINE_PX + _GAP_PX
    top = below_notes + max([_width(font, label) for label in labels] + [0]) + _GAP_PX
    sheet = Image.new("RGB", (width, top + len(rows) * line + _GAP_PX), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, one in enumerate(text):
        pen.text((_GAP_PX, _GAP_PX + number * _LINE_PX), one, _INK, font)
    for column, label in enumerate(labels):
        upright = Image.new("RGB", (_width(font, label), _LINE_PX), _PAPER)
        ImageDraw.Draw(upright).text((0, 0), label, _INK, font)
        turned = upright.rotate(90, expand=True)
        sheet.paste(turned, (left + column * cell + (cell - _LINE_PX) // 2, top - _GAP_PX - turned.height))
    for row, (name, meetings) in enumerate(rows):
        y = top + row * line
        pen.text((_GAP_PX, y + 3), name, _INK, font)
        for column, meeting in enumerate(meetings):
            x = left + column * cell
            pen.rectangle((x, y, x + cell - 2, y + line - 2), _colour(meeting))
            if meeting is not None:
                pen.text((x + cell // 2, y + line // 2), f"{meeting.overlap:.2f}", _PAPER if meeting.overlap > 0.5 else _INK, font, anchor="mm")
    return sheet


def _colour(meeting: Meeting | None) -> tuple[int, int, int]:
    """Paper at no overlap, red or blue at 1."""
    if meeting is None:
        return _BARE
    end = _WITH if meeting.cosine >= 0 else _AGAINST
    red, green, blue = (round(paper + (colour - paper) * meeting.overlap) for paper, colour in zip(_PAPER, end, strict=True))
    return red, green, blue


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> int:
    return int(font.getlength(text)) + 1
