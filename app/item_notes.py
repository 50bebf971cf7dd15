"""What a person says of things of the library: a note, a rating from 0 to 5, a title, kept or rejected; a JSON a kind.

Two tabs never lose one another's words: each change reads the file anew under a lock and sets what was changed and
nothing else, and a note that was changed elsewhere meanwhile is kept beside the new one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from app.texts import say
from trainer import files, unique_names
from trainer.errors import DataError

MOST_RATING = 5
MOST_WEIGHT = 2.0  # of a LoRA, either way, as the Stack tab's rows take it
LONGEST_NOTE, LONGEST_TITLE = 4000, 80
KEPT, REJECTED = "kept", "rejected"
VERDICTS = ("", KEPT, REJECTED)
_PATIENCE_S = 10
_MAX_BYTES = 32 << 20


@dataclass(frozen=True)
class Note:
    """What was said of one thing; a title stands where a name can't be changed."""

    text: str = ""
    rating: int = 0  # 0 to 5; 0 is none
    title: str = ""
    verdict: str = ""  # one of VERDICTS
    weight: float = 1.0  # of a LoRA: at which it is put into a stack


def read(folder: Path, kind: str) -> dict[str, Note]:
    """What was said of the things of a kind, by their keys; what can't be read is none."""
    return {key: note for key, value in _values(folder / f"{kind}.json").items() if (note := _note(value)) != Note()}


def change(folder: Path, kind: str, key: str, text: str | None = None, seen: str = "", **changes: Any) -> Note:
    """What is said of one thing now: `changes` of its rating, title, verdict and weight, and its text, `seen` before.

    Raises: DataError for a text, rating, verdict or weight that is none, or where nothing can be written.
    """
    if text is not None and len(text) > LONGEST_NOTE:
        raise DataError(say("item.note_too_long", num=len(text), most=LONGEST_NOTE))
    if not 0 <= changes.get("rating", 0) <= MOST_RATING:
        raise DataError(say("gallery.rating_is", rating=changes["rating"], most=MOST_RATING))
    if changes.get("verdict", "") not in VERDICTS:
        raise DataError(say("gallery.verdict", verdict=str(changes["verdict"])[:40], kept=KEPT, rejected=REJECTED))
    if not _is_weight(changes.get("weight", 1.0)):
        raise DataError(say("item.weight", weight=str(changes["weight"])[:40], most=MOST_WEIGHT))
    path = folder / f"{kind}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder / f".{kind}.lock"), timeout=_PATIENCE_S):
            # Read anew under the lock: another tab may have written since.
            _set_aside_damaged(path)
            values = _values(path)
            before = _note(values.get(key))
            if text is not None:
                changes["text"] = _both(before.text, seen, text)
            after = dataclasses.replace(before, **changes)
            if after != before:
                _write(path, values, key, after)
            return after
    except Timeout:
        raise DataError(say("item.notes_busy")) from None
    except OSError as error:
        raise DataError(say("item.notes_unwritable", reason=error.strerror or error)) from None


def move(folder: Path, kind: str, old: str, new: str) -> None:
    """Let what was said of one thing be said of another key. Raises: DataError."""
    note = read(folder, kind).get(old)
    if note and old != new:
        said = {name: value for name, value in dataclasses.asdict(note).items() if name != "text"}
        unsaid = {name: value for name, value in dataclasses.asdict(Note()).items() if name != "text"}
        # The new key first: a kill in between leaves the note twice, and never none.
        change(folder, kind, new, note.text, **said)
        change(folder, kind, old, "", note.text, **unsaid)


def _both(stored: str, seen: str, text: str) -> str:
    """The new text in place of what this tab had seen; what others wrote beside it meanwhile stays."""
    # Nobody else wrote; or others wrote beside what this tab had seen, and that stays beside the new text.
    if stored in ("", seen, text):
        return text
    if seen and stored.endswith(f"\n{seen}"):
        return f"{stored[: -len(seen)]}{text}"[:LONGEST_NOTE]
    if seen and stored.startswith(f"{seen}\n"):
        return f"{text}{stored[len(seen) :]}"[:LONGEST_NOTE]
    return f"{stored}\n{text}"[:LONGEST_NOTE]


def _write(path: Path, values: dict[str, Any], key: str, note: Note) -> None:
    # A thing of which nothing is said any more has no entry.
    nothing = dataclasses.asdict(Note())
    given = {name: value for name, value in dataclasses.asdict(note).items() if value != nothing[name]}
    values = {other: value for other, value in values.items() if other != key} | ({key: given} if given else {})
    files.write(path, json.dumps(values, ensure_ascii=False, indent=1).encode("utf-8", "replace"))


def _values(path: Path) -> dict[str, Any]:
    """What the file holds; {} for none and for a file that can't be read."""
    try:
        values = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _note(value: Any) -> Note:
    """A note as it stands in the file, which a person may have edited."""
    if not isinstance(value, dict):
        return Note()
    text, rating, title, verdict = (value.get(name) for name in ("text", "rating", "title", "verdict"))
    is_rating = isinstance(rating, int) and not isinstance(rating, bool) and 0 <= rating <= MOST_RATING
    return Note(
        text[:LONGEST_NOTE] if isinstance(text, str) else "",
        rating if is_rating and rating else 0,
        title[:LONGEST_TITLE] if isinstance(title, str) else "",
        verdict if verdict in (KEPT, REJECTED) else "",
        float(value["weight"]) if _is_weight(value.get("weight")) else 1.0,
    )


def _is_weight(weight: Any) -> bool:
    """Whether it is a number that a row of Stack takes."""
    return isinstance(weight, int | float) and not isinstance(weight, bool) and -MOST_WEIGHT <= weight <= MOST_WEIGHT


def _set_aside_damaged(path: Path) -> None:
    """Keep a file that can't be read under another name, so that it isn't written over."""
    if path.is_file() and path.stat().st_size > 2 and not _values(path):
        unique_names.put(path, unique_names.numbered(path.parent, f"{path.stem}-set-aside", path.suffix))
