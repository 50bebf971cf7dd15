"""Files: their digests, and writing one so that it is whole or not there, and over nothing that is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer import system, unique_names
from trainer.errors import ConfigError


def sha256(path: Path, start: int = 0) -> str:
    """sha256 in hexadecimal of a file from byte `start` on, read piece by piece. Raises: OSError."""
    state = hashlib.sha256()
    # Piece by piece: weights are larger than memory.
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


@contextmanager
def replacing(path: Path, through: Path | None = None) -> Iterator[Path]:
    """A name that the body writes a file to, which then takes the place of the file at `path`.

    If the body raises, the old file stays and nothing else is left. Whoever reads finds the old file or the new one,
    whole, also after a kill. After a power cut only what was synced is sure to be there: `write` does that. `through`
    is a name on the same disk that one writer at a time uses; without it, the name is hidden and nobody else's.
    """
    if through is None:
        with unique_names.temporary(path.parent, ".tmp") as temporary:
            yield temporary
            system.replace(temporary, path)
        return
    # The caller's own name: what a killed writer left under it is simply written over.
    try:
        yield through
        system.replace(through, path)
    finally:
        through.unlink(missing_ok=True)


def refuse_over(out: Path, reads: Iterable[Path]) -> None:
    """Raises: ConfigError if writing `out` would replace what is read: one of these files, or a file in a folder."""
    if not out.exists():
        return
    for path in reads:
        if path.exists() and (out.samefile(path) or path.resolve() in out.resolve().parents):
            raise ConfigError(f"--out is {str(out)!r}, a file that is read; name another.")


def write(path: Path, content: bytes, through: Path | None = None) -> None:
    """Replace the file at `path` by one of this content, which outlasts a power cut.

    Raises: OSError, and the old file stays.
    """
    with replacing(path, through) as temporary:
        write_synced(temporary, content)


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """More lines of a file that only grows, on the disk before anything is said of them. Raises: OSError.

    A line that was torn, where the machine went down, swallows none of them.
    """
    # The newline comes first: it ends a line that was torn, and readers pass over an empty line.
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(b"\n" + b"".join(line.encode("utf-8", "replace") + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def write_synced(path: Path, content: bytes) -> None:
    """Write under a name that nobody reads yet, and wait until it is on the disk. Raises: OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()  # out of Python, then out of the system's memory
        os.fsync(file.fileno())
