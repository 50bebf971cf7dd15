"""A dropped file: what it is, where it went, and what opens it."""

from __future__ import annotations

from dataclasses import dataclass

CARD, PRESET = "card:", "preset:"  # what a key of the Library's presets begins with


@dataclass(frozen=True)
class Arrival:
    """A dropped file; what `Open` opens, as (what, key)."""

    file: str
    what: str
    where: str = ""
    opens: tuple[str, str] | None = None
    shelf: tuple[str, str] | None = None  # kind and key in the library, if it is there
    is_taken: bool = True
    offer: str = ""  # the word of a file that waits to be kept (`pending_imports`)
