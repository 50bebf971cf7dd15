"""The log of a dataset's edits: what an edit is, and how it is written down and read again.

It lies in the hidden folder `.edits` inside the set and only grows. It may have come with the folder: what this module
would not have written is passed over, and no name in it leads out of the set.
"""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from trainer.data import caption_files, other_tools_files
from trainer.data.formats import CAPTION_SUFFIXES, IMAGE_SUFFIXES
from trainer.data.sources import FOREIGN_SUFFIXES
from trainer.errors import DataError

FOLDER = other_tools_files.EDITS
SIDECARS = (*CAPTION_SUFFIXES, ".json")
_HISTORY = "history.jsonl"
_MOST = 2**34  # of an edit's number, and of seconds since 1970 (the year 2514)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PICTURES = (*IMAGE_SUFFIXES, *FOREIGN_SUFFIXES)
_MOVED = (*_PICTURES, *SIDECARS)


@dataclass(frozen=True)
class Change:
    """A caption file, by its path below the set, and its text before and after; None for no file."""

    file: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Move:
    """A file's path below the set before and after."""

    source: str
    target: str


@dataclass(frozen=True)
class Swap:
    """A picture or mask that was replaced, by its path below the set: sha256 before and after; None for no file."""

    file: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Edit:
    """One step. `visit` joins what is done bit by bit, as typing into one caption is, into one edit."""

    number: int
    what: str
    at: float
    changes: tuple[Change, ...] = ()
    moves: tuple[Move, ...] = ()
    visit: str = ""
    undone: bool = False
    swaps: tuple[Swap, ...] = ()

    @property
    def num_pictures(self) -> int:
        """How many pictures it is about."""
        if self.swaps:
            every = map(Path, (swap.file for swap in self.swaps))
            paths = [path for path in every if not other_tools_files.is_called_masks(path.parent.name)]
            return max(1, len(paths) - len(other_tools_files.masks(paths, set())))
        return len(self.changes) or sum(move.source.lower().endswith(_PICTURES) for move in self.moves)

    @property
    def files(self) -> set[str]:
        """Every file that it is about, by its path below the set."""
        moved = {name for move in self.moves for name in (move.source, move.target)}
        return moved | {change.file for change in self.changes} | {swap.file for swap in self.swaps}


def history(folder: Path) -> list[Edit]:
    """Every edit of the set, oldest first; entries that this module would not have written are passed over."""
    edits: dict[int, Edit] = {}
    for entry in caption_files.entries(folder / FOLDER / _HISTORY):
        if type(entry.get("undo")) is int:
            if entry["undo"] in edits:
                edits[entry["undo"]] = replace(edits[entry["undo"]], undone=True)
        elif type(entry.get("more")) is int:
            changes, swaps = _changes(entry.get("changes", [])), _swaps(entry.get("swaps", []))
            if (edit := edits.get(entry["more"])) and changes is not None and swaps is not None:
                grown = replace(edit, changes=(*edit.changes, *changes), swaps=(*edit.swaps, *swaps))
                edits[edit.number] = grown
        elif read := _read(entry):
            edits[read.number] = read
    return [edits[number] for number in sorted(edits)]


def opened(folder: Path) -> AbstractContextManager[Path]:
    """The set's log, for one writer. Raises: DataError if there is no writing."""
    return caption_files.locked(folder, folder / FOLDER / _HISTORY)


def now() -> float:
    """The time as entries say it."""
    return round(time.time(), 3)


def next_number(past: list[Edit]) -> int:
    """The number of an edit to come. Raises: DataError if there is none left, as in a log that another hand wrote."""
    number = max((edit.number for edit in past), default=0) + 1
    if number >= _MOST:
        raise DataError(
            f"{FOLDER}/{_HISTORY} of this dataset is damaged: an edit has the number {number - 1}; move it away."
        )
    return number


def entry_of(edit: Edit) -> dict[str, Any]:
    """The edit as an entry of the log."""
    entry = asdict(edit)
    del entry["undone"]
    return {"edit": entry.pop("number"), **entry}


def _read(entry: dict[str, Any]) -> Edit | None:
    """The edit of a log's entry, None if it is none of ours: the log may have come with the folder."""
    number, what, at, visit = (entry.get(key) for key in ("edit", "what", "at", "visit"))
    changes, swaps, moves = _changes(entry.get("changes")), _swaps(entry.get("swaps", [])), entry.get("moves")
    if type(number) is not int or not 0 < number < _MOST or not isinstance(what, str):
        return None
    if not isinstance(at, int | float) or not 0 <= at < _MOST:  # a time that the system can spell
        return None
    if not isinstance(visit, str) or changes is None or swaps is None or not isinstance(moves, list):
        return None
    if not all(_is_plausible(move, ("source", "target"), _MOVED) for move in moves):
        return None
    read_moves = tuple(Move(move["source"], move["target"]) for move in moves)
    return Edit(number, what, float(at), changes, read_moves, visit, swaps=swaps)


def _changes(entries: object) -> tuple[Change, ...] | None:
    """The changes of an entry, None if any is none of ours."""
    if not isinstance(entries, list):
        return None
    if not all(_is_plausible(change, ("file",), (".txt",)) and _has_texts(change) for change in entries):
        return None
    return tuple(Change(change["file"], change["before"], change["after"]) for change in entries)


def _swaps(entries: object) -> tuple[Swap, ...] | None:
    """The swaps of an entry, None if any is none of ours."""
    if not isinstance(entries, list):
        return None
    if not all(_is_plausible(swap, ("file",), IMAGE_SUFFIXES) and _has_digests(swap) for swap in entries):
        return None
    return tuple(Swap(swap["file"], swap["before"], swap["after"]) for swap in entries)


def _has_digests(entry: dict[str, Any]) -> bool:
    digests = (entry.get("before", 0), entry.get("after", 0))
    return all(digest is None or isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests)


def _is_plausible(entry: object, keys: tuple[str, ...], endings: tuple[str, ...]) -> bool:
    """Whether these names stay below the folder and end as ours do."""
    if not isinstance(entry, dict):
        return False
    for name in (entry.get(key) for key in keys):
        if not isinstance(name, str) or not caption_files.is_writable(name) or not name.lower().endswith(endings):
            return False
        parts = PurePosixPath(name).parts
        if "\0" in name or "\\" in name or ".." in parts or name.startswith("/") or name[1:2] == ":":
            return False
    return True


def _has_texts(entry: dict[str, Any]) -> bool:
    texts = (entry.get("before", 0), entry.get("after", 0))
    return all(text is None or isinstance(text, str) and caption_files.is_writable(text) for text in texts)
