"""How much better the adapter predicts pictures it never saw, at fixed (picture, noise, timestep).

Eight timesteps at the middles of the eighths of the schedule, one fixed noise for each (picture, timestep): base and
adapter are asked exactly the same questions, so that the difference is training and nothing else (the idea is
diffusion-pipe's fixed quantiles). Each picture counts once; the interval is a bootstrap over pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import objective
from trainer.events import Validated
from trainer.objective import Schedule

NUM_TIMESTEPS = 8
_SEED = 0  # of the questions, whatever the run's seed: losses of different runs can be compared
_BATCH = 32


@dataclass(frozen=True)
class Questions:
    """Latents (N, C, h, w) of the held-out pictures and, for each, its conditioning."""

    latents: Tensor
    conditionings: list[dict[str, Tensor]]


Predict = Callable[[Tensor, Tensor, list[dict[str, Tensor]]], Tensor]


@torch.no_grad()
def losses(questions: Questions, schedule: Schedule, predict: Predict) -> Tensor:
    """Mean squared error per picture (N,), in float64, over the eight timesteps.

    `predict(noised (B, C, h, w), timesteps (B,), conditionings)` answers a batch.
    """
    num = len(questions.latents)
    middles = (torch.arange(NUM_TIMESTEPS) + 0.5) / NUM_TIMESTEPS * schedule.num_timesteps
    asked = [(picture, quantile) for picture in range(num) for quantile in range(NUM_TIMESTEPS)]
    errors = torch.zeros(num, NUM_TIMESTEPS, dtype=torch.float64)
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        latents = torch.stack([questions.latents[picture] for picture, _ in batch])
        noise = torch.stack(
            [
                objective.noise_like(questions.latents[picture], objective.generator(_SEED, "heldout", picture * NUM_TIMESTEPS + quantile))
                for picture, quantile in batch
            ]
        )
        timesteps = middles[[quantile for _, quantile in batch]].long()
        noised = objective.add_noise(schedule, latents, noise, timesteps)
        wanted = objective.target(schedule, latents, noise, timesteps)
        prediction = predict(noised, timesteps, [questions.conditionings[picture] for picture, _ in batch])
        squared = (prediction.float().cpu() - wanted).square().flatten(1).mean(1).double()
        for (picture, quantile), error in zip(batch, squared, strict=True):
            errors[picture, quantile] = error
    return errors.mean(1)


def compare(step: int, base: Tensor, now: Tensor) -> Validated:
    """The event that says how far the loss fell, with a 95 % bootstrap interval (2,000 draws of pictures)."""
    rng = objective.generator(_SEED, "bootstrap", 0)
    draws = torch.randint(0, len(base), (2000, len(base)), generator=rng)
    gains = 1 - now[draws].mean(1) / base[draws].mean(1)
    low, high = torch.quantile(gains, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Validated(
        step=step, loss=float(now.mean()), base_loss=float(base.mean()), gain=float(1 - now.mean() / base.mean()),
        gain_low=low, gain_high=high, share_better=float((now < base).double().mean()), num_pictures=len(base),
    )  # fmt: skip
