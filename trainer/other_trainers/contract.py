"""What a file here says of another trainer: how its recipe is recognised, read into our settings, and each key's fate.

A tool's file has `TOOL`, whose rows name every key that the tool's own parser takes. What a key becomes in one recipe
may depend on the others; the row says what it becomes in general, which is what `docs/other_trainers.md` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.other_trainers.rows import Key, KeyTable

if TYPE_CHECKING:
    from trainer.other_trainers.documents import Document
    from trainer.other_trainers.reading import Reading


@dataclass(frozen=True, kw_only=True)
class Tool(KeyTable):
    """One trainer whose recipes are read."""

    name: str  # as `--json` says it
    # Tools are asked in this order whether a file is theirs: those that know it by a sure sign come before those that
    # would take more.
    turn: int
    recognises: Callable[[Document], bool]
    # The recipe's values by dotted key.
    flatten: Callable[[Document], dict[str, Any]]
    read: Callable[[Reading], None]


@dataclass(frozen=True)
class Imported:
    """A recipe of another trainer as settings of ours."""

    tool: str
    version: str
    settings: dict[str, Any]  # nested tables, as a preset has them
    keys: tuple[Key, ...]
    left_out: tuple[Key, ...]  # what the recipe leaves out and the tool does by itself
    notes: tuple[str, ...]
    name: str  # what the recipe calls itself, "" if nothing
