"""Constant weights put into the base's own weights, and taken out again by copying what was there.

The original of every touched weight is kept; a new sum is computed from the originals, never from what the last one left, so no
error adds up however often weights change. A layer whose adapters and factors are as they were isn't touched. Sums run in float32 in an
order fixed by the adapters' content: the order in the stack never matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.deltas import Delta, Update

Part = tuple[str, float, Update]  # the adapter's key, its factor here, its update


class Folding:
    """The weights of one base by path, and what is folded into each."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.originals: dict[str, Tensor] = {}
        self._room: Tensor | None = None
        self._now: dict[str, tuple[tuple[str, float], ...] | None] = {}  # what is in each touched weight; None: broken off
        self._pairs: dict[str, tuple[tuple[str, ...], Tensor, Tensor]] = {}  # by path: which adapters last, their up (out, R) and down (R, in) side by side

    def base(self, path: str) -> Tensor:
        """The weight as it was loaded."""
        return self.originals.get(path, self.weights[path])

    @torch.no_grad()
    def hold(self, wanted: dict[str, list[Part]]) -> int:
        """Make the base hold exactly these parts; how many weights were touched for it."""
        keys = {path: tuple(sorted((sha256, factor) for sha256, factor, _ in parts)) for path, parts in wanted.items()}
        left = [path for path in self.originals if path not in wanted]
        changed = [path for path, key in keys.items() if self._now.get(path, ()) != key]
        for path in left:
            self._now[path] = None
            self.weights[path].copy_(self.originals[path])
            del self.originals[path], self._now[path]
            self._pairs.pop(path, None)
        for path in changed:
            if path not in self.originals:
                self.originals[path] = self.weights[path].clone()
            self._now[path] = None
            self._put(path, sorted(wanted[path], key=lambda part: part[:2]))
            self._now[path] = keys[path]
        return len(left) + len(changed)

    def _put(self, path: str, parts: list[Part]) -> None:
        """original + sum of factor * update, float32, into the weight; all low-rank ones in one product."""
        weight, original = self.weights[path], self.originals[path]
        low = [(key, factor, update) for key, factor, update in parts if isinstance(update, Delta)]
        dense = [(factor, update) for _, factor, update in parts if not isinstance(update, Delta)]
        in_place = weight.dtype == torch.float32 and weight.is_contiguous() and not dense
        total = weight.flatten(1) if in_place else self._room_for(original).copy_(original).flatten(1)
        if low:
            up, down = self._pair(path, low)
            ranks = torch.tensor([factor for _, factor, update in low for _ in range(update.rank)], device=up.device)
            torch.addmm(original.flatten(1) if in_place else total, up * ranks, down, out=total)
        if in_place:
            return
        for factor, update in dense:
            total += factor * update.dense(original, torch.float32).flatten(1)
        weight.copy_(total.reshape(original.shape))

    def _room_for(self, like: Tensor) -> Tensor:
        """float32 of a tensor's shape, the same memory each time: fresh memory for every layer takes longer than the sums."""
        if self._room is None or self._room.numel() < like.numel() or self._room.device != like.device:
            self._room = torch.empty(like.numel(), device=like.device)
        return self._room[: like.numel()].view(like.shape)

    def _pair(self, path: str, low: list[tuple[str, float, Delta]]) -> tuple[Tensor, Tensor]:
        """Up (out, R) with each update's scale and down (R, in) of low-rank updates side by side, kept while they are the same ones."""
        keys = tuple(key for key, _, _ in low)
        known = self._pairs.get(path)
        if known is None or known[0] != keys:
            device = self.originals[path].device
            up = torch.cat([update.up.flatten(1).to(device, torch.float32) * update.scale for _, _, update in low], 1)
            known = self._pairs[path] = (keys, up, torch.cat([update.down.flatten(1).to(device, torch.float32) for _, _, update in low]))
        return known[1], known[2]
