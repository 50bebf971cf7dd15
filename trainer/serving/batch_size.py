"""How many pictures of a size are drawn at once: as many as a GPU's memory holds, which is measured by drawing.

The first batch of a size has 2**20 pixels at most (`batching.most`): one picture of 1024 px. What it took says how many
there is room for, and a batch may have twice the pictures of the largest before it, so that no guess is far off. Where
memory runs out all the same, the engine draws the batch in halves, and none of that size is as large again. Without a
GPU it stays at the first batch's: there more pixels at once are drawn no faster, and who waits for one waits for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from trainer.config import StackConfig
from trainer.render import batching

_SHARE = 0.7  # of what is free: LoRAs differ in what they take


class Memory(Protocol):
    """Where pictures are drawn."""

    def free_bytes(self) -> int:
        """What a batch may take now."""

    @contextmanager
    def taken(self) -> Iterator[list[int]]:
        """What the body takes at most, beyond what was held before it, in a list once it is over."""


class GpuMemory:
    """A GPU's."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def free_bytes(self) -> int:
        unused = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return int(torch.cuda.mem_get_info(self.device)[0] + unused)

    @contextmanager
    def taken(self) -> Iterator[list[int]]:
        found: list[int] = []
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        found.append(torch.cuda.max_memory_allocated(self.device) - before)


def memory_of(device: torch.device) -> Memory | None:
    """The memory of a device, if it can be measured."""
    return GpuMemory(device) if device.type == "cuda" else None


class Room:
    """What was learned of one base's pictures. For the thread that draws alone."""

    def __init__(self, memory: Memory | None) -> None:
        self.memory = memory
        # By pixels of a picture: how many the largest batch had, and what each took; and how many were not too many.
        self._largest: dict[int, tuple[int, int]] = {}
        self._limits: dict[int, int] = {}

    def most(self, stack: StackConfig) -> int:
        """How many pictures of this stack's size make a full batch."""
        pixels = stack.width_px * stack.height_px
        if self.memory is None or pixels not in self._largest:
            return min(batching.most(stack), self._limits.get(pixels, batching.most(stack)))
        num_pictures, bytes_each = self._largest[pixels]
        room = int(_SHARE * self.memory.free_bytes()) // max(1, bytes_each)
        most = min(max(batching.most(stack), 2 * num_pictures), room)
        return max(1, min(most, self._limits.get(pixels, most)))

    @contextmanager
    def drawing(self, stack: StackConfig, num_pictures: int) -> Iterator[None]:
        """Learn from a batch that is drawn in the body."""
        if self.memory is None:
            yield
            return
        with self.memory.taken() as taken:
            yield
        pixels = stack.width_px * stack.height_px
        if num_pictures >= self._largest.get(pixels, (0, 0))[0]:
            self._largest[pixels] = num_pictures, taken[0] // num_pictures

    def ran_out(self, stack: StackConfig, num_pictures: int) -> None:
        """So many were too many."""
        self._limits[stack.width_px * stack.height_px] = max(1, num_pictures // 2)
