"""Names claimed atomically: of all who want one, threads, processes and people with a file manager, one gets it and the others the next.

To look whether a name is free and then to write under it loses a file whenever two look at once. A link, or a file made exclusively, can't.
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
    """Remove what lies there under a name of `unfinished` and whose process, one of this machine's, is gone: nobody else would."""
    import psutil

    for path in folder.glob(pattern):
        made_by = re.match(rf"\.new-{_HERE}-(\d{{1,9}})-", path.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def put(made: Path, wanted: Iterable[Path]) -> Path:
    """The first of the wanted names that was free, which the file now has. Raises: OSError where there is no writing."""
    for path in wanted:
        try:
            if system.link(made, path):
                made.unlink()
                return path
            path.open("xb").close()
        except FileExistsError:
            continue
        system.replace(made, path)
        return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(made))


def copied(source: Path, wanted: Iterable[Path], folder: Path) -> Path:
    """A copy of a file under the first free of the wanted names, whole from the moment it is there."""
    with temporary(folder) as made:
        shutil.copyfile(source, made)
        return put(made, wanted)
