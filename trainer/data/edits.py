"""Edits of a dataset: captions changed, pictures put into the trash and taken out again, each one step to undo.

One log for the whole set, in the hidden folder `.edits` inside it, so that it goes where the set goes. It only grows,
and an edit is in it, whole and on the disk, before anything is touched: a kill in the middle leaves an edit that one
undo takes back. The files beside the pictures stay the truth: what another program wrote since is never overwritten by
an undo. (`caption_files` logs single captions, folder by folder, as uploads write them;
`picture_replacing` is what is done to pictures and masks themselves.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

from trainer import files, unique_names
from trainer.data import caption_files, picture_replacing
from trainer.data.edit_log import FOLDER as FOLDER
from trainer.data.edit_log import SIDECARS, Change, Edit, Move, entry_of, next_number, now
from trainer.data.edit_log import history as history
from trainer.data.formats import IMAGE_SUFFIXES
from trainer.data.picture_replacing import opened
from trainer.data.sources import masks_beside
from trainer.errors import DataError

_TRASH, _NEW = "trash", "new.tmp"


@dataclass(frozen=True)
class Undone:
    """An edit taken back, and the files that were left as they are since another hand changed them."""

    edit: Edit
    left: tuple[str, ...]


# What people do.


def write(folder: Path, what: str, texts: Mapping[Path, str], visit: str = "") -> Edit | None:
    """Give each of these pictures its caption, as one edit; None if nothing is different.

    Raises: DataError for a caption that is too long, or if there is no writing; then nothing was changed, or an undo
    takes it back.
    """
    sidecars = {path.with_suffix(".txt"): _content(path, text) for path, text in texts.items()}
    with opened(folder) as log:
        changes = tuple(
            Change(_below(folder, path), before, after)
            for path, after in sidecars.items()
            if (before := caption_files.raw(path)) != after
        )
        if not changes:
            return None
        past = history(folder)
        edit = Edit(next_number(past), what, now(), changes, (), visit)

        # What is typed goes on with the last edit, if that is of the same visit to the same caption.
        last = next((old for old in reversed(past) if not old.undone), None)
        if visit and last and last.visit == visit and _continues(last, edit):
            edit = replace(last, at=edit.at, changes=(replace(edit.changes[0], before=last.changes[0].before),))
        caption_files.log(log, entry_of(edit))
        for change in edit.changes:
            _put(folder, change.file, change.after)
        return edit


def add(folder: Path, what: str, picture: Path, text: str, before: str | None, visit: str) -> bool:
    """Give a picture its caption as one more of the edit of this `visit`, which is begun if it doesn't stand.

    False, and nothing is done, if the caption file doesn't hold `before` any more: another hand was there first.

    Raises: DataError if the text is too long, or if there is no writing.
    """
    sidecar = picture.with_suffix(".txt")
    with opened(folder) as log:
        change = Change(_below(folder, sidecar), caption_files.raw(sidecar), _content(picture, text))
        if change.before != before:
            return False
        past = history(folder)
        edit = next((old for old in reversed(past) if old.visit == visit and not old.undone), None)
        if edit is None:
            caption_files.log(log, entry_of(Edit(next_number(past), what, now(), (change,), (), visit)))
        else:
            caption_files.log(log, {"more": edit.number, "changes": [asdict(change)]})
        _put(folder, change.file, change.after)
        return True


def finish(folder: Path, visit: str) -> set[str]:
    """The caption files that edits of this visit gave a text, undone edits too.

    A text that was logged last and not written, since the writer was killed in between, is written first.
    """
    with opened(folder):
        edits = [edit for edit in history(folder) if edit.visit == visit]
        if edits and not edits[-1].undone and edits[-1].changes:
            last = edits[-1].changes[-1]
            if caption_files.raw(folder / last.file) == last.before:
                _put(folder, last.file, last.after)
        return {change.file for edit in edits for change in edit.changes}


def discard(folder: Path, pictures: Sequence[Path]) -> Edit:
    """Put pictures into the set's trash, each with its caption and mask. Raises: DataError."""
    with opened(folder) as log:
        number = next_number(history(folder))
        trash = PurePosixPath(FOLDER, _TRASH, str(number))
        sources = [_below(folder, path) for path in _with_companions(pictures)]
        moves = tuple(Move(name, str(trash / name)) for name in sources)
        edit = Edit(number, "Delete", now(), (), moves)
        caption_files.log(log, entry_of(edit))
        _move_all(folder, edit.moves)
        return edit


def restore(folder: Path, names: Iterable[str]) -> Edit:
    """Take pictures out of the trash, by their paths below the set. Raises: DataError if a name is taken again."""
    with opened(folder) as log:
        wanted = set(names)
        pictures = [path for path in trashed(folder) if _below(folder, path) in wanted]
        sources = [_below(folder, path) for path in _with_companions(pictures)]
        # In the trash it lies at .edits/trash/NUMBER/, and then at its old path.
        moves = [Move(name, str(PurePosixPath(*PurePosixPath(name).parts[3:]))) for name in sources]
        if taken := [move.target for move in moves if os.path.lexists(folder / move.target)]:
            raise DataError(
                f"{taken[0]} is there again already; delete or rename that one first. Nothing was restored."
            )
        if not moves:
            raise DataError("those pictures are not in the trash any more; reload the page.")
        edit = Edit(next_number(history(folder)), "Restore", now(), (), tuple(moves))
        caption_files.log(log, entry_of(edit))
        _move_all(folder, edit.moves)
        return edit


def undo(folder: Path, number: int | None = None) -> Undone | None:
    """Take back one edit: that of this number, else the last that stands; None if there is none.

    What another hand changed since is left as it is and named. Raises: DataError if there is no writing.
    """
    with opened(folder) as log:
        standing = [edit for edit in history(folder) if not edit.undone and number in (None, edit.number)]
        if not standing:
            return None
        edit, left = standing[-1], []
        if edit.swaps:
            return Undone(edit, tuple(picture_replacing.take_back(folder, log, edit)))
        for change in edit.changes:
            # A text that is neither the edit's nor the one before it is another hand's.
            present = caption_files.raw(folder / change.file)
            if present == change.after:
                _put(folder, change.file, change.before)
            elif present != change.before:
                left.append(change.file)
        left += _move_all(folder, [Move(move.target, move.source) for move in reversed(edit.moves)])
        # Last: after a crash before this the edit still stands, and to undo it again does no harm.
        caption_files.log(log, {"undo": edit.number, "at": now()})
        return Undone(edit, tuple(left))


# What there is.


def trashed(folder: Path) -> list[Path]:
    """The pictures in the set's trash, newest first; masks go with their picture."""
    trash = folder / FOLDER / _TRASH
    pictures = [path for path in trash.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    masks = set(masks_beside(pictures).values())
    return sorted((path for path in pictures if path not in masks), key=_trash_order)


def kept(folder: Path, picture: Path, text: str) -> bool:
    """Whether this text was the last that was written for the picture here, whatever became of the file since."""
    name = _below(folder, picture.with_suffix(".txt"))
    afters = [change.after for edit in history(folder) for change in edit.changes if change.file == name]
    return bool(afters) and afters[-1] == _content(picture, text)


# Paths and texts.


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _content(picture: Path, text: str) -> str:
    """The caption file's text. Raises: DataError if it is too long."""
    content = text.replace("\0", "").encode("utf-8", "replace").decode().strip() + "\n"
    if len(content.encode()) > caption_files.MAX_CAPTION_BYTES:
        limit = f"up to {caption_files.MAX_CAPTION_BYTES // 1024} KiB"
        raise DataError(f"{picture.name} can't take this caption: it is too long; allowed: {limit}.")
    return content


def _with_companions(pictures: Sequence[Path]) -> list[Path]:
    """These pictures, and what lies beside each for it alone: captions and its mask."""
    leaving = set(pictures)
    paths: dict[Path, None] = dict.fromkeys(pictures)
    masks = masks_beside(pictures)
    for picture in pictures:
        twins = {picture.with_suffix(suffix) for suffix in IMAGE_SUFFIXES} - leaving
        if not any(os.path.isfile(twin) for twin in twins):  # a.jpg beside a.png has the same caption
            paths |= dict.fromkeys(picture.with_suffix(suffix) for suffix in SIDECARS)
            if picture in masks:
                paths[masks[picture]] = None
    return [path for path in paths if os.path.isfile(path)]


def _trash_order(path: Path) -> tuple[int, str]:
    number = path.parts[path.parts.index(_TRASH) + 1] if _TRASH in path.parts else "0"
    return -int(number) if number.isdecimal() else 0, str(path)


def _put(folder: Path, name: str, text: str | None) -> None:
    """Make the caption file have this text, or not be there."""
    if text is None:
        (folder / name).unlink(missing_ok=True)
    else:
        files.write(folder / name, text.encode("utf-8", "surrogateescape"), folder / FOLDER / _NEW)


def _move_all(folder: Path, moves: Iterable[Move]) -> list[str]:
    """Move the files; what could not be moved, since it is gone or its place is taken."""
    left = []
    for move in moves:
        source, target = folder / move.source, folder / move.target
        if not os.path.lexists(source):
            left.append(move.source)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            unique_names.put(source, [target])
        except FileExistsError:
            left.append(move.target)
    return left


def _continues(last: Edit, edit: Edit) -> bool:
    """Whether both are of the same single caption, and nothing was written to it in between."""
    if len(last.changes) != 1 or len(edit.changes) != 1:
        return False
    return last.changes[0].file == edit.changes[0].file and last.changes[0].after == edit.changes[0].before
