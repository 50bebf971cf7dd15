"""How long pictures wait for the batch that is drawn when they come: what is paid for joining the next batch.

diffusers' pipelines take no picture in the middle of a call. Were one to join at the next step, it would wait for a
step instead; so this says what that could spare at most.
"""

from __future__ import annotations

from collections import deque

_MOST_BATCHES = 256  # remembered; who waits for more than so many is counted from the oldest


class Joining:
    """When the last batches ended, by time.monotonic. For the thread that draws alone."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_MOST_BATCHES)

    def drawn(self, ended: float) -> None:
        """A batch was drawn, which ended then."""
        self._ends.append(ended)

    def waited_s(self, came: float) -> float:
        """How long a picture that came then waited for the first batch that ended without it; 0 if there was none."""
        return next((ended - came for ended in self._ends if ended > came), 0.0)
