"""How long pictures wait for the batch that is drawn when they come: what is paid for joining the next one.

diffusers' pipelines take no picture in the middle of a call. Were one to join at the next step, it would wait for a
step instead; so this says what that could spare at most.
"""

from __future__ import annotations

from collections import deque

_MOST_BATCHES = 256  # remembered; who waits for more than so many is counted from the oldest


class Joining:
    """When the last batches were drawn, by time.monotonic. For the thread that draws alone."""

    def __init__(self) -> None:
        self._batches: deque[tuple[float, float]] = deque(maxlen=_MOST_BATCHES)

    def drawn(self, began: float, ended: float) -> None:
        """A batch was drawn from then to then."""
        self._batches.append((began, ended))

    def waited_s(self, came: float) -> float:
        """How long a picture that came then waited for the batch that was drawn; 0 if none was."""
        ended = next((ended for began, ended in self._batches if began <= came < ended), None)
        if ended is None and self._batches and came < self._batches[0][0]:
            ended = self._batches[0][1]
        return 0.0 if ended is None else ended - came
