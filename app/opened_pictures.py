"""Which pictures open, remembered by file, time and size, and looked at for a moment each time it is asked.

To know whether a picture opens it must be decoded whole, which takes seconds for a large set; the page asks again
and again while somebody types, so each question decodes as many as fit into its time and says how many are left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.texts import say
from trainer.data.opening import open_whole
from trainer.errors import DataError

_MOST = 20_000  # remembered; the eldest are forgotten first


@dataclass
class OpenedPictures:
    """What was found so far; one a server."""

    _reasons: dict[tuple[Path, int, int], str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reasons(self, paths: Sequence[Path], budget_s: float) -> tuple[dict[Path, str], int]:
        """Why each picture doesn't open, "" for one that does, and how many are not looked at yet."""
        until, found, left = time.monotonic() + budget_s, {}, 0
        for path in paths:
            try:
                status = path.stat()
            except OSError as error:
                found[path] = say("problems.cannot_read", reason=error.strerror)
                continue
            key = (path, status.st_mtime_ns, status.st_size)
            reason = self._reasons.get(key)
            if reason is None and time.monotonic() < until:
                reason = self._remember(key, _reason(path))
            # Out of time: the rest is counted, and asked for again.
            if reason is None:
                left += 1
            else:
                found[path] = reason
        return found, left

    def _remember(self, key: tuple[Path, int, int], reason: str) -> str:
        with self._lock:
            while len(self._reasons) >= _MOST:
                self._reasons.pop(next(iter(self._reasons)))
            self._reasons[key] = reason
        return reason


def _reason(path: Path) -> str:
    try:
        open_whole(path)
    except DataError as error:
        return str(error)
    except OSError as error:
        return say("problems.cannot_read", reason=error.strerror)
    return ""
