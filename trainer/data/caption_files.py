"""Caption files beside pictures: `.txt`, or `.caption` where there is no `.txt`. They are the user's work.

Every edit is written whole or not at all and logged in the folder's `.caption-history.jsonl`, which only ever grows:
an undo is an entry too, so nothing that was once written is lost.
"""

from __future__ import annotations

import errno
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from trainer import encodings, files
from trainer.errors import DataError

HISTORY = ".caption-history.jsonl"
_WAIT_S = 10.0
# Written by whoever holds the folder's lock. A short name: the picture's own may be as long as names can be.
_NEW = ".caption-new.tmp"
MAX_CAPTION_BYTES = 64 << 10
_SUFFIXES = (".txt", ".caption")


@dataclass(frozen=True)
class Undone:
    """What an undo did: the caption of `picture` is `restored` again, None if it had none."""

    picture: str
    restored: str | None


def read_caption(image_path: Path) -> str:
    """The picture's caption without BOM and outer blanks, "" if it has none. Raises: DataError saying what is wrong."""
    for suffix in _SUFFIXES:
        path = image_path.with_suffix(suffix)
        if os.path.isfile(path):  # pathlib's own raises for a name that is too long
            return _decode(path)
    return ""


def caption_in_json(image_path: Path) -> str:
    """`caption` of the `.json` beside the picture, as ai-toolkit writes it; "" where there is none that reads so."""
    path = image_path.with_suffix(".json")
    try:
        if not os.path.isfile(path) or path.stat().st_size > 4 * MAX_CAPTION_BYTES:
            return ""
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""
    text = content.get("caption") if isinstance(content, dict) else None
    return _clean(text) if isinstance(text, str) and len(text.encode("utf-8", "replace")) <= MAX_CAPTION_BYTES else ""


def _decode(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CAPTION_BYTES + 1)
    except OSError as error:
        raise DataError(f"has a caption {path.name} that can't be read: {error.strerror}") from None
    return decode(raw, path.name)


def decode(raw: bytes, name: str) -> str:
    """The caption in a file's bytes: UTF-8, or UTF-16 and UTF-32 that say so with a BOM.

    Raises: DataError if they are too many or none of these.
    """
    if len(raw) > MAX_CAPTION_BYTES:
        raise DataError(f"has a caption {name} that is too long; allowed: up to {MAX_CAPTION_BYTES // 1024} KiB")
    try:
        return _clean(raw.decode(encodings.of(raw)))
    except UnicodeDecodeError:
        raise DataError(f"has a caption {name} that {encodings.refusal(io.BytesIO(raw))}; save it as UTF-8") from None


def _clean(text: str) -> str:
    """The text without BOM, zeros, halves of characters and outer blanks."""
    return text.removeprefix("\ufeff").replace("\x00", "").encode("utf-8", "replace").decode().strip()


def write_caption(image_path: Path, text: str) -> None:
    """Write the picture's `.txt` whole or not at all, logged first.

    Raises: DataError if it is too long or can't be written.
    """
    sidecar = image_path.with_suffix(".txt")
    content = text.encode("utf-8", "replace").decode().strip() + "\n"  # a browser may send half a character
    if len(content.encode("utf-8", "surrogatepass")) > MAX_CAPTION_BYTES:
        limit = f"up to {MAX_CAPTION_BYTES // 1024} KiB"
        raise DataError(f"{image_path.name} can't take this caption: it is too long; allowed: {limit}.")
    folder = image_path.parent
    with locked(folder, folder / HISTORY):
        before = raw(sidecar)
        if before == content:
            return
        number = max((entry["edit"] for entry in _history(folder) if "edit" in entry), default=0) + 1
        entry = {"edit": number, "picture": image_path.name, "sidecar": sidecar.name}
        log(folder / HISTORY, {**entry, "before": before, "after": content})
        _replace(sidecar, content)


def undo(folder: Path) -> Undone | None:
    """Take back the folder's last edit that still stands; None if there is none. Call again for the edit before it.

    Raises: DataError if the caption was changed by another program since, whose text would be lost, or if it can't be
    written.
    """
    with locked(folder, folder / HISTORY):
        # The last edit, if the file is still as it left it.
        standing = _standing(_history(folder))
        if not standing:
            return None
        last = standing[-1]
        sidecar = folder / last["sidecar"]
        present, before = raw(sidecar), last.get("before")
        if present not in (last.get("after"), before):  # the latter: a crash came between the log and the file
            raise DataError(
                f"{sidecar.name} was changed outside since its last edit here; nothing was undone. Save the caption "
                f"you want: that can be undone."
            )

        # Logged first, then done: a crash between the two leaves an entry that the next undo understands.
        entry = {"undo": last["edit"], "picture": last["picture"], "sidecar": last["sidecar"]}
        log(folder / HISTORY, {**entry, "before": present, "after": before})
        if before is None:
            sidecar.unlink(missing_ok=True)
        else:
            _replace(sidecar, before)
        return Undone(last["picture"], None if before is None else before.strip())


def _standing(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Edits that can be taken back, oldest first.

    Where another program changed a caption between two edits, those before the change are passed over: to take them
    back would lose its text.
    """
    stacks: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        stack = stacks.setdefault(entry["sidecar"], [])
        if "edit" not in entry:
            stack[:] = [edit for edit in stack if edit["edit"] != entry["undo"]]
            continue
        if stack and entry.get("before") == stack[-1].get("before") != stack[-1].get("after"):
            stack.pop()  # logged, but never written
        elif stack and entry.get("before") != stack[-1].get("after"):
            stack.clear()
        stack.append(entry)
    return sorted((edit for stack in stacks.values() for edit in stack), key=lambda edit: int(edit["edit"]))


@contextmanager
def locked(folder: Path, log: Path) -> Iterator[Path]:
    """The log of a folder, for one writer. Raises: DataError if the folder can't be written into."""
    try:
        log.parent.mkdir(exist_ok=True)
        path = log.with_suffix(".lock")
        path.open("a+b").close()  # a lock that can't be made is waited for as if another held it
        with FileLock(str(path), timeout=_WAIT_S):
            yield log
    except Timeout:
        raise DataError(f"another program is writing captions in {folder.name}; try again when it is done.") from None
    except OSError as error:
        raise DataError(
            f"the captions in {folder.name} can't be changed ({error.strerror or error}); {mend(error)} Nothing was "
            f"lost."
        ) from None


@contextmanager
def writable(what: str) -> Iterator[None]:
    """A full or closed disk in plain words. Raises: DataError where the body raises OSError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{what} can't be written ({error.strerror or 'the disk refuses'}); {mend(error)}") from None


def mend(error: OSError) -> str:
    """What to do about a folder that could not be written into."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room on the disk and save again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder may only be read: copy it to where you may write, and edit it there."
    if error.errno == errno.ENAMETOOLONG:
        return "the picture's name is too long for a caption beside it: shorten it."
    return "look at the disk and the folder's rights."


def raw(path: Path) -> str | None:
    """The file's text with undecodable bytes kept as surrogates, so that an undo gives the very bytes back."""
    return path.read_bytes().decode("utf-8", "surrogateescape") if os.path.isfile(path) else None


def _history(folder: Path) -> list[dict[str, Any]]:
    """Plausible entries, oldest first; names that would leave the folder are passed over."""
    return [entry for entry in entries(folder / HISTORY) if _plausible(entry)]


def entries(path: Path) -> list[dict[str, Any]]:
    """Whole entries of a log, oldest first; a torn line is passed over."""
    read = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            read.append(json.loads(line))
    return [entry for entry in read if isinstance(entry, dict)]


def _plausible(entry: dict[str, Any]) -> bool:
    """Whether an entry is one that this module writes; the log may have been edited, or come with the folder."""
    number = entry.get("edit", entry.get("undo"))
    names = (entry.get("picture"), entry.get("sidecar"))
    plain = all(
        isinstance(name, str)
        and name == os.path.basename(name)
        and name not in ("", ".", "..")
        and is_writable(name)
        and "\0" not in name
        for name in names
    )
    before = entry.get("before")
    has_text = before is None or (isinstance(before, str) and is_writable(before))
    return plain and type(number) is int and str(names[1]).endswith(".txt") and has_text


def is_writable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can say and no file can hold."""
    try:
        text.encode("utf-8", "surrogateescape")  # as `raw` reads bytes that are no text
    except UnicodeEncodeError:
        return False
    return True


def log(path: Path, entry: dict[str, Any]) -> None:
    """Add a line to a log, on the disk when this returns."""
    line = json.dumps({**entry, "at": round(time.time(), 3)}) + "\n"
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        try:
            # A line that a crash cut short must not swallow this line.
            if size and _ends_torn(path):
                file.write(b"\n")
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # what is left of a line is passed over
                os.truncate(path, size)
            raise


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _replace(path: Path, content: str) -> None:
    files.write(path, content.encode("utf-8", "surrogateescape"), path.with_name(_NEW))
