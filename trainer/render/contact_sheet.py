"""Several pictures as one labelled sheet."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

_GAP_PX = 8
_LEGIBLE_PX = 160  # pictures whose longer side is less than this are shown at twice their size
_INK, _PAPER, _FRAME = (40, 38, 36), (250, 249, 246), (206, 202, 194)


def contact_sheet(
    rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str], title: str = ""
) -> Image.Image:
    """One sheet of pictures of one size, small pictures enlarged, with a label a row, a label a column and a title."""
    # Sizes: of a cell, of the letters, and what the labels take.
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

    # Title, labels of columns, then row by row.
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


def empty_place(size: tuple[int, int]) -> Image.Image:
    """What stands where a picture of this size (width, height) was not drawn: paper with a thin frame."""
    place = Image.new("RGB", size, _PAPER)
    ImageDraw.Draw(place).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_FRAME)
    return place


def _legible(picture: Image.Image) -> Image.Image:
    """The picture, twice as large if it is small."""
    if max(picture.size) >= _LEGIBLE_PX:
        return picture
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC)


def stacked(sheets: list[Image.Image], title: str) -> Image.Image:
    """Sheets one below the other under a title."""
    font = ImageFont.load_default(22)
    top = 4 * _GAP_PX + 22
    whole = Image.new(
        "RGB", (max(sheet.width for sheet in sheets), top + sum(sheet.height for sheet in sheets)), _PAPER
    )
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
    # A letter less at a time, until the mark of what was cut fits too.
    while lines and any(_width(font, line) > width_px for line in lines):
        lines = [line if _width(font, line) <= width_px else line[:-2].rstrip("…") + "…" for line in lines]
    return lines
