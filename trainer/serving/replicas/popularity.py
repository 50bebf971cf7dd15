"""Which of a stack's LoRAs is asked for least: the LoRA that decides which replica draws it.

A popular LoRA is in every replica's memory anyway; the rarest is the one whose reading is worth saving (docs/scale.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

_MOST_ASKED = 100_000  # then all counts are halved, so that what was popular once is forgotten


class Popularity:
    """Counts of LoRAs; not for two threads at once."""

    def __init__(self, most_asked: int = _MOST_ASKED) -> None:
        self.most_asked = most_asked
        self._counts: Counter[str] = Counter()
        self._total = 0

    def rarest(self, loras: Sequence[str]) -> str:
        """Count a stack's LoRAs and give back the rarest, the same of those alike; empty if there is none."""
        self._counts.update(loras)
        self._total += len(loras)
        rarest = min(loras, key=lambda lora: (self._counts[lora], lora), default="")
        if self._total > self.most_asked:
            halved = {lora: count // 2 for lora, count in self._counts.items()}
            self._counts = +Counter(halved)
            self._total = sum(self._counts.values())
        return rarest
