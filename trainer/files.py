"""Files: their digests, and writing one so that it is whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256(path: Path, start: int = 0) -> str:
    """sha256 in hexadecimal of a file from byte `start` on, read piece by piece. Raises: OSError."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()
