"""A foreign recipe while it is read: its values by kind, our settings so far, and what became of each key.

What a value gives is put under our dotted name with the keys that gave it, so that a setting which our own rules refuse
is taken back and its keys say why.
"""

from __future__ import annotations

import math
import re
from typing import Any

from trainer.other_trainers.documents import Document, beside
from trainer.other_trainers.rows import Key, KeyTable, Row, Status
from trainer.printing import printable

MAX_TEXT_CHARS = 2000
_LARGEST = 1e20  # a seed may have 64 bits
_SHOWN_CHARS = 200
_SECRET = re.compile(r"token$|api_?key|secret|password|credential|_key_id|hf_token", re.IGNORECASE)
_OFF: tuple[Any, ...] = (None, False, "", 0, "none", "None", "NONE", "no", "false", [], {})
_PLACE = re.compile(r"\[\d+\]")


class Reading:
    """The values of one recipe, and what became of them."""

    def __init__(self, tool: KeyTable, document: Document, values: dict[str, Any], pictures: int) -> None:
        self.tool, self.document, self.values, self.pictures = tool, document, values, pictures
        self.seen = values  # what is read; a graphical front-end's recipe as its engine gets it
        self.origin: dict[str, str] = {}  # a key that is read -> the recipe's key that gave it
        self.asked_family = ""  # by the user
        self.settings: dict[str, Any] = {}  # by our dotted name
        self.sources: dict[str, tuple[str, ...]] = {}  # our dotted name -> the keys that gave it
        self.marks: dict[str, tuple[Status, str, str]] = {}  # key -> status, became, why
        self.notes: list[str] = []
        self.name = ""

    # Values by kind; one of another kind is marked and the default taken.

    def has(self, key: str) -> bool:
        """Whether the recipe gives this key a value; empty text is none."""
        return self.seen.get(key) is not None and self.seen[key] != ""

    def number(self, key: str, default: float = 0.0) -> float:
        """A number, none of which is so large that sums and products of a few overflow."""
        value = self.seen.get(key)
        if value is None or value == "":
            return default
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)[:64]) > 60:
                raise ValueError
            number = float(value)
            if abs(number) <= _LARGEST:  # not a number isn't
                return number
        except (ValueError, OverflowError):
            pass
        self._wrong(key, "a number")
        return default

    def whole(self, key: str, default: int = 0) -> int:
        number = self.number(key, default)
        if abs(number) > 2**53:
            self._wrong(key, "a whole number")
            return default
        return int(number)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.seen.get(key)
        if value is None or value == "":
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.strip().lower() in ("true", "yes", "1", "false", "no", "0"):
            return value.strip().lower() in ("true", "yes", "1")
        self._wrong(key, "true or false")
        return default

    def text(self, key: str, default: str = "") -> str:
        value = self.seen.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return value[:MAX_TEXT_CHARS]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return shown(value)
        self._wrong(key, "text")
        return default

    def texts(self, key: str) -> list[str]:
        """A list of texts, or one text as a list of its words."""
        value = self.seen.get(key)
        if isinstance(value, str):
            return value[:MAX_TEXT_CHARS].split()
        if isinstance(value, list):
            return [str(entry)[:MAX_TEXT_CHARS] for entry in value[:64] if isinstance(entry, str | int | float)]
        if value is not None:
            self._wrong(key, "a list of texts")
        return []

    def beside(self, key: str) -> Document | None:
        """The file that a value names, if one of that name lies beside the recipe."""
        return beside(self.document, self.text(key)) if self.has(key) else None

    def _wrong(self, key: str, allowed: str) -> None:
        self.cannot(key, f"it is {shown(self.seen.get(key))}; allowed: {allowed}")

    # What becomes of them.

    def put(self, setting: str, value: Any, *keys: str, why: str = "") -> None:
        """Set one of ours; `keys` gave it, whether they stand in the recipe or are left out of it."""
        self.settings[setting] = value
        keys = tuple(self.origin.get(key, key) for key in keys if key)
        self.sources[setting] = tuple(dict.fromkeys((*self.sources.get(setting, ()), *keys)))
        if why:
            for key in keys:
                if key in self.values and key not in self.marks:
                    self.marks[key] = ("translated", "", why)

    def _mark(self, key: str, status: Status, became: str, why: str) -> None:
        key = self.origin.get(key, key)
        if key in self.values:
            self.marks[key] = (status, became, why)

    def no_effect(self, key: str, why: str) -> None:
        self._mark(key, "no effect", "", why)

    def cannot(self, key: str, why: str) -> None:
        self._mark(key, "can't be", "", why)

    def translated(self, key: str, became: str, why: str = "") -> None:
        self._mark(key, "translated", became, why)

    def unmark(self, key: str) -> None:
        """Forget what was said of a key that turns out to be read."""
        self.marks.pop(self.origin.get(key, key), None)

    def take_back(self, setting: str, why: str) -> None:
        """Leave a setting at our default, and say so at the keys that gave it."""
        del self.settings[setting]
        for key in self.sources.pop(setting, ()):
            # A key that another setting comes from as well keeps what became of it.
            if key in self.values and not any(key in keys for keys in self.sources.values()):
                self.marks[key] = ("can't be", "", why)

    def put_instead(self, setting: str, value: Any, why: str) -> None:
        """Set one of ours to what the recipe doesn't say, and say so at the keys that said otherwise."""
        self.settings[setting] = value
        for key in self.sources.pop(setting, ()):
            if key in self.values:
                self.marks[key] = ("can't be", "", why)

    # The report.

    def keys(self) -> tuple[Key, ...]:
        """What became of every key, in the recipe's order."""
        became: dict[str, list[str]] = {}
        for setting, keys in self.sources.items():
            for key in keys:
                became.setdefault(key, []).append(f"{setting} = {shown(self.settings[setting])}")
        return tuple(self._key(key, value, "; ".join(became.get(key, [])[:8])) for key, value in self.values.items())

    def _key(self, key: str, value: Any, became: str) -> Key:
        said = "(hidden)" if _SECRET.search(key) and value not in (None, "") else plain(value)
        name = printable(key[:_SHOWN_CHARS])
        row = row_of(self.tool, key)
        if key in self.marks:
            status, marked, why = self.marks[key]
            return Key(name, said, marked or (became if status == "translated" else ""), status, printable(why[:600]))
        if row is None:
            why = f"no key of {self.tool.title} as of {self.tool.version}"
            return Key(name, said, "", "can't be", why)
        if became:
            return Key(name, said, became, "taken" if row.status == "taken" else "translated", row.why)
        if row.status != "no effect" and any(value is off or value == off for off in _OFF):
            return Key(name, said, "", "no effect", "it is off, as here")
        if row.status in ("taken", "translated"):
            return Key(name, said, "", "no effect", "nothing reads it with the other keys as they are")
        return Key(name, said, "", row.status, row.why)

    def left_out(self) -> tuple[Key, ...]:
        """Settings that the tool's own defaults gave, as the recipe leaves their keys out."""
        return tuple(
            Key(
                " ".join(keys), None, f"{setting} = {shown(self.settings[setting])}", "translated", "the tool's default"
            )
            for setting, keys in self.sources.items()
            if keys and not any(key in self.values for key in keys)
        )


def row_of(tool: KeyTable, key: str) -> Row | None:
    """The row of a key, whatever its places in lists are."""
    plain_key = _PLACE.sub("[]", key)
    if plain_key in tool.rows:
        return tool.rows[plain_key]
    # A row for all keys that begin alike, the longest beginning.
    parts = re.split(r"(?<=[._])", plain_key)
    for end in range(len(parts) - 1, 0, -1):
        if (row := tool.rows.get("".join(parts[:end]) + "*")) is not None:
            return row
    return None


def shown(value: Any) -> str:
    """A value as a line of a report shows it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(entry) for entry in value[:8]) + (", ..." if len(value) > 8 else "") + "]"
    elif isinstance(value, dict):
        text = f"a table of {len(value)}"
    else:
        text = value[: _SHOWN_CHARS + 1] if isinstance(value, str) else str(value)[: _SHOWN_CHARS + 1]
    return printable(text[:_SHOWN_CHARS])


def plain(value: Any) -> Any:
    """A value as JSON can say it, bounded."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, list | tuple) and len(value) <= 16:
        return [shown(entry) if isinstance(entry, list | dict) else plain(entry) for entry in value]
    return shown(value)
