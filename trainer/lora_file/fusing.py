"""Layers that one tool keeps in one weight and another apart (q, k and v): updates taken apart and put together exactly.

Apart, a low-rank update of the whole keeps its first factor and takes its own rows of the second. Together, several become one whose
first factors are stacked and whose second ones stand on the diagonal, of as much rank as all of them; where all have the same first
factor, as when they were one before, it is kept once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.deltas import Delta, Update, rows

if TYPE_CHECKING:
    from torch import Tensor


def indices(heights: tuple[int, ...], swapped: bool) -> list[Tensor]:
    """The outputs of each of the parts; `swapped` ones have their halves the other way round."""
    import torch

    found, start = [], 0
    for height in heights:
        index = torch.arange(start, start + height)
        found.append(torch.cat([index[height // 2 :], index[: height // 2]]) if swapped else index)
        start += height
    return found


def apart(update: Update, heights: tuple[int, ...], swapped: bool = False, shape: tuple[int, ...] | None = None) -> list[Update] | None:
    """The updates of the layers that lie in one weight of `shape`, with that many outputs each; None if they depend on each other."""
    import torch

    index = indices(heights, swapped)
    if isinstance(update, Delta) and len(heights) > 1 and _is_diagonal(update, index):
        size = update.rank // len(heights)
        return [
            Delta(update.down[number * size : (number + 1) * size], update.up[one][:, number * size : (number + 1) * size], update.scale)
            for number, one in enumerate(index)
        ]
    found = [rows(update, one, shape) for one in index]
    if isinstance(update, Delta) and len(heights) > 1:
        used = torch.stack([update.up[one].flatten(2).any(2).any(0) if update.up.ndim > 2 else update.up[one].any(0) for one in index])
        if int(used.sum(0).max()) <= 1:  # every column is one part's own, so each part keeps its own
            return [_with(update, one, columns) for one, columns in zip(index, used, strict=True)]
    return None if any(one is None for one in found) else [one for one in found if one is not None]


def _with(update: Delta, index: Tensor, columns: Tensor) -> Delta:
    """The outputs `index` of an update, of as much rank as columns are used."""
    import torch

    kept = columns if columns.any() else torch.arange(len(columns)) == 0
    return Delta(update.down[kept], update.up[index][:, kept], update.scale)


def is_nothing(update: Update) -> bool:
    """Whether an update is a plain LoRA's that changes nothing, as the untrained part of a fused one is."""
    return isinstance(update, Delta) and not bool(update.up.any())


def _is_diagonal(update: Delta, index: list[Tensor]) -> bool:
    """Whether each part has columns of its own, as many as every other."""
    if update.rank % len(index):
        return False
    size = update.rank // len(index)
    others = (update.up[one].unflatten(1, (len(index), size)) for one in index)
    return not any(bool(block[:, other].any()) for number, block in enumerate(others) for other in range(len(index)) if other != number)


def together(parts: list[Delta | None], heights: tuple[int, ...], swapped: bool = False) -> Delta:
    """One update of all outputs; what is None stays untouched. Scales are folded in where they differ."""
    import torch

    there = [part for part in parts if part is not None]
    first = there[0]
    scale = first.scale if all(part.scale == first.scale for part in there) else 1.0
    index = indices(heights, swapped)
    shared = all(part.rank == first.rank and torch.equal(part.down, first.down) for part in there) and len(there) == len(parts)
    rank = first.rank if shared else sum(part.rank for part in there)
    up = first.up.new_zeros((sum(heights), rank, *first.up.shape[2:]))
    column = 0
    for part, one in zip(parts, index, strict=True):
        if part is None:
            continue
        factor = part.scale / scale
        up[one, column : column + part.rank] = part.up if factor == 1 else (part.up.float() * factor).to(part.up.dtype)
        column += 0 if shared else part.rank
    return Delta(first.down if shared else torch.cat([part.down for part in there]), up, scale)
