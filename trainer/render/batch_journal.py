"""A batch's journal, which only grows, and whether a picture's file is still as it was written.

`<out>/.batch/journal.jsonl` has a line a record, each synced before what it says is relied on:

    {"begun": [digest, ...]}    these are drawn now, as one batch
    {"done": digest, "file", "bytes", "mtime_ns", "sha256"}    drawn, whole in `.batch/`, about to be moved to `file`
    {"failed": digest, "why"}

It may be torn at its end or edited by hand: what is no record of ours is passed over. `.batch/thrown.jsonl` names the
pictures that a person threw away, a JSON text a line: they were drawn, and are not drawn again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from trainer import files

HIDDEN = ".batch"
_DONE = {"done": str, "file": str, "bytes": int, "mtime_ns": int, "sha256": str}
_FAILED = {"failed": str}


class Journal:
    """Appends, each line synced to the disk before the next thing is done."""

    def __init__(self, out: Path) -> None:
        (out / HIDDEN).mkdir(parents=True, exist_ok=True)
        self.file = (out / HIDDEN / "journal.jsonl").open("ab")
        if self.file.tell():  # a torn last line must not swallow the next
            self.write(None)

    def write(self, record: dict[str, Any] | None) -> None:
        """Append a record; None ends a line that was torn."""
        self.file.write(b"\n" if record is None else json.dumps(record).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def read_journal(out: Path) -> Iterator[dict[str, Any]]:
    """Its records, oldest first; a torn line is passed over, and a line that names a file outside the folder."""
    path = out / HIDDEN / "journal.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            # A line may be torn where the machine went down; a deeply nested line is no record of ours.
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(record):
                yield record


def _is_record(record: dict[str, Any]) -> bool:
    """Whether every value is of its kind, and the file lies below the folder."""
    if "begun" in record:
        digests = record["begun"]
        return isinstance(digests, list) and all(isinstance(digest, str) and _is_plain(digest) for digest in digests)
    kinds = _DONE if "done" in record else _FAILED
    is_typed = all(isinstance(record.get(key), kind) and _is_plain(record[key]) for key, kind in kinds.items())
    # A folder may come from elsewhere: what its journal names is opened and moved, and so must lie inside it.
    path = PurePath(str(record.get("file", "")))
    return is_typed and not path.is_absolute() and ".." not in path.parts


def _is_plain(value: Any) -> bool:
    """Whether a database and a file name can hold it: no huge number, no NUL, no half of a character."""
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


def note_thrown(out: Path, names: list[str]) -> None:
    """Write down, before they are moved, that these pictures below the folder are thrown away."""
    files.append_lines(out / HIDDEN / "thrown.jsonl", [json.dumps(name) for name in names])


def thrown(out: Path) -> set[str]:
    """The pictures that were thrown away at some time; they may have been put back since."""
    try:
        lines = (out / HIDDEN / "thrown.jsonl").read_bytes().splitlines()
    except OSError:
        return set()
    names = set()
    for line in lines:
        with suppress(ValueError, RecursionError):
            name = json.loads(line)
            names |= {name} if isinstance(name, str) else set()
    return names


# A picture's file.


def seal(path: Path) -> dict[str, Any]:
    """What the journal says of a file, which is synced to the disk first."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": files.sha256(path)}


def is_whole(path: Path, size: int, mtime_ns: int, sha256: str) -> bool:
    """True if the file is still as it was written.

    It is only read where its time says that it was copied or touched.
    """
    try:
        # Reading all of a large batch would take minutes at each start.
        status = path.stat()
        return status.st_size == size and (status.st_mtime_ns == mtime_ns or files.sha256(path) == sha256)
    except OSError:
        return False
