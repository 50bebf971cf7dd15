"""Strengths from votes between two: the model of Bradley and Terry (1952) with a normal prior, and what to ask next.

The first of two wins with probability 1 / (1 + exp(second - first)); a tie counts as half a vote for each. One that
nobody voted on is as uncertain as the prior says, and votes for one pair narrow what is known of the others it met.

`fit` takes the posterior as normal around its mode (Laplace), which is quick and good enough to choose who plays next.
Its intervals hold the truth in 91 to 93 of 100, as who loses always has a posterior with a long tail; `sampled` draws
from the posterior itself, by elliptical slice sampling (Murray, Adams and MacKay 2010, arXiv:1001.0175).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Vote = tuple[int, int, float]  # first, second, what the first won: 1, 0, or 0.5 for a tie

PRIOR_SD = 1.5  # of a strength: two drawn from it differ by as much as wins 9 of 10 votes, typically
Z_95 = 1.959964
_DRAWS = 1000
_STEPS = 50


@dataclass(frozen=True)
class Strengths:
    """The posterior of all strengths: `mean` (N,), `covariance` (N, N)."""

    mean: Vector
    covariance: Vector

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """How much stronger the first is than the second, and the variance of that."""
        covariance = self.covariance
        variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
        return float(self.mean[first] - self.mean[second]), float(variance)

    def against_average(self, candidate: int) -> tuple[float, float, float]:
        """The share of votes that it wins against an average opponent, and the ends of the 95 % interval of that."""
        contrast = np.full(len(self.mean), -1 / len(self.mean))
        contrast[candidate] += 1
        middle = float(contrast @ self.mean)
        half = Z_95 * float(np.sqrt(max(0.0, contrast @ self.covariance @ contrast)))
        return _share(middle), _share(middle - half), _share(middle + half)

    def chances(self, generator: np.random.Generator) -> Vector:
        """The probability (N,) of each to be the strongest."""
        draws = generator.multivariate_normal(self.mean, self.covariance, _DRAWS, method="cholesky")
        return np.bincount(draws.argmax(axis=1), minlength=len(self.mean)) / _DRAWS


def fit(num: int, votes: Sequence[Vote], prior_sd: float = PRIOR_SD) -> Strengths:
    """The strengths of `num` candidates after these votes, by Newton's method."""
    first, second, won = (np.array([vote[part] for vote in votes]) for part in range(3))
    mean, precision = np.zeros(num), np.eye(num) / prior_sd**2
    if not votes:
        return Strengths(mean, np.eye(num) * prior_sd**2)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(mean[second] - mean[first]))
        # Gradient and Hessian of the log posterior: a vote pulls on its two alone.
        gradient, hessian = -mean / prior_sd**2, precision.copy()
        np.add.at(gradient, first, won - chance)
        np.add.at(gradient, second, chance - won)
        # Fisher information of one vote: most where the outcome is open.
        information = chance * (1 - chance)
        for row, column, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(hessian, (row, column), sign * information)
        change = np.linalg.solve(hessian, gradient)
        mean = mean + change
        if np.abs(change).max() < 1e-9:
            break
    return Strengths(mean, np.linalg.inv(hessian))


def sampled(num: int, votes: Sequence[Vote], generator: np.random.Generator, prior_sd: float = PRIOR_SD) -> Strengths:
    """The same from draws of the posterior, whose intervals hold the truth in 95 of 100."""
    start = fit(num, votes, prior_sd)
    if not votes:
        return start
    first, second, won = (np.array([vote[part] for vote in votes]) for part in range(3))
    # Slices around the normal posterior, somewhat wider: nearly every draw is a new point.
    root = np.linalg.cholesky(1.5 * start.covariance)

    def log_ratio(unit: Vector) -> float:
        """The log of the posterior over the normal that the draws are made of, but for a constant."""
        strengths = start.mean + root @ unit
        distance = strengths[first] - strengths[second]
        likelihood = won @ distance - np.logaddexp(0.0, distance).sum()
        return float(likelihood - strengths @ strengths / (2 * prior_sd**2) + unit @ unit / 2)

    unit = np.zeros(num)
    level = log_ratio(unit)
    draws = np.empty((_DRAWS, num))
    for draw in range(_DRAWS):
        # A point on the ellipse through the last draw and a fresh draw, as likely as a random share of it;
        # the bracket shrinks towards the last draw, angle 0, until such a point is met.
        other, least = generator.standard_normal(num), level + np.log(generator.random())
        angle = generator.uniform(0.0, 2 * np.pi)
        low, high = angle - 2 * np.pi, angle
        while True:
            moved = unit * np.cos(angle) + other * np.sin(angle)
            level = log_ratio(moved)
            if level > least:
                break
            low, high = (angle, high) if angle < 0 else (low, angle)
            angle = generator.uniform(low, high)
        unit = moved
        draws[draw] = start.mean + root @ unit
    return Strengths(draws.mean(axis=0), np.atleast_2d(np.cov(draws, rowvar=False)))


def worth(strengths: Strengths, generator: np.random.Generator) -> Vector:
    """What a vote on each pair (N, N) would tell: the information on their difference, in nats, times the chance that
    one of the two is the strongest.
    """
    mean, covariance = strengths.mean, strengths.covariance
    chance = 1 / (1 + np.exp(mean[None, :] - mean[:, None]))
    variance = np.diag(covariance)[:, None] + np.diag(covariance)[None, :] - 2 * covariance
    gain = np.log1p(chance * (1 - chance) * np.maximum(variance, 0.0)) / 2
    best = strengths.chances(generator)
    table: Vector = gain * (best[:, None] + best[None, :] + 1e-3)  # what is surely not the best tells a little too
    np.fill_diagonal(table, 0.0)
    return table


def rival(strengths: Strengths) -> tuple[int, int, float]:
    """The strongest, the one that is hardest to tell from it, and how many standard deviations lie between them."""
    leader = int(strengths.mean.argmax())
    others = [candidate for candidate in range(len(strengths.mean)) if candidate != leader]
    apart = [strengths.difference(leader, candidate) for candidate in others]
    distances = [distance / max(variance, 1e-12) ** 0.5 for distance, variance in apart]
    nearest = int(np.argmin(distances))
    return leader, others[nearest], distances[nearest]


def votes_needed(strengths: Strengths, first: int, second: int) -> float:
    """About how many votes more between the two tell them apart with 95 % confidence, if they are as strong as now."""
    distance, variance = strengths.difference(first, second)
    chance = _share(distance)
    # Told apart at distance = Z sd; votes add p (1 - p) of information each to the 1 / variance that there is.
    wanted = Z_95**2 / max(distance**2, 1e-12) - 1 / variance
    return max(0.0, wanted / (chance * (1 - chance)))


def _share(strength: float) -> float:
    return float(1 / (1 + np.exp(-strength)))
