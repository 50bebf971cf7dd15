"""Who draws which chunk: a worker that holds its base, and of those the chunk whose LoRAs it already has.

Loading a base takes seconds to minutes, a LoRA a fraction of a second, so the base decides first. A worker without work
for its base takes the base that has the most chunks waiting for each worker that holds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trainer.config import StackConfig

Base = tuple[str, str]  # name and family
_REMEMBERED = 256  # LoRAs of one worker; what it really keeps is its own matter


@dataclass(frozen=True)
class Wanted:
    """What drawing a chunk needs."""

    base: Base
    adapters: frozenset[str]  # sha256 of their tensors

    @classmethod
    def of(cls, stacks: Iterable[StackConfig]) -> Wanted:
        """What these need, which have one base."""
        listed = list(stacks)
        adapters = frozenset(adapter.sha256 for stack in listed for adapter in stack.adapters if adapter.enabled)
        return cls((listed[0].base, listed[0].family), adapters)


@dataclass(eq=False)
class Holding:
    """What a worker holds, as far as it is known from what it was given."""

    base: Base | None = None
    adapters: dict[str, None] = field(default_factory=dict)  # oldest first
    lacking: set[Base] = field(default_factory=set)  # bases that it hasn't

    def take(self, wanted: Wanted) -> None:
        """Note that it was given this to draw."""
        if wanted.base != self.base:
            self.base, self.adapters = wanted.base, {}
        for sha256 in sorted(wanted.adapters):
            self.adapters.pop(sha256, None)
            self.adapters[sha256] = None
        while len(self.adapters) > _REMEMBERED:
            del self.adapters[next(iter(self.adapters))]


def choose(here: Holding, waiting: Sequence[Wanted | None], everyone: Iterable[Holding]) -> int | None:
    """The place of the chunk that this worker should draw next; None if there is none for it.

    `waiting` has None for chunks that it can't draw.
    """
    possible = {
        place: wanted for place, wanted in enumerate(waiting) if wanted is not None and wanted.base not in here.lacking
    }
    if not possible:
        return None
    base = here.base
    if all(wanted.base != base for wanted in possible.values()):
        held = Counter(other.base for other in everyone if other is not here)
        chunks = Counter(wanted.base for wanted in possible.values())
        base = max(chunks, key=lambda base: chunks[base] / (1 + held[base]))
    with_base = [place for place, wanted in possible.items() if wanted.base == base]
    return max(with_base, key=lambda place: (_gain(here, possible[place]), -place))


def _gain(here: Holding, wanted: Wanted) -> int:
    """LoRAs that it has, less those that it would have to read."""
    if here.base != wanted.base:
        return 0
    there = len(wanted.adapters & here.adapters.keys())
    return there - (len(wanted.adapters) - there)
