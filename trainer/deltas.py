"""What a method's update of one weight is, once it is read from a file: `base + weight * update.dense(base, dtype)`.

Plain LoRA is low-rank (`Delta`) and stays that way for whoever works in rank space. Other methods have a formula of
their own, which may need the base's weight; each lives in its method's file and keeps `Update`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from trainer.lazy import torch

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
        """What is added to `base`, the weight without any adapter, in its shape, on its device, computed in `dtype`."""

    def squared_norm(self) -> float | None:
        """Its squared Frobenius norm; None where that takes the base to know."""


# Shapes.


def is_weight_of(own_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """True if an update of the shape `own_shape` belongs to a weight of this shape.

    Besides the same shape, that is a convolution's with its kernel laid flat, and a linear layer's as a convolution of
    1 x 1: tools write both.
    """
    return own_shape in (shape, (shape[0], math.prod(shape[1:]))) or (
        len(shape) == 2 and len(own_shape) > 2 and own_shape == (*shape, *[1] * (len(own_shape) - 2))
    )


def paired(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Factors with as many sides each: the second may lack its kernel of 1 x 1."""
    return (down, up[:, :, None, None]) if down.ndim == 4 and up.ndim == 2 else (down, up)


# The kinds of update.


@dataclass(frozen=True)
class Delta:
    """A low-rank update: scale * up @ down."""

    down: Tensor  # (r, in) or (r, in, kh, kw)
    up: Tensor  # (out, r) or (out, r, 1, 1)
    scale: float

    def __post_init__(self) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        is_layer = len(down) in (2, 4) and len(up) == len(down)
        if not is_layer or down[0] == 0 or up[1] != down[0] or any(side != 1 for side in up[2:]):
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
        # ||U D||^2 = tr(D^T U^T U D) = sum of (D D^T) * (U^T U), elementwise. In float64: squares of float16 overflow.
        down, up = self.down.flatten(1).double(), self.up.flatten(1).double()
        return float(((down @ down.T) * (up.T @ up)).sum()) * self.scale**2

    def rows(self, index: Tensor) -> Delta:
        """The part of it that belongs to these outputs."""
        return Delta(self.down, self.up[index], self.scale)


@dataclass(frozen=True)
class Whole:
    """An update that is given as it is."""

    change: Tensor  # in the shape of the weight

    def __post_init__(self) -> None:
        if not self.change.ndim or not self.change.numel():
            raise ValueError(f"a difference of {tuple(self.change.shape)}")

    @property
    def rank(self) -> int:
        return int(min(self.change.flatten(1).shape)) if self.change.ndim > 1 else 1

    @property
    def num_parameters(self) -> int:
        return self.change.numel()

    @property
    def made_for(self) -> str:
        return str(tuple(self.change.shape))

    def fits(self, shape: tuple[int, ...]) -> bool:
        return is_weight_of(tuple(self.change.shape), shape)

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        return self.change.to(base.device, dtype).reshape(base.shape)

    def squared_norm(self) -> float:
        return float(self.change.double().square().sum())

    def rows(self, index: Tensor) -> Whole:
        """The part of it that belongs to these outputs."""
        return Whole(self.change[index])


@dataclass(frozen=True)
class Decomposed:
    """Any update whose sum with the base is brought to given lengths (LyCORIS' `dora_wd`).

    It adds lengths * (base + inner) / ||base + inner|| - base.
    """

    inner: Update
    lengths: Tensor  # one for each output, (out,) or (out, 1, ...); or for each input, (1, in, ...)

    def __post_init__(self) -> None:
        if not self.lengths.numel() or self.lengths.numel() != max(self.lengths.shape):
            raise ValueError(f"lengths {tuple(self.lengths.shape)}")

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def num_parameters(self) -> int:
        return self.inner.num_parameters + self.lengths.numel()

    @property
    def made_for(self) -> str:
        return self.inner.made_for

    @property
    def _axis(self) -> int:
        """Of the weight, along which the lengths run: 0 the outputs, 1 the inputs."""
        return 1 if self.lengths.ndim > 1 and self.lengths.shape[0] == 1 else 0

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.inner.fits(shape) and len(shape) > self._axis and self.lengths.numel() == shape[self._axis]

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        # The norms of the sum over every axis but the lengths' own.
        weight = base.to(dtype)
        turned = weight + self.inner.dense(base, dtype)
        axes = [axis for axis in range(turned.ndim) if axis != self._axis]
        sides = [-1 if axis == self._axis else 1 for axis in range(turned.ndim)]
        norms = torch.linalg.vector_norm(turned, dim=axes, keepdim=True)
        # A row of zeros stays zero, whatever length it should have.
        change: Tensor = self.lengths.to(base.device, dtype).reshape(sides) / norms.clamp_min(1e-30) * turned - weight
        return change

    def squared_norm(self) -> None:
        return None

    def rows(self, index: Tensor) -> Decomposed | None:
        """The part of it that belongs to these outputs; None where the lengths run over all outputs."""
        inner = rows(self.inner, index)
        return Decomposed(inner, self.lengths[index]) if inner is not None and self._axis == 0 else None


@dataclass(frozen=True)
class Some:
    """The part of an update that belongs to some outputs, where the update has no such part in its own form."""

    whole: Update
    index: Tensor
    shape: tuple[int, ...]  # of the whole weight

    @property
    def rank(self) -> int:
        return self.whole.rank

    @property
    def num_parameters(self) -> int:
        return self.whole.num_parameters * len(self.index) // max(1, self.shape[0])

    @property
    def made_for(self) -> str:
        return f"{len(self.index)} outputs of {self.shape}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return self.whole.fits(self.shape) and is_weight_of((len(self.index), *self.shape[1:]), shape)

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        # Of a whole base that is not here: `rows` makes this only of updates that don't go by it.
        return self.whole.dense(base.new_zeros(self.shape), dtype)[self.index].reshape(base.shape)

    def squared_norm(self) -> float:
        return float(self.whole.dense(torch.zeros(self.shape), torch.float64)[self.index].square().sum())


# Parts of updates.


def rows(update: Update, index: Tensor, shape: tuple[int, ...] | None = None) -> Update | None:
    """The part of an update that belongs to these outputs of its weight, of `shape`.

    None if it can't be told without the other outputs.
    """
    if hasattr(update, "rows"):
        part: Update | None = update.rows(index)
        return part
    # A norm that takes the base to know means that the update takes it too.
    if shape is None or update.squared_norm() is None:
        return None
    return Some(update, index, shape)


# Going on from updates.


def largest(updates: list[Any]) -> dict[str, Any]:
    """The rank that holds all of these scaled updates, and the alpha that gives most of them their own scale."""
    rank = max(int(update.rank) for update in updates)
    scale, _ = Counter(float(update.scale) for update in updates).most_common(1)[0]
    # A scale that no `alpha` can express is left at 1; `widened` then takes the difference into `up`.
    alpha = scale * rank
    return {"rank": rank, "alpha": alpha if 0 < alpha <= 1024 else float(rank)}


def widened(pair: tuple[Tensor, Tensor], fresh: tuple[Tensor, Tensor], factor: float) -> tuple[Tensor, Tensor]:
    """Down and up in the shapes of a fresh pair, up times `factor`; ranks beyond theirs add nothing yet.

    Raises: ValueError if they have more rank than there is.
    """
    down, up = pair
    rank, room = down.shape[0], fresh[0].shape[0]
    if rank > room:
        raise ValueError(f"has rank {rank}, and is trained with {room}")
    # Beyond the old rank down stays random and up is 0: they add nothing, but up has a gradient and so learns.
    wide_down, wide_up = fresh[0].clone(), fresh[1].new_zeros(fresh[1].shape)
    wide_down[:rank] = down.reshape(rank, *fresh[0].shape[1:]).to(wide_down)
    scaled = up.to(wide_up) if factor == 1 else up.to(wide_up) * factor
    wide_up[:, :rank] = scaled.reshape(wide_up.shape[0], rank, *wide_up.shape[2:])
    return wide_down, wide_up
