"""The low-rank updates of an adapter side by side, layers of one shape together.

What is folded then is a few large products, not hundreds of small ones. Where ranks differ among layers of a shape,
those between two powers of two share the largest of them, filled up with zeros, which add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from trainer.deltas import Delta, Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pack:
    """Low-rank updates of layers of one shape: scale * up @ down each, a convolution's kernel laid flat."""

    paths: tuple[str, ...]  # of L layers
    up: Tensor  # (L, out, r)
    down: Tensor  # (L, r, in)
    scales: tuple[float, ...]

    @property
    def num_bytes(self) -> int:
        return int(self.up.nbytes + self.down.nbytes)

    def to(self, device: torch.device) -> Pack:
        """The same on a device; nothing is copied where it is there."""
        return Pack(self.paths, self.up.to(device), self.down.to(device), self.scales)


@dataclass(frozen=True, eq=False)
class Packed:
    """What an adapter does to one component of a pipeline."""

    packs: tuple[Pack, ...] = ()
    others: dict[str, Update] = field(default_factory=dict)  # by path: updates that aren't low-rank


def pack(updates: dict[str, Update]) -> tuple[dict[str, Update], dict[str, Packed]]:
    """The updates as views of the packs, each as it was, and what each component gets."""
    # By component, shape, dtype, device and the powers of two that the rank lies between.
    kinds: dict[tuple[Any, ...], dict[str, Delta]] = {}
    others: dict[str, dict[str, Update]] = {}
    for path, update in updates.items():
        component = path.partition(".")[0]
        if isinstance(update, Delta):
            down, up = update.down, update.up
            kind = (component, len(up), down[0].numel(), up.dtype, down.dtype, down.device, update.rank.bit_length())
            kinds.setdefault(kind, {})[path] = update
        else:
            others.setdefault(component, {})[path] = update

    # What was a tensor for each layer becomes views of a tensor for each kind, so that nothing is held twice.
    own, packs = dict(updates), dict[str, list[Pack]]()
    for kind, deltas in kinds.items():
        packed = _side_by_side(deltas)
        packs.setdefault(kind[0], []).append(packed)
        own |= views(deltas, packed)
    return own, {
        component: Packed(tuple(packs.get(component, ())), others.get(component, {}))
        for component in {**packs, **others}
    }


def _side_by_side(by_path: dict[str, Delta]) -> Pack:
    """One pack of updates whose layers have one shape."""
    deltas = list(by_path.values())
    ranks = [delta.rank for delta in deltas]
    most, first = max(ranks), deltas[0]
    if min(ranks) == most:
        up = torch.cat([delta.up.flatten(1) for delta in deltas]).view(len(deltas), -1, most)
        down = torch.cat([delta.down.flatten(1) for delta in deltas]).view(len(deltas), most, -1)
    else:
        up = first.up.new_zeros(len(deltas), len(first.up), most)
        down = first.down.new_zeros(len(deltas), most, first.down[0].numel())
        for number, delta in enumerate(deltas):
            up[number, :, : delta.rank] = delta.up.flatten(1)
            down[number, : delta.rank] = delta.down.flatten(1)
    return Pack(tuple(by_path), up, down, tuple(delta.scale for delta in deltas))


def views(by_path: dict[str, Delta], packed: Pack) -> dict[str, Update]:
    """The updates of a pack in their own shapes, without memory of their own; `by_path` has them in its order."""
    return {
        path: Delta(down[: delta.rank].view(delta.down.shape), up[:, : delta.rank].view(delta.up.shape), delta.scale)
        for (path, delta), up, down in zip(by_path.items(), packed.up.unbind(), packed.down.unbind(), strict=True)
    }
