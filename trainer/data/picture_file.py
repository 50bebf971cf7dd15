"""A file with a picture's name, before it is opened, and what its folder says about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PictureFile:
    """A file with a picture's name, not opened yet, and what its folder says about it."""

    path: Path
    name: str  # below the folder, for messages
    text: str  # its caption as written; "" if there is none
    refusal: str = ""  # why its caption can't be read
    repeats: int = 1
    weight: float = 1.0
    mask: Path | None = None


def first_names(names: list[str]) -> str:
    """The first three names and how many more there are, for a message."""
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
