"""Two adapters, content and style, of which one acts in each layer and step (K-LoRA, arXiv 2502.18461).

The first of the stack is the content. The sum of a layer's K largest entries, K the product of the two ranks, measures
how much the adapter does there. The content's is compared with the style's times gamma, which makes the two alike over
the whole model, times S = 1.5 * progress + 0.5: content early, style late. The sums never change, so they are found
once. Layers that only one adapter has keep it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.deltas import Update

name, title, is_guided, fewest, most = "k-lora", "K-LoRA", False, 2, 2
says = "one of the two acts in each layer and step"
_Scores = dict[str, tuple[float, float]]


def prepare(updates: dict[str, list[tuple[int, float, Update]]], base: Callable[[str], Tensor]) -> _Scores:
    """The two sums of each layer that both adapters have, by path, the style's times gamma."""
    sums, totals = {}, [0.0, 0.0]
    for path, parts in updates.items():
        dense = {
            number: (factor * update.dense(base(path), torch.float32)).abs().flatten()
            for number, factor, update in parts
        }
        for number, entries in dense.items():
            totals[number] += float(entries.sum())
        if len(dense) == 2:
            largest = min(len(dense[0]), parts[0][2].rank * parts[1][2].rank)
            sums[path] = tuple(float(dense[number].topk(largest).values.sum()) for number in (0, 1))
    # Both adapters have the same sum over the whole model then, however strong each was trained.
    gamma = totals[0] / max(totals[1], 1e-30)
    return {path: (content, style * gamma) for path, (content, style) in sums.items()}


def predict(call: Callable[..., Tensor], num: int, step: int, num_steps: int, scores: Any) -> Tensor:
    share = 1.5 * step / max(1, num_steps - 1) + 0.5
    return call([1.0, 1.0], {path: 0 if content >= style * share else 1 for path, (content, style) in scores.items()})
