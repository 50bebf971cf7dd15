"""Names claimed atomically: of all who want one, one gets it and the others the next.

They may be threads, processes or people with a file manager. To look whether a name is free and then to write under it
loses a file whenever two look at once. A link, or a file made exclusively, can't.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer import system

_HERE = re.sub(r"\W", "", system.host(), flags=re.ASCII)[:40] or "here"


# Names that are free.


def numbered(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """`folder/stem.suffix`, then with -2, -3 ... without end."""
    yield folder / f"{stem}{suffix}"
    number = 1
    while True:
        number += 1
        yield folder / f"{stem}-{number}{suffix}"


@contextmanager
def temporary(folder: Path, suffix: str = ".upload") -> Iterator[Path]:
    """A hidden name in the folder that nobody else has; what still lies there afterwards is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{unfinished()}{uuid.uuid4().hex}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def unfinished() -> str:
    """How the hidden name of something begins that this process makes and then renames; `sweep` knows it by that."""
    return f".new-{_HERE}-{os.getpid()}-"


def sweep(folder: Path, pattern: str = ".new-*") -> None:
    """Remove what lies there under a name of `unfinished` and whose process, one of this machine's, is gone."""
    import psutil

    for path in folder.glob(pattern):
        # What another machine makes in a shared folder is none of ours: its processes can't be seen from here.
        maker = re.match(rf"\.new-{_HERE}-(\d{{1,9}})-", path.name)
        if maker and not psutil.pid_exists(int(maker[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# Claiming a name.


def put(file: Path, wanted: Iterable[Path]) -> Path:
    """The first of the wanted names that was free, which the file or folder now has.

    Raises: FileExistsError where none was; OSError where there is no writing.
    """
    if file.is_dir() and not file.is_symlink():
        return _put_folder(file, wanted)
    for path in wanted:
        # By a link where there are any; else an empty file claims the name, and is replaced.
        try:
            if system.link(file, path):
                file.unlink()
                return path
            path.open("xb").close()
        except FileExistsError:
            continue
        system.replace(file, path)
        return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(file))


def _put_folder(folder: Path, wanted: Iterable[Path]) -> Path:
    """The same for a folder. No system replaces a folder with files in it by another; an empty folder is no loss."""
    for path in wanted:
        # Where letters' case tells no names apart, a folder may be in its own way.
        if os.path.lexists(path) and not (path.is_dir() and os.path.samefile(folder, path)):
            continue
        try:
            system.replace(folder, path)
            return path
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise FileExistsError(errno.EEXIST, "every name is taken", str(folder))


def copied(source: Path, wanted: Iterable[Path], folder: Path) -> Path:
    """A copy of a file under the first free of the wanted names, whole from the moment it is there."""
    with temporary(folder) as copy:
        shutil.copyfile(source, copy)
        return put(copy, wanted)
