"""What batches took here, and by that, whether a few pictures with different LoRAs are drawn faster together or apart.

LoRAs of different stacks run beside the base in each step, which costs a batch as much whatever its size; a picture
alone has its own folded into the base once. So two or three pictures are often drawn faster one by one, sixteen hardly
ever. Where that turns depends on the base, the size and the device: it is measured, on the pictures that are wanted.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

_REMEMBERED = 5  # batches of one size and number of pictures
_RETRY = 32  # so often drawn apart, a number of pictures is tried together once more
_CLEARLY = 1.05

What = tuple[int, int, str]  # of pictures: width and height in pixels, and the mode


@dataclass
class _Times:
    """Seconds of a batch, divided by its steps."""

    each: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    num_avoided: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.each)


class BatchTimes:
    """What was learned of one base's pictures. For the thread that draws alone."""

    def __init__(self) -> None:
        self._times: dict[tuple[What, int], _Times] = {}

    def drawn(self, what: What, num_steps: int, num_pictures: int, seconds: float) -> None:
        """A batch of pictures whose stacks differ was drawn, or a picture alone."""
        self._times.setdefault((what, num_pictures), _Times()).each.append(seconds / max(1, num_steps))

    def are_faster_apart(self, what: What, num_pictures: int) -> bool:
        """Whether so many pictures whose stacks differ are drawn faster one by one. False while that isn't known."""
        # What doesn't pay for more pictures, among which the cost of a batch is shared, doesn't for fewer.
        known = min((num for of, num in self._times if of == what and num >= num_pictures > 1), default=0)
        alone = self._times.get((what, 1))
        if alone is None or not known:
            return False
        together = self._times[what, known]
        if together.median_s <= _CLEARLY * known * alone.median_s:
            return False
        # What was measured once on a busy machine doesn't hold for ever.
        together.num_avoided += 1
        if together.num_avoided > _RETRY:
            del self._times[what, known]
            return False
        return True
