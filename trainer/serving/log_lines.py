"""The server's log: a JSON object a line, without prompts unless they are asked for, and never with a key."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any, Protocol

from trainer import printing


class Stream(Protocol):
    """Where a log is written: a text file, or what stands for one."""

    def write(self, text: str, /) -> Any:
        """Take a line."""

    def flush(self) -> Any:
        """Hold no line back."""


class Log:
    """Writes lines from any thread; a place that takes no more is no reason to stop."""

    def __init__(self, prompts: bool = False, stream: Stream | None = None) -> None:
        self.prompts = prompts
        self._stream = stream
        self._lock = threading.Lock()
        self.num_lost = 0

    def write(self, event: str, **facts: str | float | int | bool | list[float] | None) -> None:
        """A line of an event with these facts."""
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        known = {name: printing.whole(value) if isinstance(value, str) else value for name, value in facts.items()}
        line = json.dumps({"time": stamp, "event": event, **known})
        with self._lock:
            try:
                stream = self._stream or sys.stderr
                stream.write(line + "\n")
                stream.flush()
            except (OSError, ValueError):  # a full disk, or a pipe whose reader is gone
                self.num_lost += 1
