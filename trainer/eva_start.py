"""The main directions of what flows into layers: where EVA's factors start (arXiv 2410.07170, section 3).

PEFT's own driver cycles through its data until every layer has converged, which never ends for a layer that sees fewer
rows than the rank (a time embedding); here the caller's few passes are all there is. The incremental PCA is PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

MAX_ROWS = 4096  # of one pass into one layer; more tell little more


class _Watched:
    """One layer's inputs, fitted as enough of them have come in."""

    def __init__(self, num: int, width: int) -> None:
        self.num = min(num, width)
        self.is_wide = 2 * self.num <= width  # torch.svd_lowrank asks for twice the components
        self.pca: Any = IncrementalPCA(n_components=self.num, lowrank=self.is_wide, lowrank_seed=0)
        self.waiting: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()  # (rows, in)
        self.waiting.append(rows[:: -(-len(rows) // MAX_ROWS)])  # every n-th, so that at most MAX_ROWS are left
        # The PCA wants more rows at once than components.
        if sum(map(len, self.waiting)) >= 2 * self.num:
            self.pca.partial_fit(torch.cat(self.waiting))
            self.waiting = []

    def directions(self) -> Tensor:
        """(components, in) float32, orthonormal, the strongest first; fewer than asked for where few rows came."""
        if hasattr(self.pca, "components_"):
            components: Tensor = self.pca.components_
            return components.float()
        # Too few rows for the PCA: their own directions.
        rows = torch.cat(self.waiting) if self.waiting else torch.zeros(0, 0)
        if not len(rows):
            return rows
        # About their mean, as the PCA takes them.
        right: Tensor = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
        return right[: min(self.num, len(rows))]


@torch.no_grad()
def directions(layers: dict[str, nn.Module], ranks: dict[str, int], samples: Callable[[], None]) -> dict[str, Tensor]:
    """By path, the main directions (up to rank, in) of a linear layer's inputs while `samples` runs the model."""
    watched = {path: _Watched(ranks[path], layer.in_features) for path, layer in layers.items()}  # type: ignore[arg-type]
    hooks = [layer.register_forward_pre_hook(watched[path]) for path, layer in layers.items()]
    try:
        samples()
    finally:
        for hook in hooks:
            hook.remove()
    return {path: inputs.directions() for path, inputs in watched.items()}
