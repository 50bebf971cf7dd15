"""Frozen weights that wait on the CPU and are brought to the GPU a few layers ahead of their use.

All weights of one part (some layers that are used one after another) lie side by side in pinned memory and come in one
copy, on a stream of its own: while one part computes, the next ones are on their way. The GPU holds a ring of up to
eight parts: the one that computes, those that come, those whose kernels may still be running, and those of the block
that is being computed twice, which its backward then finds. Of FLUX.1's 304 parts a checkpointed step fetches 738 with
a ring of three and 592 with one of eight (counted with this ring; 608 is each part once forwards and once backwards).
Which part comes next is what came next the last time after the same parts, so that backward, activations computed twice
and a UNet's own order need no rule: after the same twelve, which tell a block's forward from its being computed again,
else after the same two. A part that was not foreseen is fetched when it is asked for. One of a 12-billion-parameter
base in bf16 is 24 GB each way, half a second over a fast bus: less than a step at 1024 px.

Diffusers' group offloading takes a block's weights away again after its forward, where a backward still needs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

PART_BYTES = 96 << 20
_FEWEST, _MOST = 3, 8  # parts on the GPU
_RING_BYTES = 960 << 20  # that more than the fewest may take: what eight of FLUX.1's take
_AHEAD = 3  # parts that may be on their way
_LONG, _SHORT = 12, 2  # parts that were asked for last, by which the next part is foreseen
_PINNED_BYTES = 1 << 30  # of one allocation: torch rounds each up to a power of two
_ALIGN = 256  # bytes: where a kernel likes a weight to start


@dataclass
class _Part:
    """Layers whose weights come together."""

    buffer: Tensor  # (bytes,) on the CPU, pinned beside a GPU
    places: dict[nn.Module, tuple[int, torch.dtype, torch.Size, tuple[int, ...]]] = field(default_factory=dict)


class Ring:
    """The weights of these layers, in their order of use, on the CPU; `take` gives a layer's weights on the device."""

    def __init__(
        self, layers: Sequence[nn.Linear | nn.Conv2d], device: torch.device, part_bytes: int = PART_BYTES
    ) -> None:
        self.device, self.num_asked, self.num_foreseen, self.num_fetched = device, 0, 0, 0
        self._parts = _packed(_grouped(layers, part_bytes), device)
        self._of = {layer: number for number, part in enumerate(self._parts) for layer in part.places}
        room = max((len(part.buffer) for part in self._parts), default=0)
        num_slots = slots(room, len(self._parts))
        self._ahead = min(_AHEAD, num_slots - 2)  # beside the part that computes and the part before it
        self._slots = [torch.empty(room, dtype=torch.uint8, device=device) for _ in range(num_slots)]
        self._holds: list[int | None] = [None] * len(self._slots)
        self._used: list[int] = [0] * len(self._slots)  # when each slot was last asked for, counted in changes of part
        self._now, self._count = -1, 0
        self._recent: tuple[int, ...] = (-1,)  # the parts that were asked for last
        # Which part comes after others: at first, the next in order; then what came there last.
        self._next: dict[tuple[int, ...], int] = {
            (first, second): second + 1 for first, second in pairwise(range(-1, len(self._parts) - 1))
        }
        self._copying = _copying_into(self._slots, device) if device.type == "cuda" else None
        self._arrived: list[torch.cuda.Event | None] = [None] * len(self._slots)
        self._done: list[torch.cuda.Event | None] = [None] * len(self._slots)

    def take(self, layer: nn.Module) -> Tensor:
        """The layer's weight on the device, whole until two other parts have been asked for."""
        number = self._of[layer]
        if number != self._now:
            self._turn_to(number)
        slot = self._slots[self._holds.index(number)]
        return _view(slot, *self._parts[number].places[layer])

    def __deepcopy__(self, memo: object) -> Ring:
        return self  # a copied layer is fed by the same ring

    def _turn_to(self, number: int) -> None:
        """Make this the part that computes, and send for the part that followed it last time."""
        # What follows the last parts, for the next time; and when the last part's slot will be free.
        if self._now >= 0:
            # By a long and a short memory: the short memory answers where the long memory has not seen this yet.
            self._next[self._recent] = self._next[self._recent[-_SHORT:]] = number
            if self._copying and self._now in self._holds:  # all that uses the last part has been launched
                self._done[self._holds.index(self._now)] = torch.cuda.current_stream(self.device).record_event()

        # This part, which is there or on its way; or is fetched now.
        self._now, self._count = number, self._count + 1
        self._recent = (*self._recent, number)[-_LONG:]
        self.num_asked += 1
        if number in self._holds:
            self.num_foreseen += 1
        else:
            self._fetch(number)
        slot = self._holds.index(number)
        self._used[slot] = self._count
        if arrived := self._arrived[slot]:  # kernels wait for the copy on the GPU; the program goes on
            torch.cuda.current_stream(self.device).wait_event(arrived)

        # Those after it; what is here already is kept for them.
        recent = self._recent
        for _ in range(self._ahead):
            coming = self._next.get(recent, self._next.get(recent[-_SHORT:]))
            if coming is None:
                break
            if coming in self._holds:
                self._used[self._holds.index(coming)] = self._count
            else:
                self._fetch(coming)
            recent = (*recent, coming)[-_LONG:]

    def _fetch(self, number: int) -> None:
        """Copy a part into the slot that was left the longest ago; the copy waits for what still computes there."""
        # Never where the part lies that computes now.
        free = [slot for slot, held in enumerate(self._holds) if held != self._now or held is None]
        last_use = [-1 if held is None else used for held, used in zip(self._holds, self._used, strict=True)]
        slot = min(free or range(len(self._slots)), key=last_use.__getitem__)
        buffer = self._parts[number].buffer
        self._holds[slot], self._used[slot] = number, self._count
        self.num_fetched += 1
        if self._copying is None:
            self._slots[slot][: len(buffer)].copy_(buffer)
            return
        with torch.cuda.stream(self._copying):
            if done := self._done[slot]:
                self._copying.wait_event(done)
            self._slots[slot][: len(buffer)].copy_(buffer, non_blocking=True)
            self._arrived[slot] = self._copying.record_event()


def _grouped(layers: Sequence[nn.Linear | nn.Conv2d], part_bytes: int) -> list[list[nn.Linear | nn.Conv2d]]:
    """Neighbours together, up to so many bytes; a larger layer alone."""
    groups: list[list[nn.Linear | nn.Conv2d]] = []
    room = 0
    for layer in layers:
        if layer.weight.nbytes > room or not groups:
            groups.append([])
            room = part_bytes
        groups[-1].append(layer)
        room -= layer.weight.nbytes
    return groups


def slots(room: int, num_parts: int) -> int:
    """How many parts of so many bytes at most the device holds."""
    return min(num_parts, max(_FEWEST, min(_MOST, _RING_BYTES // max(room, 1))))


def ring_bytes(sizes: Sequence[int]) -> int:
    """What a ring for layers of these bytes takes on the device, about."""
    room = max(PART_BYTES, *sizes)
    return room * slots(room, -(-sum(sizes) // room))


def _copying_into(buffers: list[Tensor], device: torch.device) -> torch.cuda.Stream:
    """The stream of the copies. Their memory may still be read by kernels of whoever had it before, and must not be
    given away while a copy is under way.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    for buffer in buffers:
        buffer.record_stream(stream)
    return stream


def _packed(groups: list[list[nn.Linear | nn.Conv2d]], device: torch.device) -> list[_Part]:
    """Each group's weights in one buffer; each layer's own weight is then a view of it."""
    starts: list[list[int]] = []
    sizes = []
    for layers in groups:
        ends = [*accumulate((-(-layer.weight.nbytes // _ALIGN) * _ALIGN for layer in layers), initial=0)]
        starts.append(ends[:-1])
        sizes.append(ends[-1])
    parts = []
    for layers, places, buffer in zip(groups, starts, _buffers(sizes, device.type == "cuda"), strict=True):
        part = _Part(buffer)
        for layer, start in zip(layers, places, strict=True):
            weight = layer.weight.data
            part.places[layer] = (start, weight.dtype, weight.shape, weight.stride())
            layer.weight.data = _view(part.buffer, *part.places[layer]).copy_(weight)
        parts.append(part)
    return parts


def _buffers(sizes: list[int], pinned: bool) -> Iterator[Tensor]:
    """Memory of these sizes on the CPU, one after another out of large pieces: small ones would each be rounded up."""
    left, piece = sum(sizes), torch.empty(0, dtype=torch.uint8)
    for size in sizes:
        if size > len(piece):
            largest = min(_PINNED_BYTES, 1 << (left.bit_length() - 1))  # power of two that is needed whole
            piece = torch.empty(max(size, largest), dtype=torch.uint8, pin_memory=pinned)
        yield piece[:size]
        piece, left = piece[size:], left - size


def _view(buffer: Tensor, start: int, kind: torch.dtype, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """A weight in a buffer of bytes, in the order it had (channels-last for convolutions)."""
    return buffer[start : start + shape.numel() * kind.itemsize].view(kind).as_strided(shape, stride)
