"""Which layers are folded together for a stack, found once for the same adapters whatever their weights.

Layers of one shape that the same adapters change are a chunk, as many as fit into `room_bytes` of float32. What a chunk
is depends on the stack alone, never on what was folded before, so that a sum has the same bytes whichever way a stack
was come by: a product of many matrices need not round as one of few does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.deltas import Update
from trainer.render.packing import Packed

Name = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Share:
    """What an adapter does to one component of a pipeline, and its weight there, not 0."""

    # The adapter's key, by its content; the component; what `factors` is made from. Equal names do the same at the same
    # weight.
    name: tuple[str, str, tuple[str, ...]]
    weight: float
    packed: Packed
    factors: Mapping[str, float] | None = None  # by path; None: 1 everywhere

    def factor(self, path: str) -> float:
        return 1.0 if self.factors is None else self.factors.get(path, 1.0)


@dataclass(frozen=True, eq=False)
class Low:
    """The low-rank part of a chunk that comes from one share: layers of a pack, in the chunk's order."""

    share: int
    pack: int
    rows: slice | Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Layers of one shape that the same shares change."""

    name: Name  # equal names have equal sums at equal weights
    paths: tuple[str, ...]
    shape: tuple[int, int]  # of a weight laid flat
    shares: tuple[int, ...]
    low: tuple[Low, ...]
    num_ranks: int
    start: int  # in the layout's factors, of (L, num_ranks)
    others: tuple[tuple[int, float, Update], ...]  # share, factor, update; then there is one path


@dataclass(frozen=True, eq=False)
class Layout:
    """All chunks of a stack, and what makes a factor for each rank of each layer from the shares' weights.

    The factors are `weights[owners] * fixed`: one product for all layers, however many there are.
    """

    chunks: tuple[Chunk, ...]
    paths: frozenset[str]
    owners: Tensor  # (N,), the share of each
    fixed: Tensor  # (N,), float64: what doesn't depend on the weight


def make(shares: Sequence[Share], kind_of: Mapping[str, object], room_bytes: int) -> Layout:
    """The layout of shares in a fixed order; layers of another `kind_of` are never in one chunk."""
    # What each layer gets: (share, pack, row in the pack), or (share, factor, update).
    low: dict[str, list[tuple[int, int, int]]] = {}
    others: dict[str, list[tuple[int, float, Update]]] = {}
    for number, share in enumerate(shares):
        for at, pack in enumerate(share.packed.packs):
            for row, path in enumerate(pack.paths):
                # A layer with factor 0 is not touched: no original is kept and no sum made of it.
                if share.factors is None or share.factor(path):
                    low.setdefault(path, []).append((number, at, row))
        for path, update in share.packed.others.items():
            if factor := share.factor(path):
                others.setdefault(path, []).append((number, factor, update))

    # Layers of one kind that get the same packs of the same shares.
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path, places in low.items():
        if path not in others:
            groups.setdefault((kind_of[path], *((number, at) for number, at, _ in places)), []).append(path)
    rows = {path: [row for _, _, row in places] for path, places in low.items()}

    maker = _Maker(shares)
    for (_, *parts), paths in groups.items():
        maker.add(
            paths,
            [(number, at, [rows[path][place] for path in paths]) for place, (number, at) in enumerate(parts)],
            room_bytes,
        )
    for path, updates in others.items():
        maker.add_mixed(path, low.get(path, []), updates)
    return maker.layout()


class _Maker:
    """Gathers chunks and their factors."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares, self.size = shares, 0
        self.chunks: list[Chunk] = []
        self.owners: list[Tensor] = []
        self.fixed: list[Tensor] = []

    def add(self, paths: list[str], parts: list[tuple[int, int, list[int]]], room_bytes: int) -> None:
        pack = self.shares[parts[0][0]].packed.packs[parts[0][1]]
        most = max(1, room_bytes // 4 // (pack.up.shape[1] * pack.down.shape[2]))
        for start in range(0, len(paths), most):
            end = start + most
            self._add(tuple(paths[start:end]), [(number, at, rows[start:end]) for number, at, rows in parts], ())

    def add_mixed(self, path: str, low: list[tuple[int, int, int]], updates: list[tuple[int, float, Update]]) -> None:
        self._add((path,), [(number, at, [row]) for number, at, row in low], tuple(updates))

    def _add(
        self,
        paths: tuple[str, ...],
        parts: list[tuple[int, int, list[int]]],
        updates: tuple[tuple[int, float, Update], ...],
    ) -> None:
        # The low-rank updates of each share: how many ranks, and what each rank's factor is made from.
        ranks, owners, fixed = [], [], []
        shape = (0, 0)
        for number, at, rows in parts:
            share, pack = self.shares[number], self.shares[number].packed.packs[at]
            rank, shape = pack.up.shape[2], (pack.up.shape[1], pack.down.shape[2])
            ranks.append(rank)
            owners += [number] * rank
            scales = [pack.scales[row] for row in rows]
            if share.factors is not None:
                scales = [scale * share.factor(path) for scale, path in zip(scales, paths, strict=True)]
            # Float64, so that scale * block factor * weight is rounded once, whatever the order.
            fixed.append(torch.tensor(scales, dtype=torch.float64)[:, None].expand(-1, rank))

        used = tuple(dict.fromkeys([*(number for number, _, _ in parts), *(number for number, _, _ in updates)]))
        low = tuple(Low(number, at, _rows(rows)) for number, at, rows in parts)
        name = (paths, *(self.shares[number].name for number in used))
        self.chunks.append(Chunk(name, paths, shape, used, low, sum(ranks), self.size, updates))
        if parts:
            self.owners.append(torch.tensor(owners).repeat(len(paths)))
            self.fixed.append(torch.cat(fixed, 1).flatten())
            self.size += len(paths) * sum(ranks)

    def layout(self) -> Layout:
        empty = torch.empty(0, dtype=torch.float64)  # where no chunk is low-rank
        owners, fixed = torch.cat([empty.long(), *self.owners]), torch.cat([empty, *self.fixed])
        paths = frozenset(path for chunk in self.chunks for path in chunk.paths)
        return Layout(tuple(self.chunks), paths, owners, fixed)


def _rows(rows: list[int]) -> slice | Tensor:
    """Rows of a pack, as a slice where they follow one another: a slice is read without copying."""
    return slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else torch.tensor(rows)
