"""What one adapter does in a stack: where, when and how strongly, but for its weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trainer.config import AdapterChoice

if TYPE_CHECKING:
    from torch import Tensor

Weights = tuple[float, float]  # of an adapter's part in the denoiser, and of that in the text encoders


@dataclass(frozen=True)
class Effect:
    """What one adapter does, apart from its weights. Two are equal if they do the same in pictures of one batch."""

    choice: AdapterChoice  # without weights, see `sharing.layer`
    key: str = field(compare=False)  # of the adapter on the shelf, by its content
    brings_words: bool = field(compare=False)  # new words for the text encoders
    block_factors: Mapping[str, float] = field(compare=False)  # of the denoiser's layers by path; 1 where none is named
    curve: tuple[float, ...] = field(compare=False)  # its factor at each step, and after the last
    mask: Tensor | None = field(compare=False)  # (h, w) of the latents; None acts everywhere

    def at(self, step: int) -> float:
        """Its factor at a step. Samplers of second order take more steps than were asked for."""
        return self.curve[min(step, len(self.curve) - 1)]

    @property
    def is_steady(self) -> bool:
        """True if its weight is the same at every step."""
        return set(self.curve) <= {1.0}
