"""Names claimed atomically: of all who want one, threads, processes and people with a file manager, one gets it and the others the next.

To look whether a name is free and then to write under it loses a file whenever two look at once. A link, or a file made exclusively, can't.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EXDEV, getattr(errno, "ENOTSUP", 95), getattr(errno, "EOPNOTSUPP", 95))


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
    path = folder / f".{uuid.uuid4().hex}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def put(made: Path, wanted: Iterable[Path]) -> Path:
    """The first of the wanted names that was free, which the file now has. Raises: OSError where there is no writing."""
    for path in wanted:
        try:
            os.link(made, path)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            os.replace(made, path)
            return path
        made.unlink()
        return path
    raise FileExistsError(errno.EEXIST, "every name is taken", str(made))


def copied(source: Path, wanted: Iterable[Path], folder: Path) -> Path:
    """A copy of a file under the first free of the wanted names, whole from the moment it is there."""
    with temporary(folder) as made:
        shutil.copyfile(source, made)
        return put(made, wanted)
