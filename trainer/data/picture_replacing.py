"""Pictures and masks of a dataset replaced as one step that an undo takes back, whole or not at all.

What an edit replaces is kept under its own name in `.edits/pictures/<number>`. What it puts in its place lies ready in
`.edits/new/<number>` before the log names the edit, and is gone when all is done. So a kill leaves either nothing, or
an edit that the next who opens the set finishes (`settle`): a picture never stays with the mask of another shape.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from trainer import files, system
from trainer.data import caption_files, edit_log
from trainer.data.edit_log import FOLDER, Edit, Swap
from trainer.errors import DataError
from trainer.printing import some

_KEPT, _NEW, _THROUGH = "pictures", "new", "new-picture.tmp"
_NUMBER = re.compile("[1-9][0-9]{0,8}")


@contextmanager
def opened(folder: Path) -> Iterator[Path]:
    """The log of the set's edits, for one writer, when what a kill left half done is done. Raises: DataError."""
    with edit_log.opened(folder) as log:
        _settle(folder)
        yield log


def settle(folder: Path) -> None:
    """Finish what a kill left half done, if anything; a set that can't be written into stays as it is."""
    if _numbers(folder / FOLDER / _NEW):
        with suppress(DataError), opened(folder):
            pass


def digest(path: Path) -> str | None:
    """The file's sha256, None if there is no file. Raises: OSError."""
    return files.sha256(path) if os.path.isfile(path) else None


def swap(
    folder: Path, what: str, contents: Mapping[Path, bytes | None], before: Mapping[Path, str | None], visit: str = ""
) -> Edit:
    """Give each of these files this content, none for None, as one edit; `before` is the sha256 that each must have.

    With a `visit`, what stands of the same one grows. Raises: DataError if a file is another by now, or if there is no
    writing; then nothing was changed, or what was begun is finished by the next who opens the set.
    """
    with opened(folder) as log:
        if changed := [path.name for path in contents if digest(path) != before[path]]:
            raise DataError(f"{some(changed)} was changed meanwhile; nothing was done. Open it anew.")
        past = edit_log.history(folder)
        # No number that was ever used, be it in the log or by a folder that a kill left.
        taken = [*_numbers(folder / FOLDER / _KEPT), edit_log.next_number(past) - 1]
        edit = Edit(max(taken) + 1, what, edit_log.now(), visit=visit)
        names = {path: path.relative_to(folder).as_posix() for path in contents}
        # The same visit goes on with its edit, as long as no file would be in it twice.
        last = next((old for old in reversed(past) if visit and old.visit == visit and not old.undone), None)
        if last and last.swaps and not last.files & set(names.values()):
            edit = last

        # The old files kept, the new files ready.
        kept, ready = (folder / FOLDER / part / str(edit.number) for part in (_KEPT, _NEW))
        swaps = []
        for path, content in contents.items():
            if before[path]:
                _keep(path, kept / names[path])
            ready.mkdir(parents=True, exist_ok=True)
            if content is not None:
                (ready / names[path]).parent.mkdir(parents=True, exist_ok=True)
                files.write_synced(ready / names[path], content)
            swaps.append(Swap(names[path], before[path], digest(ready / names[path])))

        # Written down, then done.
        if edit is last:
            caption_files.log(log, {"more": edit.number, "swaps": [asdict(swap) for swap in swaps]})
        else:
            caption_files.log(log, edit_log.entry_of(replace(edit, swaps=tuple(swaps))))
        _settle(folder)
        return replace(edit, swaps=(*edit.swaps, *swaps))


def take_back(folder: Path, log: Path, edit: Edit) -> list[str]:
    """Put back what an edit replaced, its log being open; the files that another hand changed since, left as they are.

    Raises: DataError, and nothing is done, if a later edit that stands is about the same files.
    """
    later = [old for old in edit_log.history(folder) if old.number > edit.number and not old.undone]
    if met := [old.what for old in later if old.files & edit.files]:
        raise DataError(f"{some(met)} came after it, to the same picture; undo that first.")
    (folder / FOLDER / _NEW / str(edit.number)).mkdir(parents=True, exist_ok=True)  # by which `_settle` sees it
    caption_files.log(log, {"undo": edit.number})
    return _settle(folder)


def _settle(folder: Path) -> list[str]:
    """Do what the log says of edits that are not done; the files that were left, as another hand changed them."""
    numbers = _numbers(folder / FOLDER / _NEW)
    if not numbers:
        return []
    edits, left = {edit.number: edit for edit in edit_log.history(folder)}, []
    for number in numbers:
        ready, kept = (folder / FOLDER / part / str(number) for part in (_NEW, _KEPT))
        if edit := edits.get(number):
            swaps = [(swap.file, swap.before, swap.after) for swap in edit.swaps]
            # Undone, the same goes the other way.
            if edit.undone:
                swaps = [(name, after, before) for name, before, after in swaps]
            left += _put_all(folder, kept if edit.undone else ready, swaps)
        shutil.rmtree(ready)
    return left


def _put_all(folder: Path, source: Path, swaps: Iterable[tuple[str, str | None, str | None]]) -> list[str]:
    """Give files (name, sha256 now, sha256 wanted) the content that lies in `source`; those that were left."""
    left = []
    for name, before, after in swaps:
        path, content = folder / name, source / name
        if (present := digest(path)) == after:
            continue
        # Another hand's file, or content that isn't whole.
        if present != before or (after and digest(content) != after):
            left.append(name)
        elif after is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, content.read_bytes(), folder / FOLDER / _THROUGH)
    return left


def _keep(path: Path, kept: Path) -> None:
    """Give the file a second name, which outlasts a power cut; a link's file is copied."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)  # of an edit that a kill kept out of the log
    if path.is_symlink():
        files.write(kept, path.read_bytes())
    else:
        system.link_or_copy(path, kept)
    system.sync_folder(kept.parent)


def _numbers(folder: Path) -> list[int]:
    """The edits that have a folder here, by number."""
    try:
        return sorted(
            int(name) for name in os.listdir(folder) if name.isascii() and name.isdecimal() and len(name) < 10
        )
    except OSError:
        return []
