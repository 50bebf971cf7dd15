"""Files on their way to workers: their hashes, and their content in the cluster's memory.

Imported only once `ray_access` has said how Ray may be used.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import ray

from trainer import files, last_used
from trainer.errors import RunError

_SENT_BYTES = 1 << 30  # of files that are kept in the cluster's memory for whoever needs them next


class SentFiles:
    """What was sent from this process. For any thread."""

    def __init__(self) -> None:
        self._digests: dict[tuple[Path, int, int], str] = {}  # by file, its size and time
        self._sent = last_used.kept(_SENT_BYTES, lambda sent: sent[1])  # references and sizes by sha256
        self._lock = threading.Lock()  # nothing is read under it

    def digest(self, path: Path) -> str:
        """sha256 of a file, read once while it stays as it is. Raises: OSError."""
        status = path.stat()
        key = (path, status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = files.sha256(path)
        return self._digests[key]

    def content(self, path: Path, sha256: str) -> Any:
        """A reference to a file's content in the cluster's memory. Raises: RunError if it can't be read."""
        with self._lock:
            sent = self._sent.get(sha256)
        if sent is None:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise RunError(f"{str(path)[:200]!r} can't be read: {error.strerror}.") from None
            sent = (ray.put(content), len(content))
            with self._lock:
                self._sent[sha256] = sent
        return sent[0]
