"""How much each key has asked for: requests in the last minute, pictures today (UTC).

Requests are counted by a bucket that holds a minute's worth and fills up again evenly. The day's pictures are written
to a file now and then, so that a new start gives nobody a new day; a disk that is full loses the count, not a picture.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from trainer import files
from trainer.serving import api_error
from trainer.serving.keys import Key

_MINUTE_S, _DAY_S = 60.0, 86_400.0
_MAX_FILE_BYTES = 16 << 20


class Quotas:
    """Counts of one server. For any thread."""

    def __init__(self, file: Path, now: Callable[[], float] = time.time) -> None:
        """`now` is the time in seconds since 1970."""
        self.file, self.now = file, now
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, and when that was
        self._day = ""
        self._pictures: Counter[str] = Counter()
        self._written: dict[str, int] = {}
        self._lock = threading.Lock()
        self._begin_day(self._read())

    def ask(self, key: Key) -> None:
        """Count a request. Raises: ApiError 429."""
        with self._lock:
            left, then = self._buckets.get(key.name, (float(key.requests_per_minute), self.now()))
            rate = key.requests_per_minute / _MINUTE_S
            left = min(float(key.requests_per_minute), left + max(0.0, self.now() - then) * rate)
            if left < 1:
                raise api_error.too_many(
                    f"this key may ask {key.requests_per_minute} times a minute; wait a moment.",
                    "rate_limit_exceeded",
                    (1 - left) / rate,
                )
            self._buckets[key.name] = (left - 1, self.now())

    def take(self, key: Key, num_pictures: int) -> str:
        """Count pictures of today, and say which day that is. Raises: ApiError 429 if the key may not have as many."""
        with self._lock:
            self._begin_day({})
            had = self._pictures[key.name]
            if had + num_pictures > key.pictures_per_day:
                raise api_error.too_many(
                    f"this key may have {key.pictures_per_day} pictures a day and had {had}; {num_pictures} more are "
                    f"too many.",
                    "insufficient_quota",
                    _DAY_S - self.now() % _DAY_S,
                )
            self._pictures[key.name] += num_pictures
            return self._day

    def give_back(self, key: Key, num_pictures: int, day: str) -> None:
        """Pictures that were counted on a day and not drawn; another day's count is not theirs."""
        with self._lock:
            if day == self._day:
                self._pictures[key.name] = max(0, self._pictures[key.name] - num_pictures)

    def save(self) -> None:
        """Write today's counts, if there are new counts. Raises: OSError."""
        with self._lock:
            counts = dict(self._pictures)
            if counts == self._written:
                return
            text = json.dumps({"day": self._day, "pictures": counts})
        with files.replacing(self.file) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
        self._written = counts

    def _begin_day(self, before: dict[str, int]) -> None:
        day = datetime.fromtimestamp(self.now(), timezone.utc).date().isoformat()
        if day != self._day:
            self._day, self._pictures = day, Counter(before)

    def _read(self) -> dict[str, int]:
        """Today's counts as a server before this left them."""
        try:
            if self.file.stat().st_size > _MAX_FILE_BYTES:
                return {}
            values = json.loads(self.file.read_text(encoding="utf-8"))
            today = datetime.fromtimestamp(self.now(), timezone.utc).date().isoformat()
            counts = values["pictures"] if values["day"] == today else {}
            return {str(name): int(count) for name, count in counts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}
