"""Text that others wrote, as their editors save it: UTF-8, or UTF-16 and UTF-32 that say so with a mark at the beginning (BOM).

Whatever else is refused by name and line and never guessed at: the same bytes are another text in every code page.
"""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path
from typing import IO

BOMS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_AT_ONCE = 1 << 16


def of(head: bytes) -> str:
    """How the text is encoded that begins with these bytes, four or more, by Python's name."""
    return next((kind for bom, kind in BOMS if head.startswith(bom)), "utf-8-sig")


def of_file(path: Path) -> str:
    """How the text in a file is encoded. Raises: OSError."""
    with path.open("rb") as file:
        return of(file.read(4))


def text(raw: bytes) -> str:
    """The text without its mark. Raises: ValueError saying what it is instead, as in "is not UTF-8 (line 3, byte 45: ...)"."""
    try:
        read = raw.decode(of(raw))
    except UnicodeDecodeError:
        raise ValueError(refusal(io.BytesIO(raw))) from None
    if "\0" in read:
        raise ValueError("is not UTF-8 (it looks like UTF-16 without a mark)")
    return read


def refusal(file: IO[bytes]) -> str:
    """Why a file, read from its beginning, is no text that can be read, and from which line on; "" if it is one."""
    kind, line, byte = "", 1, 0
    while piece := file.read(_AT_ONCE):
        if not kind:
            kind = of(piece)
            decoder = codecs.getincrementaldecoder(kind)()
        byte += len(piece)
        try:
            line += decoder.decode(piece, final=len(piece) < _AT_ONCE).count("\n")
        except UnicodeDecodeError as error:
            whole = error.object
            line += whole[: error.start].decode(error.encoding, "replace").count("\n")
            place = f"line {line}, byte {byte - len(whole) + error.start}"
            return f"is not UTF-8 ({place}: {_guessed(whole)})" if kind == "utf-8-sig" else f"is damaged {kind.upper()} ({place})"
    return ""


def _guessed(raw: bytes) -> str:
    """What it looks like: western letters and quotes stand alone among ASCII, those of others in pairs and rows."""
    if b"\0" in raw:
        return "it looks like UTF-16 without a mark"
    runs = re.findall(rb"[\x80-\xff]+", raw)
    western = sum(len(run) == 1 and run[0] in (0x85, *range(0x91, 0x98), *range(0xA0, 0x100)) for run in runs)
    return f"it looks like {'Windows-1252' if western * 2 > len(runs) else 'an older encoding, such as Shift-JIS, GBK or Windows-1251'}"
