"""What the objective's settings make of a batch: its noise, its timesteps, and how much each error counts.

`trainer/objective.py` holds what plug-ins may see; here is what depends on the settings. Every draw is made on the CPU
in fp32 from the generator handed in, so that every device sees the same. With the default settings every function gives
the very numbers of `objective`, so earlier results stand. Checked against diffusers in `tests/test_loss.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import choices, objective
from trainer.config import ObjectiveConfig
from trainer.errors import ConfigError
from trainer.objective import Schedule

MIN_SNR = 1e-3  # debiased weights are capped at 1 / sqrt(MIN_SNR) = 31.6; the noisiest timestep of SD 1.5 has 14.6


# Timesteps.


def draw_timesteps(
    config: ObjectiveConfig, schedule: Schedule, size: int, rng: torch.Generator, image_tokens: int
) -> Tensor:
    """Timesteps (size,) on the CPU: integers 0..T-1 for epsilon and v, floats in [1, T] for flow.

    A quantile is drawn, 0 being clean, then shifted, then laid into [timesteps_low, timesteps_high) of the schedule: as
    in sd-scripts and musubi-tuner a narrower range squeezes the density, it doesn't cut it off. `image_tokens` of a
    picture as the denoiser counts them set the resolution-aware shift.
    """
    # The plain case, drawn as `objective` does, so that earlier results stand.
    is_whole = (config.timesteps_low, config.timesteps_high) == (0.0, 1.0)
    if config.timesteps == "uniform" and config.shift == "none" and is_whole:
        return objective.sample_timesteps(schedule, size, rng)

    # A share of the schedule, laid into the range: any number of it for flow, one of its integers else.
    share = _shift(config, schedule, _quantiles(config, size, rng), image_tokens)
    low, high, last = config.timesteps_low, config.timesteps_high, schedule.num_timesteps
    if schedule.prediction == "flow":
        return (last * (low + (high - low) * share)).clamp(1, last).float()
    # A narrow range still holds one timestep, the last one at most.
    first = min(_steps_below(low, last), last - 1)
    count = max(1, _steps_below(high, last) - first)
    return first + (count * share).floor().clamp(0, count - 1).long()


def _quantiles(config: ObjectiveConfig, size: int, rng: torch.Generator) -> Tensor:
    """Quantiles (size,) in [0, 1], float64 (arXiv 2403.03206, section 3.1).

    They are drawn in fp32, as diffusers' `compute_density_for_timestep_sampling` does. Read as the paper does, 1 is all
    noise; diffusers' own scripts look them up in a falling list of timesteps, where 1 is clean. Not its function
    itself: with another mean or deviation than 0 and 1 it rounds the normal numbers otherwise, and a seed would give
    other timesteps than it has.
    """
    if config.timesteps in ("logit-normal", "sigmoid"):  # sigmoid is its standard form
        mean, std = (config.timesteps_mean, config.timesteps_std) if config.timesteps == "logit-normal" else (0.0, 1.0)
        return torch.sigmoid(torch.randn(size, generator=rng) * std + mean).double()
    if config.timesteps not in ("mode", "uniform"):
        raise choices.unknown(config, "timesteps", "objective.")
    u = torch.rand(size, generator=rng)
    # Positive scales favour the middle of the schedule, negative ones its ends ("mode sampling with heavy tails").
    if config.timesteps == "mode":
        u = 1 - u - config.timesteps_mode_scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)
    return u.double().clamp(0, 1)


def _shift(config: ObjectiveConfig, schedule: Schedule, share: Tensor, image_tokens: int) -> Tensor:
    """Shares moved towards noise: s t / (1 + (s - 1) t) (arXiv 2403.03206, section 5.3.2)."""
    if config.shift == "none":
        return share
    if config.shift not in ("fixed", "resolution"):
        raise choices.unknown(config, "shift", "objective.")
    factor = config.shift_factor
    if config.shift == "resolution":  # as FLUX: log s is linear in the tokens, not held within the two
        (tokens, mu), (more_tokens, more_mu) = schedule.shift_at_tokens
        factor = math.exp(mu + (more_mu - mu) * (image_tokens - tokens) / (more_tokens - tokens))
    return factor * share / (1 + (factor - 1) * share)


def _steps_below(share: float, num_timesteps: int) -> int:
    """How many timesteps lie below this share of the schedule; 0.07 * 1000 is a little more than 70 in floats."""
    return math.ceil(share * num_timesteps - 1e-6)


# Noise.


def draw_noise(config: ObjectiveConfig, latents: Tensor, rng: torch.Generator) -> Tensor:
    """Noise of the shape, dtype and device of latents (B, C, h, w).

    Multi-resolution noise first, at unit deviation, then the offset: a mean of its own for each picture and channel
    (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
    """
    if not config.multires_noise and not config.noise_offset:
        return objective.noise_like(latents, rng)
    # The order of the draws is part of what a seed means.
    noise = torch.randn(latents.shape, generator=rng)
    if config.multires_noise:
        noise = _pyramid(noise, config.multires_noise, config.multires_discount, rng)
    if config.noise_offset:
        noise = noise + config.noise_offset * torch.randn(latents.shape[:2] + (1,) * (latents.ndim - 2), generator=rng)
    return noise.to(latents.device, latents.dtype)


def _pyramid(noise: Tensor, levels: int, discount: float, rng: torch.Generator) -> Tensor:
    """Noise with coarser noise mixed in, each picture of unit deviation.

    Level i is mixed in at discount**i, and is between 2**i and 4**i times coarser.

    https://wandb.ai/johnowhitaker/multires_noise, with two changes. Its level 0 is a second full-size noise: here the
    first is scaled by sqrt(2) instead, the same in distribution, so that one level is not none. It divides by the
    deviation of the whole batch, which would let a picture's noise depend on its neighbours.
    """
    height, width = noise.shape[-2:]
    mixed = math.sqrt(2) * noise
    for level in range(1, levels + 1):
        coarser = (2 + 2 * float(torch.rand((), generator=rng))) ** level
        size = max(1, int(height / coarser)), max(1, int(width / coarser))
        # Each channel as a picture of its own: a family's latents may have an axis of frames, which `bilinear` refuses.
        coarse = torch.randn((math.prod(noise.shape[:-2]), 1, *size), generator=rng)
        mixed = mixed + discount**level * F.interpolate(coarse, (height, width), mode="bilinear").reshape(noise.shape)
        if 1 in size:  # nothing is coarser than one value a side
            break
    return mixed / mixed.flatten(1).std(1).reshape(-1, *(1,) * (noise.ndim - 1))


def perturb(config: ObjectiveConfig, noise: Tensor, rng: torch.Generator) -> Tensor:
    """Noise as the denoiser sees it; its target keeps the noise as it was (arXiv 2301.11706)."""
    if not config.input_perturbation:
        return noise
    return noise + config.input_perturbation * objective.noise_like(noise, rng)


# Errors.


def elements(config: ObjectiveConfig, prediction: Tensor, target: Tensor) -> Tensor:
    """The loss of each element, float32, of the predictions' shape; `huber` is `huber_delta` times `smooth_l1`."""
    prediction, target = prediction.float(), target.float()
    if config.loss == "huber":
        return F.huber_loss(prediction, target, reduction="none", delta=config.huber_delta)
    if config.loss == "smooth_l1":
        return F.smooth_l1_loss(prediction, target, reduction="none", beta=config.huber_delta)
    if config.loss == "l2":
        return (prediction - target).square()
    raise choices.unknown(config, "loss", "objective.")


def weights(config: ObjectiveConfig, schedule: Schedule, timesteps: Tensor) -> Tensor:
    """What each picture's loss is multiplied by, float32 (B,), on the timesteps' device.

    SNR = a / (1 - a). It is 0 at the last timestep of a base with zero terminal SNR; every weight is finite there:

    min-snr   epsilon min(SNR, g) / SNR, which tends to 1; v min(SNR, g) / (SNR + 1), which tends to 0: the paper's
              weight of the picture's own error, min(SNR, g), is 0 where nothing of the picture is left (arXiv
              2303.09556).
    debiased  How much an error of the prediction grows in the picture it implies (arXiv 2310.08442): epsilon
              1 / sqrt(SNR), held below 1 / sqrt(MIN_SNR); the same reasoning gives v 1 / sqrt(SNR + 1), at most 1.
    snr       SNR, so 0 there.

    Raises: ConfigError for a flow base, which has no SNR schedule.
    """
    if config.weighting == "none":
        return torch.ones(len(timesteps), device=timesteps.device)
    if schedule.alphas_cumprod is None:
        raise ConfigError(
            f"objective.weighting is {config.weighting!r}, but this base predicts flow; set none, or timesteps = "
            f"logit-normal."
        )
    alphas = schedule.alphas_cumprod.double()[timesteps.cpu()]
    snr, epsilon = alphas / (1 - alphas), schedule.prediction == "epsilon"
    if config.weighting == "min-snr":
        # gamma / SNR rather than min(SNR, gamma) / SNR: 5 / 0 is inf, and the minimum takes the 1.
        by_snr = (
            (config.min_snr_gamma / snr).clamp(max=1) if epsilon else snr.clamp(max=config.min_snr_gamma) / (snr + 1)
        )
    elif config.weighting == "debiased":
        by_snr = snr.clamp(min=MIN_SNR).rsqrt() if epsilon else (snr + 1).rsqrt()
    elif config.weighting == "snr":
        by_snr = snr
    else:
        raise choices.unknown(config, "weighting", "objective.")
    return by_snr.float().to(timesteps.device)


def per_picture(elements: Tensor, mask: Tensor | None, unmasked_weight: float) -> Tensor:
    """The mean error of each picture (B,) of elements (B, C, h, w).

    With a mask (B, 1, h, w) in [0, 1], the mean weighted by mask + (1 - mask) unmasked_weight: divided by the weights'
    sum, so that a small mask is not a small loss. A picture all of whose weights are 0 has loss 0.
    """
    if mask is None:
        return elements.flatten(1).mean(1)
    share = (mask + (1 - mask) * unmasked_weight).to(elements.dtype).expand_as(elements).flatten(1)  # (B, C * h * w)
    total = share.sum(1)
    return (elements.flatten(1) * share).sum(1) / torch.where(total > 0, total, 1)
