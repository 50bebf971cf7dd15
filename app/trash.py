"""The trash: a folder of the workspace with a journal. What is thrown away lies there whole and can be put back.

The journal says what is wanted before a file is moved, and each file is moved by one rename, so that after a kill
the rest is done when somebody looks next. Nothing is deleted for good but by `empty`, which is told what to delete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from app.texts import say
from trainer import files, model_registry, unique_names
from trainer.errors import DataError

_PATIENCE_S = 30
_JOURNAL = "journal.json"
_HOME = "~/"  # how the places in the user's data folder begin, where presets and cards lie
State = Literal["moving", "held", "restoring", "deleting"]


@dataclass(frozen=True)
class Entry:
    """One thing in the trash: its files lie in a folder called by its id, under numbers."""

    id: str
    kind: str
    key: str  # what it went by in the library
    name: str  # for people
    when: float
    places: tuple[str, ...]  # where each came from, below the workspace or the user's data folder
    state: State = "held"


class Trash:
    """The trash of a workspace; safe to use from many requests, and from several processes."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.folder = workspace / "trash"

    def entries(self) -> list[Entry]:
        """What lies in the trash, the newest first; what a kill left half done is done first. Raises: DataError."""
        if not (self.folder / _JOURNAL).is_file():
            return []
        with self._locked():
            return self._settled()[::-1]

    def throw(self, kind: str, key: str, name: str, paths: Sequence[Path]) -> Entry:
        """Files and folders of the workspace, or files of the user's data folder, moved to the trash as one thing.

        Raises: DataError.
        """
        # What is wanted is written down before a file is moved; `_settled` moves it, now or after a kill.
        places = tuple(map(self._place_of, paths))
        entry = Entry(uuid.uuid4().hex, kind, key, name, time.time(), places, "moving")
        with self._locked():
            (self.folder / entry.id).mkdir(parents=True)
            self._write([*self._settled(), entry])
            self._settled()
        return dataclasses.replace(entry, state="held")

    def entry(self, entry_id: str) -> Entry:
        """The thing of that id. Raises: DataError if it isn't in the trash."""
        found = next((entry for entry in self.entries() if entry.id == entry_id), None)
        if found is None:
            raise DataError(say("trash.gone"))
        return found

    def restore(self, entry_id: str) -> list[Path]:
        """Where the thing lies now: where it was, or under the next name that is free.

        Raises: DataError if it isn't in the trash.
        """
        with self._locked():
            entry = self._marked([entry_id], "restoring")[0]
            places = [_put_back(target, source) for source, target in self._moves(entry) if os.path.lexists(target)]
            self._settled()
        return places

    def empty(self, entry_ids: Sequence[str]) -> int:
        """How many things were deleted for good: these and no other. Raises: DataError."""
        with self._locked():
            # Only what the person saw in the list: what came or went since is passed over.
            held = {entry.id for entry in self._settled()}
            wanted = [entry_id for entry_id in entry_ids if entry_id in held]
            if wanted:
                self._marked(wanted, "deleting")
                self._settled()
        return len(wanted)

    def held(self, entry: Entry) -> list[Path]:
        """Where its files and folders lie now."""
        return [path for _, path in self._moves(entry) if os.path.lexists(path)]

    # The journal.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Raises: DataError where the trash can't be used."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(str(self.folder / ".lock"), timeout=_PATIENCE_S):
                yield
        except Timeout:
            raise DataError(say("trash.busy")) from None
        except OSError as error:
            raise DataError(say("trash.unusable", reason=error.strerror or error)) from None

    def _read(self) -> list[Entry]:
        path = self.folder / _JOURNAL
        try:
            values = json.loads(path.read_bytes())
            return [_entry(value) for value in values]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DataError(say("trash.damaged", journal=_JOURNAL)) from None

    def _write(self, entries: Sequence[Entry]) -> None:
        text = json.dumps([dataclasses.asdict(entry) for entry in entries], ensure_ascii=False, indent=1)
        files.write(self.folder / _JOURNAL, text.encode("utf-8", "replace"))

    def _marked(self, entry_ids: Sequence[str], state: State) -> list[Entry]:
        """These entries in a new state, written down. Raises: DataError if any isn't there."""
        entries = self._settled()
        marked = [dataclasses.replace(entry, state=state) for entry in entries if entry.id in entry_ids]
        if len(marked) < len(entry_ids):
            raise DataError(say("trash.gone"))
        by_id = {entry.id: entry for entry in marked}
        self._write([by_id.get(entry.id, entry) for entry in entries])
        return marked

    # Files.

    def _settled(self) -> list[Entry]:
        """The entries once everything that the journal wants was done."""
        entries = self._read()
        kept = [settled for entry in entries if (settled := self._settle(entry)) is not None]
        if kept != entries:
            self._write(kept)
        return kept

    def _settle(self, entry: Entry) -> Entry | None:
        """The entry with its files where they should be; None if it is no longer in the trash."""
        if entry.state == "moving":
            for source, target in self._moves(entry):
                if os.path.isfile(source) and os.path.isfile(target) and os.path.samefile(source, target):
                    source.unlink()  # killed when it had both names
                elif os.path.lexists(source) and not os.path.lexists(target):
                    _put(source, [target], target.parent)
        elif entry.state == "restoring":
            for source, target in self._moves(entry):
                if os.path.lexists(target):
                    _put_back(target, source)
        elif entry.state == "deleting":
            shutil.rmtree(self.folder / entry.id)
        # A folder in which nothing lies is no thing.
        if self.held(entry):
            return dataclasses.replace(entry, state="held")
        with suppress(OSError):
            (self.folder / entry.id).rmdir()
        return None

    def _moves(self, entry: Entry) -> list[tuple[Path, Path]]:
        """Each file's place in the workspace and in the trash."""
        folder = self.folder / entry.id
        return [
            (self._source_of(place), folder / f"{number}-{Path(place).name}")
            for number, place in enumerate(entry.places)
        ]

    def _place_of(self, path: Path) -> str:
        if path.is_relative_to(self.workspace):
            return path.relative_to(self.workspace).as_posix()
        return f"{_HOME}{path.relative_to(model_registry.home()).as_posix()}"

    def _source_of(self, place: str) -> Path:
        return model_registry.home() / place[len(_HOME) :] if place.startswith(_HOME) else self.workspace / place


def _put_back(held: Path, place: Path) -> Path:
    """Where a file or folder was moved to: its place, or the next name beside it that is free."""
    stem, suffix = (place.name, "") if held.is_dir() else (place.stem, place.suffix)
    return _put(held, unique_names.numbered(place.parent, stem, suffix), place.parent)


def _put(source: Path, wanted: Iterable[Path], folder: Path) -> Path:
    """The first free of the wanted names of a folder, which the file or folder has now; copied from another disk."""
    folder.mkdir(parents=True, exist_ok=True)
    # One rename on the same disk. From another disk the file is copied whole before the first is removed.
    if source.is_dir() or source.stat().st_dev == folder.stat().st_dev:
        return unique_names.put(source, wanted)
    path = unique_names.copied(source, wanted, folder)
    source.unlink()
    return path


def _entry(value: Any) -> Entry:
    """An entry of the journal. Raises: ValueError, TypeError, KeyError for what is none."""
    places = tuple(value["places"])
    # A journal may have been edited: no place may lead out of the workspace, nor an id out of the trash.
    is_safe = all(isinstance(place, str) and not Path(place).is_absolute() and ".." not in place.split("/")
                  for place in places)  # fmt: skip
    texts = (value["id"], value["kind"], value["key"], value["name"])
    if not is_safe or not all(isinstance(text, str) for text in texts) or value["state"] not in get_args(State):
        raise ValueError("no entry of ours")
    if not value["id"].isalnum():
        raise ValueError("no id of ours")
    return Entry(*texts, float(value["when"]), places, value["state"])
