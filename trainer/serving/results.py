"""Pictures that were asked for as a `url`: kept in memory for a while under a name that nobody can guess."""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, OrderedDict


class Results:
    """Pictures by token. Where they are too many, the oldest go first of the key that has most. For any thread."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self.most_bytes, self.seconds = most_bytes, seconds
        self._kept: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()  # until when, and whose
        self._tokens: dict[str, OrderedDict[str, None]] = {}  # by key, the oldest first
        self._bytes: Counter[str] = Counter()  # by key
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of all pictures that are kept."""
        with self._lock:
            return self._bytes.total()

    def put(self, png: bytes, key_name: str) -> str:
        """The token under which a key's picture is from now on."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._kept[token] = (time.monotonic() + self.seconds, key_name, png)
            self._tokens.setdefault(key_name, OrderedDict())[token] = None
            self._bytes[key_name] += len(png)
            self._forget()
        return token

    def get(self, token: str) -> bytes | None:
        """The picture of a token; None if there is none, or none any more."""
        with self._lock:
            self._forget()
            return self._kept[token][2] if token in self._kept else None

    def _forget(self) -> None:
        """Let go of what is too old, and where all are too many, of what the key with most has kept longest."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] <= now:
            self._drop(next(iter(self._kept)))
        while self._bytes.total() > self.most_bytes and len(self._kept) > 1:
            newest = next(reversed(self._kept))  # which stays: nobody could have fetched it
            old = [name for name, tokens in self._tokens.items() if next(iter(tokens)) != newest]
            self._drop(next(iter(self._tokens[max(old, key=lambda name: self._bytes[name])])))

    def _drop(self, token: str) -> None:
        _, name, png = self._kept.pop(token)
        self._bytes[name] -= len(png)
        del self._tokens[name][token]
        if not self._tokens[name]:
            del self._tokens[name], self._bytes[name]
