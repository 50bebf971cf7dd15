"""Text from outside as it may be shown: nothing in it reorders, hides or breaks what stands around it; and at most five of many.

A file name or caption may hold marks that turn the reading direction (`cat\\u202egnp.exe` shows as `catexe.png`), that take no room, or halves of
a surrogate pair, which no browser can be sent. In what is only read they stand as their codes; in what is edited they stay, but for the halves.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

MOST_NAMED = 5
_ESCAPED = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_HIDDEN = re.compile(rf"[{_ESCAPED}]|(?<![\u0600-\u0dff\U0001f000-\U0001faff\u2600-\u27bf\ufe0f])[\u200c\u200d]")  # joiners belong to scripts and emoji
_HALVES = re.compile(r"[\ud800-\udfff]")


def plain(text: object, most: int = 2000) -> str:
    """The text with every mark that hides or reorders as its code, such as `\\u202e`, and cut to `most` characters."""
    said = str(text)
    shown = _HIDDEN.sub(_code, said[: most + 1])
    return shown if len(said) <= most else f"{shown[:most]}…"


def escape(text: object, most: int = 200_000) -> str:
    """The same as HTML."""
    return html.escape(plain(text, most))


def whole(text: str) -> str:
    """The text as it can be sent: halves of surrogate pairs become U+FFFD, all else stays."""
    return _HALVES.sub("\ufffd", text)


def printable(text: str) -> str:
    """A line as a log or a terminal may show it, `?` for every sign that isn't printed: names hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def some(names: Sequence[str], between: str = ", ") -> str:
    """The first five and how many more there are."""
    return between.join(map(plain, names[:MOST_NAMED])) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def listed(found: Sequence[str], indent: str = "") -> str:
    """The first five, a line each, and a line that says how many more there are."""
    more = [f"and {len(found) - MOST_NAMED} more."] if len(found) > MOST_NAMED else []
    return "\n".join(f"{indent}{line}" for line in [*map(plain, found[:MOST_NAMED]), *more])


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
