"""How much better the adapter predicts pictures it never saw, and which step is best.

Ten timesteps at the middles of the tenths of the schedule, one fixed noise for each (picture, timestep): base and
adapter are asked exactly the same questions, so that the difference is training and nothing else (the idea is
diffusion-pipe's fixed quantiles). Each picture counts once; intervals are bootstraps over pictures. The same on as many
training pictures says how much of the gain is learning by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainer import objective, printing
from trainer.events import Overtrained, Validated
from trainer.objective import Schedule

NUM_TIMESTEPS = 10
MAX_TRAINING_PICTURES = 16
_SEED = 0  # of the questions, whatever the run's seed: losses of different runs can be compared
_DRAWS = 2000
PATIENCE = 2  # measurements in a row that must be clearly worse before the alarm is raised


@dataclass(frozen=True)
class Questions:
    """Latents (C, h, w) of some pictures, the caption and the frame (6,) of each."""

    latents: list[Tensor]
    captions: list[str]
    frames: list[Tensor]


Predict = Callable[[Tensor, Tensor, list[str], Tensor], Tensor]


# Measuring.


@torch.no_grad()
def losses(questions: Questions, schedule: Schedule, predict: Predict, batch_size: int) -> Tensor:
    """Mean squared error (N, 10) by picture and timestep, in float64.

    `predict(noised (B, C, h, w), timesteps (B,), captions, frames (B, 6))` answers a batch, of pictures of one shape.
    """
    # Every picture at every timestep, those of one shape beside each other; the sort is stable.
    # Middles, not ends: at the ends of the schedule nothing, or nothing of the picture, is left to predict.
    middles = (torch.arange(NUM_TIMESTEPS) + 0.5) / NUM_TIMESTEPS * schedule.num_timesteps
    pairs = [(picture, decile) for picture in range(len(questions.latents)) for decile in range(NUM_TIMESTEPS)]
    pairs.sort(key=lambda pair: tuple(questions.latents[pair[0]].shape))

    errors = torch.zeros(len(questions.latents), NUM_TIMESTEPS, dtype=torch.float64)
    start = 0
    while start < len(pairs):
        # A batch of one shape. Each pair's noise is its own, whatever it shares a batch with.
        shape = questions.latents[pairs[start][0]].shape
        batch = [pair for pair in pairs[start : start + batch_size] if questions.latents[pair[0]].shape == shape]
        start += len(batch)
        latents = torch.stack([questions.latents[picture] for picture, _ in batch])  # (B, C, h, w)
        noise = torch.stack([_noise(questions.latents[picture], picture, decile) for picture, decile in batch])
        timesteps = middles[[decile for _, decile in batch]].long()  # (B,)

        # Predict, compare.
        noised = objective.add_noise(schedule, latents, noise, timesteps)
        target = objective.target(schedule, latents, noise, timesteps)
        captions = [questions.captions[picture] for picture, _ in batch]
        frames = torch.stack([questions.frames[picture] for picture, _ in batch])  # (B, 6)
        prediction = predict(noised, timesteps, captions, frames)
        squared = (prediction.float().cpu() - target).square().flatten(1).mean(1).double()  # (B,)
        for (picture, decile), error in zip(batch, squared, strict=True):
            errors[picture, decile] = error
    return errors


def _noise(latents: Tensor, picture: int, decile: int) -> Tensor:
    """The one noise of a picture's latents (C, h, w) at a timestep, in every measurement of every run."""
    return objective.noise_like(latents, objective.generator(_SEED, "heldout", picture * NUM_TIMESTEPS + decile))


# Comparing.


def compare(step: int, base: Tensor, now: Tensor, train_gain: float | None, drift: float | None) -> Validated:
    """The event that says how far the loss (N, 10) fell, with a 95 % bootstrap interval over pictures."""
    before, after = base.mean(1), now.mean(1)
    low, high = interval(before, after)
    return Validated(
        step=step,
        loss=float(after.mean()),
        base_loss=float(before.mean()),
        gain=gain(base, now),
        gain_low=low,
        gain_high=high,
        share_better=float((after < before).double().mean()),
        num_pictures=len(base),
        deciles=now.mean(0).tolist(),
        base_deciles=base.mean(0).tolist(),
        train_gain=train_gain,
        drift=drift,
    )


def gain(base: Tensor, now: Tensor) -> float:
    """Share by which the mean loss fell; 0.1 = 10 %."""
    return float(1 - now.mean() / base.mean())


def interval(before: Tensor, after: Tensor) -> tuple[float, float]:
    """95 % bootstrap interval of the gain over pictures, from losses (N,)."""
    # Base and adapter are drawn together: what counts is how much each picture gained.
    draws = torch.randint(0, len(before), (_DRAWS, len(before)), generator=objective.generator(_SEED, "bootstrap", 0))
    gains = 1 - after[draws].mean(1) / before[draws].mean(1)
    low, high = torch.quantile(gains, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


# Judging.


@dataclass
class Judge:
    """Remembers the best measurement, raises the alarm, and says in words which step to use."""

    best_step: int = 0
    best: list[float] = field(default_factory=list)  # loss by picture at the best step
    best_gain: float = 0.0
    num_worse: int = 0  # measurements in a row that were clearly worse than the best
    num_measured: int = 0

    def state(self) -> dict[str, Any]:
        """What it is made from again."""
        return {
            "best_step": self.best_step,
            "best": self.best,
            "best_gain": self.best_gain,
            "num_worse": self.num_worse,
            "num_measured": self.num_measured,
        }

    def add(self, step: int, base: Tensor, now: Tensor) -> bool:
        """Take in a measurement (N, 10); True if it is the best so far."""
        losses_now = now.mean(1)  # (N,): each picture counts once
        self.num_measured += 1
        if not self.best or float(losses_now.mean()) < sum(self.best) / len(self.best):
            self.best_step, self.best, self.best_gain, self.num_worse = step, losses_now.tolist(), gain(base, now), 0
            return True
        # Clearly worse only where the whole interval lies above the best: held-out sets are small and losses noisy.
        self.num_worse = self.num_worse + 1 if self._rise(losses_now)[0] > 0 else 0
        return False

    def _rise(self, now: Tensor) -> tuple[float, float]:
        """95 % interval of how far the loss lies above the best's, relative to it."""
        low, high = interval(torch.tensor(self.best, dtype=torch.float64), now)
        return -high, -low  # a gain of -x is a rise of x, so that the ends change places

    def alarm(self, step: int) -> Overtrained | None:
        """The alarm, once: when the loss has been clearly above its best for several measurements in a row."""
        if self.num_worse != PATIENCE:
            return None
        return Overtrained(
            step,
            self.best_step,
            f"the held-out loss was lowest at step {self.best_step} and has been clearly above it for {PATIENCE} "
            f"measurements: it learns the training pictures by heart. best.safetensors will be step {self.best_step}; "
            f"more pictures, a lower rank or learning rate would help.",
        )

    def reason(self, last: Validated, now: Tensor) -> str:
        """Why the best step is recommended, held against the last one (N, 10)."""
        which = f"the lowest held-out loss of {self.num_measured} measurements"
        if self.num_measured == 1:
            which = "the only held-out loss that was measured"
        best = f"step {self.best_step} has {which}, {printing.beside_base(self.best_gain)}"
        if self.best_step == last.step:
            may = (
                "a longer run may still gain"
                if self.best_gain > 0
                else "the base alone does no worse on these pictures"
            )
            return f"{best}; it is the last step, so {may}."

        # Against the last step: clearly worse if the whole interval lies above zero.
        low, high = self._rise(now.mean(1))
        verdict = (
            "clearly worse: it had begun to learn the pictures by heart."
            if low > 0
            else "no clear difference: the earlier one moves the base less."
        )
        by_heart = ""
        if last.train_gain is not None:
            by_heart = f" The gain on training pictures was {last.train_gain * 100:.1f} % by then."
        return (
            f"{best}. At the last step, {last.step}, the loss was {low * 100:.1f} to {high * 100:.1f} % above that "
            f"(95 % interval), {verdict}{by_heart}"
        )
