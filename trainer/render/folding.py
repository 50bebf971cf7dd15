"""Constant weights put into the base's own weights, and taken out again by copying what was there.

The original of every touched weight is kept; a new sum is computed from the originals, never from what the last one
left, so no error adds up however often weights change. Layers whose adapters and weights are as they were aren't
touched. Sums run in float32 in an order fixed by the adapters' content: the order in the stack never matters. Layers of
one shape are summed together, as `fold_groups` has planned for this stack.

A layer of a quantised base is summed from its weight as the base's files have it and quantised anew (`requantising`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from cachetools import LRUCache
from torch import Tensor

from trainer.deltas import Update
from trainer.render import fold_groups, requantising
from trainer.render.fold_groups import Chunk, Layout, Name, Share
from trainer.render.on_device import OnDevice
from trainer.render.packing import Pack
from trainer.render.requantising import Narrow

Part = tuple[str, float, Update]  # the adapter's key, its factor here, its update
# float32 that one sum of several layers takes. A GPU wants few and large products, a CPU what stays in its cache: a
# change on a quarter of SDXL's attention layers takes 299 ms of one core with 1 MiB, where larger layers are summed one
# by one, and 358 with 8; Imprimatura's small ones 9.3 ms one by one and 6.5 with 1 MiB.
_ROOM_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
_MAX_LAYOUTS = 64


class Folding:
    """The weights of one base by path, and what is folded into each.

    Those of quantised layers are in `narrow`, all others in `weights`.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], narrow: Mapping[str, Narrow] | None = None,
        is_pinned: Callable[[str], bool] = lambda key: False,
    ) -> None:  # fmt: skip
        """`is_pinned` says of an adapter's key whether it always stays where the weights are."""
        self.weights, self.narrow = weights, narrow or {}
        self.originals: dict[str, Tensor] = {}
        self.device = next((weight.device for weight in weights.values()), torch.device("cpu"))
        self._kinds: dict[str, object] = {path: (weight.shape, weight.dtype) for path, weight in weights.items()}
        self._kinds |= {path: (layer.shape, layer.dtype, "narrow") for path, layer in self.narrow.items()}
        self._now: dict[Name, tuple[float, ...]] = {}  # the weights of each chunk that is in; what was broken off isn't
        self._layouts: LRUCache[tuple[object, ...], Layout] = LRUCache(_MAX_LAYOUTS)

        # Memory for sums, and views of it by their number and shape.
        self._room = torch.empty(0, device=self.device)
        self._views: dict[tuple[int, torch.Size], tuple[Tensor, list[Tensor]]] = {}
        self.on_device = OnDevice(self.device, is_pinned)

    def base(self, path: str) -> Tensor:
        """The weight as it was loaded; a quantised weight that nothing is folded into as it is computed with."""
        if path in self.narrow and path not in self.originals:
            return self.narrow[path].weight()
        original = self.originals.get(path)
        return self.weights[path] if original is None else original.to(self.device)

    def weight(self, path: str) -> Tensor:
        """The weight as it is now; a quantised weight as it is computed with."""
        return self.narrow[path].weight() if path in self.narrow else self.weights[path]

    @torch.no_grad()
    def hold(self, shares: Sequence[Share]) -> int:
        """Make the base hold exactly these; how many weights were touched for it."""
        # One order whatever the stack's, since float sums depend on it.
        shares = sorted(shares, key=lambda share: (*share.name, share.weight))
        plan = self._layout(shares)

        # What isn't as it should be.
        wanted = {chunk.name: tuple([shares[number].weight for number in chunk.shares]) for chunk in plan.chunks}
        # What is about to be touched is struck off first, so that a fold that breaks off is not taken for done.
        self._now = {name: weights for name, weights in self._now.items() if wanted.get(name) == weights}
        changed = [chunk for chunk in plan.chunks if chunk.name not in self._now]
        left = [path for path in self.originals if path not in plan.paths]

        self._put_back(left)
        if changed:
            # In float64 until all is multiplied; then one transfer for all layers.
            weights = torch.tensor([share.weight for share in shares], dtype=torch.float64)
            factors = (weights[plan.owners] * plan.fixed).float().to(self.device)
            kept = self.on_device if self.on_device.is_apart else None
            packs = [kept.packs(*share.name[:2], share.packed) if kept else share.packed.packs for share in shares]
        for chunk in changed:
            self._keep([path for path in chunk.paths if path not in self.originals])
            self._put(chunk, packs, factors[chunk.start :], shares)
            self._now[chunk.name] = wanted[chunk.name]
        return len(left) + sum(len(chunk.paths) for chunk in changed)

    def _layout(self, shares: Sequence[Share]) -> Layout:
        key = tuple(share.name for share in shares)
        if key not in self._layouts:
            self._layouts[key] = fold_groups.make(
                shares, self._kinds, _ROOM_BYTES.get(self.device.type, _ROOM_BYTES["cpu"])
            )
        return self._layouts[key]

    def _keep(self, paths: list[str]) -> None:
        """Keep the originals of weights of one shape, in one piece."""
        for path in paths if paths and paths[0] in self.narrow else ():
            self.originals[path] = self.narrow[path].keep()
        if paths and paths[0] not in self.narrow:
            kept = torch.stack([self.weights[path] for path in paths])
            self.originals |= dict(zip(paths, kept.unbind(), strict=True))

    def _put_back(self, paths: list[str]) -> None:
        """Copy the originals into the weights, and keep them no longer."""
        plain = [path for path in paths if path not in self.narrow]
        if plain:
            _copy([self.weights[path] for path in plain], [self.originals[path] for path in plain])
        for path in paths:
            if path in self.narrow:
                self.narrow[path].put_back()
            del self.originals[path]

    def _put(self, chunk: Chunk, packs: list[tuple[Pack, ...]], factors: Tensor, shares: Sequence[Share]) -> None:
        """Write original + sum of weight * update, in float32, into a chunk's weights; low ranks in one product."""
        originals = [self.originals[path] for path in chunk.paths]
        first = chunk.paths[0]
        pair = _pair(chunk, packs, factors) if chunk.low else None
        weight = self.weights.get(first)

        # One large float32 weight takes its sum in place.
        if (
            pair
            and weight is not None
            and len(originals) == 1
            and not chunk.others
            and weight.dtype == torch.float32
            and weight.is_contiguous()
        ):
            torch.addmm(originals[0].flatten(1), pair[0][0], pair[1][0], out=weight.flatten(1))
            return

        # All others are summed in float32 beside the weights, then rounded.
        room, sums = self._room_for(len(originals), originals[0].shape)
        _copy(sums, originals)
        total = room.flatten(2)
        if pair and len(originals) == 1:
            total[0].addmm_(pair[0][0], pair[1][0])
        elif pair:
            total.baddbmm_(*pair)
        for number, factor, update in chunk.others:
            total[0] += (
                shares[number].weight * factor * update.dense(originals[0].to(self.device), torch.float32).flatten(1)
            )

        if weight is None:
            self._put_narrow([self.narrow[path] for path in chunk.paths], room.to(originals[0].dtype))
        else:
            _copy([self.weights[path] for path in chunk.paths], sums)

    def _put_narrow(self, layers: list[Narrow], weights: Tensor) -> None:
        """Quantise weights (L, out, in) into these layers."""
        if pairs := requantising.at_once(layers, weights):
            _copy(*pairs)
            return
        for layer, weight in zip(layers, weights.unbind(), strict=True):
            layer.put(weight)

    def _room_for(self, count: int, shape: torch.Size) -> tuple[Tensor, list[Tensor]]:
        """A float32 tensor of (count, *shape), and a view of each of the `count`.

        It is the same memory each time: fresh memory for every layer takes longer than the sums.
        """
        size = count * shape.numel()
        if self._room.numel() < size:
            self._room, self._views = torch.empty(size, device=self.device), {}
        if (count, shape) not in self._views:
            room = self._room[:size].view(count, *shape)
            self._views[count, shape] = room, list(room.unbind())
        return self._views[count, shape]


def _pair(chunk: Chunk, packs: list[tuple[Pack, ...]], factors: Tensor) -> tuple[Tensor, Tensor]:
    """Up (L, out, R) and down (L, R, in) of a chunk's low-rank updates side by side, in float32.

    Each rank's factor is in up.
    """
    count = len(chunk.paths)
    scales = factors[: count * chunk.num_ranks].view(count, 1, chunk.num_ranks)
    ups, downs, start = [], [], 0
    for low in chunk.low:
        pack = packs[low.share][low.pack]
        end = start + pack.up.shape[2]
        # Scaled on the side that is (out, r): the factors broadcast over its last axis without being laid out anew.
        ups.append((pack.up[low.rows] * scales[..., start:end]).float())
        downs.append(pack.down[low.rows].float())
        start = end
    return (ups[0], downs[0]) if len(ups) == 1 else (torch.cat(ups, 2), torch.cat(downs, 1))


def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    """Copy each of the values, rounded if need be.

    On a GPU that is one launch for many small weights, for which torch has no public name. Values that wait on the CPU
    are brought over as they are, from pinned memory and without waiting: torch would round them there first.
    """
    torch._foreach_copy_(into, [value.to(into[0].device, non_blocking=True) for value in values])


class ByPath(Mapping[str, Tensor]):
    """Weights by path, each made when it is read: all of a quantised base's at once might not fit in memory."""

    def __init__(self, paths: Collection[str], find: Callable[[str], Tensor]) -> None:
        self.paths, self.find = paths, find

    def __getitem__(self, path: str) -> Tensor:
        if path not in self.paths:
            raise KeyError(path)
        return self.find(path)

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)
