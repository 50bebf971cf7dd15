"""What a method's update of one weight is, once it is read from a file: `base + weight * update.dense(base, dtype)`.

Plain LoRA is low-rank (`Delta`) and stays that way for whoever works in rank space. Other methods have a formula of their
own, which may need the base's weight; each lives in its method's file and keeps `Update`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Update(Protocol):
    """One module's update. Making one from parts that don't fit each other raises ValueError with their shapes."""

    @property
    def rank(self) -> int:
        """Its inner size, in the method's own sense."""

    @property
    def num_parameters(self) -> int:
        """Numbers it is made of."""

    @property
    def made_for(self) -> str:
        """The shape of weight it belongs to, as far as it tells, in words."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be added to a weight of this shape."""

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        """What is added to `base` (the weight without any adapter), in its shape, on its device, computed in `dtype`."""

    def squared_norm(self) -> float | None:
        """Its squared Frobenius norm; None where that takes the base to know."""


def is_weight_of(made: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """True if `made` is the shape, or the shape of a convolution with its kernel laid flat."""
    return made in (shape, (shape[0], math.prod(shape[1:])))


@dataclass(frozen=True)
class Delta:
    """A low-rank update: scale * up @ down."""

    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    scale: float

    def __post_init__(self) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if len(down) not in (2, 4) or len(up) != len(down) or down[0] == 0 or up[1] != down[0] or any(side != 1 for side in up[2:]):
            raise ValueError(f"down {down} and up {up}")

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def num_parameters(self) -> int:
        return self.down.numel() + self.up.numel()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight it is added to."""
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def made_for(self) -> str:
        return str(self.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return is_weight_of(self.shape, shape)

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        down, up = self.down.to(base.device, dtype), self.up.to(base.device, dtype)
        return self.scale * (up.flatten(1) @ down.flatten(1)).reshape(base.shape)

    def squared_norm(self) -> float:
        """From the two r x r Gram matrices, without the dense product."""
        down, up = self.down.flatten(1).double(), self.up.flatten(1).double()
        return float(((down @ down.T) * (up.T @ up)).sum()) * self.scale**2
