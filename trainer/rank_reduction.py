"""Sums of low-rank updates, exactly or to a rank, and how much a rank leaves out.

The sum of low-rank updates is one whose factors lie side by side; its rank is the sum of theirs. To a smaller rank it
is cut by singular values, found from the factors alone by QR, and what is lost is said as a share of the whole
(Eckart-Young: no other of that rank loses less). PEFT's "linear" way of adding mixes the factors of one adapter with
those of another and is not the sum; it is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.deltas import Delta

_DENSE = 1 << 22  # numbers in a matrix up to which all of its singular values are found
_OVERSAMPLED = 16


@dataclass(frozen=True)
class Factors:
    """A sum: up (out, r) @ down (r, in), float32; squared norms of what the rank left out and of the whole."""

    up: Tensor
    down: Tensor
    lost: float
    whole: float

    def delta(self, shape: tuple[int, ...]) -> Delta:
        """The update of a weight of this shape, at scale 1."""
        if len(shape) == 2:
            return Delta(self.down, self.up, 1.0)
        down = self.down.reshape(len(self.down), *shape[1:])  # (r, in, kh, kw)
        up = self.up.reshape(*self.up.shape, *[1] * (len(shape) - 2))  # (out, r, 1, 1)
        return Delta(down, up, 1.0)


@dataclass(frozen=True)
class Cut:
    """How much of a layer is kept: at most `rank`, or as little as leaves `energy` or an `error`.

    The energy is a share of the squared norm, the error one of the norm; 0 stands for no limit.
    """

    rank: int = 0
    energy: float = 0.0
    error: float = 0.0

    def ranks(self, values: Tensor, whole: float) -> int:
        """How many of these singular values, the largest first, of a layer with this squared norm."""
        kept, most = len(values), self.rank or len(values)
        # Squared norms of what is kept and what is left out add up to the whole: singular vectors are orthogonal.
        share = max(self.energy, 1 - self.error**2 if self.error else 0.0)
        if share and whole:
            inside = values.square().cumsum(0) / whole
            # Rounding must not ask for one more where the share is met exactly.
            kept = int((inside < share - 1e-12).sum()) + 1
        return max(1, min(kept, most, len(values)))


# Sums.


def side_by_side(parts: Sequence[tuple[float, Delta]]) -> tuple[Tensor, Tensor]:
    """up (out, R) and down (R, in) of the sum of factor * update."""
    up = torch.cat([delta.up.flatten(1).float() * (factor * delta.scale) for factor, delta in parts], 1)
    return up, torch.cat([delta.down.flatten(1).float() for _, delta in parts])


def exact(up: Tensor, down: Tensor) -> Factors:
    """The sum as it is."""
    # The squared norm from two small Gram matrices, see `Delta.squared_norm`.
    return Factors(up, down, 0.0, float(((down @ down.T) * (up.T @ up)).sum()))


def cut(up: Tensor, down: Tensor, how: Cut) -> Factors:
    """The sum cut down, from its factors alone."""
    # The singular values of up @ down are those of the small matrix between the two orthonormal factors.
    # In float64, since what is lost is a difference of nearly equal sums.
    left, upper = torch.linalg.qr(up.double())
    right, lower = torch.linalg.qr(down.double().T)
    inner_left, values, inner_right = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    return _kept(left @ inner_left, values, inner_right @ right.T, float(values.square().sum()), how)


def cut_dense(matrix: Tensor, how: Cut, seed: int = 0) -> Factors:
    """A whole matrix (out, in) cut down.

    Of a large one only as many singular values are found as the rank asks for (randomised range finder with power
    iterations, arXiv 0909.4061, algorithm 4.4); an energy or error alone needs them all.
    """
    # A small matrix, or one of which nearly all is wanted: whole.
    wide = matrix.double() if matrix.numel() <= _DENSE else matrix.float()
    whole = float(wide.double().square().sum())
    size = how.rank + _OVERSAMPLED
    if matrix.numel() <= _DENSE or not how.rank or size * 4 > min(matrix.shape):
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
        return _kept(left, values.double(), right, whole, how)

    # A large matrix: a random start, drawn towards the largest singular values by four power iterations.
    start = torch.randn(wide.shape[1], size, generator=torch.Generator().manual_seed(seed), dtype=wide.dtype)
    basis, _ = torch.linalg.qr(wide @ start)
    for _ in range(4):
        basis, _ = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ basis)[0])

    # What the rank leaves out is measured, since the values beyond those that were found are not known.
    left, values, right = torch.linalg.svd(basis.T @ wide, full_matrices=False)
    factors = _kept(basis @ left, values.double(), right, whole, how)
    lost = float((wide - factors.up @ factors.down).double().square().sum())
    return Factors(factors.up, factors.down, lost, whole)


def _kept(left: Tensor, values: Tensor, right: Tensor, whole: float, how: Cut) -> Factors:
    """The factors of the largest singular values; each takes their root, so that neither is much longer."""
    kept = how.ranks(values, whole)
    root = values[:kept].sqrt()
    lost = max(0.0, whole - float(values[:kept].square().sum())) if kept < len(values) else 0.0
    return Factors((left[:, :kept] * root).float(), (root[:, None] * right[:kept]).float(), lost, whole)


# What is lost.


def residual(layers: Sequence[Factors]) -> float:
    """The share of the norm of all layers together that was left out."""
    lost, whole = math.fsum(layer.lost for layer in layers), math.fsum(layer.whole for layer in layers)
    return math.sqrt(lost / whole) if whole else 0.0
