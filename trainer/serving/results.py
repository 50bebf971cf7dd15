"""Pictures that were asked for as a `url`: kept in memory for a while under a name that nobody can guess."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict


class Results:
    """Pictures by token; the oldest go first where they are too many. For any thread."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def put(self, png: bytes) -> str:
        """The token under which a picture is from now on."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._kept[token] = (time.monotonic() + self.seconds, png)
            self.num_bytes += len(png)
            self._forget()
        return token

    def get(self, token: str) -> bytes | None:
        """The picture of a token; None if there is none, or none any more."""
        with self._lock:
            self._forget()
            return self._kept.get(token, (0.0, None))[1]

    def _forget(self) -> None:
        """Let go of what is too old, and of the oldest where all are too many."""
        now = time.monotonic()
        while self._kept:
            token, (until, png) = next(iter(self._kept.items()))
            if until > now and (self.num_bytes <= self.most_bytes or len(self._kept) == 1):
                return
            del self._kept[token]
            self.num_bytes -= len(png)
