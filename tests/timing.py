"""How long something takes, whatever else the machine does meanwhile."""

from __future__ import annotations

import re
import time

_QUIET_S = 0.026  # a known piece of work takes about so long on two quiet cores


def since(start: float) -> float:
    """Seconds of this thread since `start`, a `time.thread_time()`, as a machine with nothing else to do takes them.

    A busy neighbour makes a thread's own seconds longer too: it shares the core's caches.
    """
    taken = time.thread_time() - start
    return taken / max(1.0, min(_known_work() for _ in range(3)) / _QUIET_S)


def slowness() -> float:
    """How many times longer a known piece of work takes just now than on a machine with nothing else to do."""
    start = time.monotonic()
    for _ in range(3):
        _known_work()
    return max(1.0, (time.monotonic() - start) / 3 / _QUIET_S)


def _known_work() -> float:
    start, total = time.thread_time(), 0
    for number in range(200_000):
        total += number * number % 7
    re.sub("a+b", "c", "aab" * 20_000)
    return time.thread_time() - start
