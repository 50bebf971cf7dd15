"""What the denoiser is asked to predict, and from what: epsilon, v and flow, on tensors.

`latents`, `noise` (B, C, h, w); `timesteps` (B,) integers 0..999 for epsilon and v, sigma = t / 1000 in (0, 1] for
flow. How much each error counts is in `trainer/loss.py`. Checked against diffusers' DDPM, DDIM and flow-match
schedulers in `tests/test_objective.py`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.errors import ConfigError

# What a base was trained with.


@dataclass(frozen=True)
class Schedule:
    """The noise a base was trained with; `alphas_cumprod` (T,) for epsilon and v, None for flow.

    `shift_at_tokens`: the logarithm of a flow base's shift at two numbers of image tokens, linear between and beyond
    them; by default those of FLUX, which are diffusers' own too.
    """

    prediction: Literal["epsilon", "v", "flow"]
    alphas_cumprod: Tensor | None = None
    num_timesteps: int = 1000
    shift_at_tokens: tuple[tuple[int, float], tuple[int, float]] = ((256, 0.5), (4096, 1.15))


def flow_schedule(scheduler: Mapping[str, Any]) -> Schedule:
    """The schedule of a flow base, from the configuration of its `FlowMatchEulerDiscreteScheduler`."""
    # A shift that goes by the picture's size, or a shift for all sizes: the same at both ends.
    if scheduler.get("use_dynamic_shifting"):
        few, many = int(scheduler.get("base_image_seq_len", 256)), int(scheduler.get("max_image_seq_len", 4096))
        ends = (few, float(scheduler.get("base_shift", 0.5))), (many, float(scheduler.get("max_shift", 1.15)))
    else:
        shift = math.log(float(scheduler.get("shift", 1.0)))
        ends = (256, shift), (4096, shift)
    return Schedule("flow", None, int(scheduler.get("num_train_timesteps", 1000)), ends)


@dataclass(frozen=True)
class Guidance:
    """How closely a picture follows its prompt; 1 is off.

    It is positive + (scale - 1) * (positive - negative), of the predictions for the positive and the negative prompt.
    `rescale` is how far the deviation of that is brought back to the positive one's (arXiv 2305.08891, section 3.4). A
    distilled base takes `scale` as an input, and `true_scale` is that of guidance as above.
    """

    scale: float
    rescale: float = 0.0
    true_scale: float = 1.0


# Random draws.


def generator(seed: int, stream: str, index: int) -> torch.Generator:
    """A CPU generator for one draw: the same for (seed, stream, index) whatever was drawn before, on any machine."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise_like(latents: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise, drawn on the CPU in fp32 so that every device sees the same."""
    return torch.randn(latents.shape, generator=rng).to(latents.device, latents.dtype)


def sample_timesteps(schedule: Schedule, size: int, rng: torch.Generator) -> Tensor:
    """Timesteps (size,), uniform over the schedule: integers 0..T-1, or 1..T for flow."""
    # Flow at 0 is the picture itself, where there is nothing to learn.
    steps = torch.randint(0, schedule.num_timesteps, (size,), generator=rng)
    return steps + 1 if schedule.prediction == "flow" else steps


# Noised latents and targets.


def add_noise(schedule: Schedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """The noised latents: sqrt(a) x + sqrt(1 - a) noise for epsilon and v, (1 - s) x + s noise for flow.

    The first is DDPM's (arXiv 2006.11239, eq. 4).
    """
    signal, spread = _levels(schedule, latents, timesteps)
    return signal * latents + spread * noise


def target(schedule: Schedule, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser should predict.

    The noise for epsilon, sqrt(a) noise - sqrt(1 - a) x for v (arXiv 2202.00512), noise - x for flow.
    """
    if schedule.prediction == "epsilon":
        return noise
    if schedule.prediction == "flow":
        return noise - latents
    if schedule.prediction != "v":
        raise ConfigError(f"the base predicts {schedule.prediction!r}; allowed: epsilon, v, flow.")
    signal, spread = _levels(schedule, latents, timesteps)
    return signal * noise - spread * latents


def _levels(schedule: Schedule, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (B, 1, 1, 1) of signal and noise."""
    if schedule.alphas_cumprod is None:
        sigma = (timesteps.float() / schedule.num_timesteps).to(latents.device, latents.dtype)
        signal, spread = 1 - sigma, sigma
    else:
        # In float32, and only the roots are rounded: near either end 1 - a in bfloat16 would be wrong by percents.
        alphas = schedule.alphas_cumprod[timesteps.cpu()].to(latents.device)
        signal, spread = alphas.sqrt().to(latents.dtype), (1 - alphas).sqrt().to(latents.dtype)
    shape = (-1,) + (1,) * (latents.ndim - 1)
    return signal.reshape(shape), spread.reshape(shape)
