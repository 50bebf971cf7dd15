"""Text that others wrote, as their editors save it: UTF-8, or UTF-16 and UTF-32 with a mark at the beginning (BOM).

Whatever else is refused by name and line and never guessed at: the same bytes are another text in every code page.
"""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path
from typing import IO

# The longer marks first: that of UTF-32 begins with that of UTF-16.
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_AT_ONCE = 1 << 16


# Which encoding.


def of(head: bytes) -> str:
    """How the text is encoded that begins with these bytes, four or more, by Python's name."""
    return next((kind for bom, kind in BOMS if head.startswith(bom)), "utf-8-sig")


def of_file(path: Path) -> str:
    """How the text in a file is encoded. Raises: OSError."""
    with path.open("rb") as file:
        return of(file.read(4))


# Reading.


def text(raw: bytes) -> str:
    """The text without its mark.

    Raises: ValueError saying what it is instead, as in "is not UTF-8 (line 3, byte 45: ...)".
    """
    try:
        decoded = raw.decode(of(raw))
    except UnicodeDecodeError:
        raise ValueError(refusal(io.BytesIO(raw))) from None
    # UTF-16 of English is valid UTF-8, with a zero after every letter.
    if "\0" in decoded:
        raise ValueError("is not UTF-8 (it looks like UTF-16 without a mark)")
    return decoded


def refusal(file: IO[bytes]) -> str:
    """Why a file, read from its beginning, is no text that can be read, and from which line on; "" if it is text."""
    kind, line, byte = "", 1, 0
    while piece := file.read(_AT_ONCE):
        if not kind:
            kind = of(piece)
            decoder = codecs.getincrementaldecoder(kind)()
        byte += len(piece)
        try:
            line += decoder.decode(piece, final=len(piece) < _AT_ONCE).count("\n")
        except UnicodeDecodeError as error:
            # What the decoder had before it: this piece, and a letter's beginning that the last piece ended with.
            whole = error.object
            line += whole[: error.start].decode(error.encoding, "replace").count("\n")
            place = f"line {line}, byte {byte - len(whole) + error.start}"
            if kind == "utf-8-sig":
                return f"is not UTF-8 ({place}: {_guessed(whole)})"
            return f"is damaged {kind.upper()} ({place})"
    return ""


def _guessed(raw: bytes) -> str:
    """What bytes that are no UTF-8 look like."""
    if b"\0" in raw:
        return "it looks like UTF-16 without a mark"
    # Western letters and quotes stand alone among ASCII; those of other scripts stand in pairs and rows.
    runs = re.findall(rb"[\x80-\xff]+", raw)
    western = sum(len(run) == 1 and run[0] in (0x85, *range(0x91, 0x98), *range(0xA0, 0x100)) for run in runs)
    older = "an older encoding, such as Shift-JIS, GBK or Windows-1251"
    return f"it looks like {'Windows-1252' if western * 2 > len(runs) else older}"
