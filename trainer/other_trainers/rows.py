"""What becomes of a key of another trainer's recipe: in general, and in one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["taken", "translated", "no effect", "can't be"]
STATUSES: tuple[Status, ...] = ("taken", "translated", "no effect", "can't be")


@dataclass(frozen=True)
class Row:
    """What becomes of a key: our setting, or why there is none."""

    status: Status
    became: str = ""  # our settings
    why: str = ""


@dataclass(frozen=True)
class Key:
    """What became of one key of a recipe."""

    key: str
    value: Any  # as JSON can say it; secrets hidden
    became: str
    status: Status
    why: str


@dataclass(frozen=True, kw_only=True)
class KeyTable:
    """The keys of one trainer's recipes, and what becomes of each."""

    title: str
    version: str  # whose keys and defaults these are
    rows: Mapping[str, Row]  # by key; `[]` stands for any place in a list
