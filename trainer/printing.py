"""Text from outside as it may be shown: nothing in it reorders, hides or breaks what stands around it.

A file name or caption may hold marks that turn the reading direction (`cat\\u202egnp.exe` shows as `catexe.png`), that
take no room, or halves of a surrogate pair, which no browser can be sent. In what is only read they stand as their
codes; in what is edited they stay, but for the halves. Of many such texts the first five are shown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

MOST_NAMED = 5
# Control characters, soft hyphen, marks of direction and of no width, halves of surrogate pairs, tags.
_ESCAPED = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f"
    r"\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
# Joiners after letters of some scripts, or after emoji, belong to them; anywhere else they hide.
_HIDDEN = re.compile(rf"[{_ESCAPED}]|(?<![\u0600-\u0dff\U0001f000-\U0001faff\u2600-\u27bf\ufe0f])[\u200c\u200d]")
_HALVES = re.compile(r"[\ud800-\udfff]")


# One text.


def plain(text: object, most: int = 2000) -> str:
    """The text with every mark that hides or reorders as its code, such as `\\u202e`, and cut to `most` characters."""
    text = str(text)
    shown = _HIDDEN.sub(_code, text[: most + 1])
    return shown if len(text) <= most else f"{shown[:most]}…"


def escape(text: object, most: int = 200_000) -> str:
    """The same as HTML."""
    return html.escape(plain(text, most))


def whole(text: str) -> str:
    """The text as it can be sent: halves of surrogate pairs become U+FFFD, all else stays."""
    return _HALVES.sub("\ufffd", text)


def printable(text: str) -> str:
    """A line as a log or a terminal may show it, `?` for every sign that isn't printed: names hold anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


# Many texts.


def some(names: Sequence[str], between: str = ", ", most: int = MOST_NAMED) -> str:
    """The first of them, five if not told otherwise, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(map(plain, names[:most])) + more


def listed(lines: Sequence[str], indent: str = "") -> str:
    """The first five, a line each, and a line that says how many more there are."""
    more = [f"and {len(lines) - MOST_NAMED} more."] if len(lines) > MOST_NAMED else []
    return "\n".join(f"{indent}{line}" for line in [*map(plain, lines[:MOST_NAMED]), *more])


def _code(match: re.Match[str]) -> str:
    """A sign as Python writes it in a string."""
    number = ord(match[0])
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def beside_base(gain: float) -> str:
    """A loss held against the base's: `20.2 % below the base's`; `gain` is the share by which it is lower."""
    return f"{abs(gain) * 100:.1f} % {'below' if gain >= 0 else 'above'} the base's"
