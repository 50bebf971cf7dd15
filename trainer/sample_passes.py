"""Passes of the denoiser outside of training, over pictures of the run: to see what flows through it, or its shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from trainer import objective

if TYPE_CHECKING:
    from trainer.training_model import TrainingModel

_FIRST_STEPS = 4  # enough for a start from activations to see every kind of layer's inputs


def first_batches(model: TrainingModel) -> Callable[[], None]:
    """Runs a few batches through the denoiser, for methods whose start depends on what flows there."""

    def run() -> None:
        for step in range(_FIRST_STEPS):
            for batch in model.encoded.batches(step):
                # Streams of their own: what a start draws changes nothing of what training draws.
                noise_rng = objective.generator(model.config.seed, "init noise", batch.number)
                timesteps_rng = objective.generator(model.config.seed, "init timesteps", batch.number)
                noise = objective.noise_like(batch.latents, noise_rng)
                timesteps = objective.sample_timesteps(model.schedule, len(batch), timesteps_rng)
                noised = objective.add_noise(model.schedule, batch.latents, noise, timesteps)
                with torch.no_grad():
                    model.predict(noised, timesteps, batch.captions, batch.frames)

    return run


def each_shape(model: TrainingModel) -> None:
    """One pass of the denoiser for each shape and number of pictures that steps will have."""
    order, passed = model.encoded.order, set[tuple[Any, int]]()
    for number in range(order.num_batches):
        samples = order.batch(number)
        bucket = samples[0].bucket
        for size in {len(rows) for rows in model.parts(len(samples))}:
            if (bucket, size) in passed:
                continue
            passed.add((bucket, size))
            batch = model.encoded.batch(number, samples)
            # What is seen does not depend on the noise level; the middle of the schedule will do.
            timesteps = torch.full((size,), model.schedule.num_timesteps // 2)
            model.predict(batch.latents[:size], timesteps, batch.captions[:size], batch.frames[:size])
