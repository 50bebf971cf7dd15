"""Layers that one tool keeps in one weight and another apart (q, k and v): updates split and fused exactly.

An update is up @ down. When it is split, each part keeps `down` and takes its own rows of `up`. When parts are fused,
their `down` are stacked and their `up` stand on the diagonal, so that the ranks add up; where all have the same `down`,
as when they were one before, it is kept once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.deltas import Delta, Update, rows
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def indices(heights: tuple[int, ...], swapped: bool) -> list[Tensor]:
    """The outputs of each part, (height,) indices each; with `swapped` the second half comes before the first."""
    parts, start = [], 0
    for height in heights:
        index = torch.arange(start, start + height)
        parts.append(torch.cat([index[height // 2 :], index[: height // 2]]) if swapped else index)
        start += height
    return parts


def split(
    update: Update, heights: tuple[int, ...], swapped: bool = False, shape: tuple[int, ...] | None = None
) -> list[Update] | None:
    """The updates of layers that lie in one weight of `shape`, of such heights; None if it can't be split."""
    index = indices(heights, swapped)
    # Fused by us before: each part has its own block of the rank. Split so, it has its first rank again, where rows of
    # the whole would each keep the rank of all.
    if isinstance(update, Delta) and len(heights) > 1 and _is_diagonal(update, index):
        size = update.rank // len(heights)
        return [
            Delta(
                update.down[number * size : (number + 1) * size],
                update.up[outputs][:, number * size : (number + 1) * size],
                update.scale,
            )
            for number, outputs in enumerate(index)
        ]
    parts = [rows(update, outputs, shape) for outputs in index]
    # Each column of `up` may be one part's own, also where the parts' ranks differ.
    if isinstance(update, Delta) and len(heights) > 1:
        used = torch.stack(
            [
                update.up[outputs].flatten(2).any(2).any(0) if update.up.ndim > 2 else update.up[outputs].any(0)
                for outputs in index
            ]
        )  # (parts, rank)
        if int(used.sum(0).max()) <= 1:
            return [_narrowed(update, outputs, columns) for outputs, columns in zip(index, used, strict=True)]
    return None if any(part is None for part in parts) else [part for part in parts if part is not None]


def _narrowed(update: Delta, outputs: Tensor, columns: Tensor) -> Delta:
    """Some outputs of an update, of as much rank as columns are used; rank 1 if none are."""
    kept = columns if columns.any() else torch.arange(len(columns)) == 0
    return Delta(update.down[kept], update.up[outputs][:, kept], update.scale)


def is_nothing(update: Update) -> bool:
    """Whether an update is a plain LoRA's that changes nothing, as the untrained part of a fused layer is."""
    return isinstance(update, Delta) and not bool(update.up.any())


def _is_diagonal(update: Delta, index: list[Tensor]) -> bool:
    """Whether each part has columns of its own, as many as every other."""
    if update.rank % len(index):
        return False
    size = update.rank // len(index)
    blocks = (update.up[outputs].unflatten(1, (len(index), size)) for outputs in index)  # (height, parts, size)
    return not any(
        bool(block[:, other].any())
        for number, block in enumerate(blocks)
        for other in range(len(index))
        if other != number
    )


def fuse(parts: list[Delta | None], heights: tuple[int, ...], swapped: bool = False) -> Delta:
    """One update of all outputs; parts that are None get none. Scales are folded into `up` where they differ."""
    given = [part for part in parts if part is not None]
    first = given[0]
    scale = first.scale if all(part.scale == first.scale for part in given) else 1.0
    index = indices(heights, swapped)
    # LoRAs that were trained on the fused layer have one `down` for all parts: kept once, the rank stays what it was.
    is_same = all(part.rank == first.rank and torch.equal(part.down, first.down) for part in given)
    shared = is_same and len(given) == len(parts)
    rank = first.rank if shared else sum(part.rank for part in given)
    up = first.up.new_zeros((sum(heights), rank, *first.up.shape[2:]))
    column = 0
    for part, outputs in zip(parts, index, strict=True):
        if part is None:
            continue
        factor = part.scale / scale
        own = part.up if factor == 1 else (part.up.float() * factor).to(part.up.dtype)
        up[outputs, column : column + part.rank] = own
        column += 0 if shared else part.rank
    return Delta(first.down if shared else torch.cat([part.down for part in given]), up, scale)
