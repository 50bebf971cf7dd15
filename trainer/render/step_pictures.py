"""What a picture looks like before it is done: a pipeline's latents after some step, decoded by its own autoencoder.

Only read: neither latents nor pipeline are changed, and no random number is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from trainer import pipelines

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_LEAST_PX = 256  # smaller pictures are not halved


@torch.no_grad()
def decode(pipe: Any, latents: Tensor, size: tuple[int, int]) -> Image | None:
    """The picture of one latent with the noise it still has: (C, h, w), or tokens (h/2 * w/2, 4C) of 2 x 2 latents.

    `size` is (h, w). None where the pipeline has its latents in yet another way.
    """
    unscaled = _unscaled(pipe, latents, size)
    return None if unscaled is None else _picture(pipe, unscaled)


@torch.no_grad()
def decode_small(pipe: Any, latents: Tensor, size: tuple[int, int], longest_px: int) -> Image | None:
    """The same at half the size or less, up to `longest_px`, at a fourth of the cost; below 256 px at its own size."""
    unscaled = _unscaled(pipe, latents, size)
    if unscaled is None:
        return None
    longest = max(size) * pipe.vae_scale_factor
    share = min(1.0, longest_px / longest, max(0.5, _LEAST_PX / longest))
    if share < 1:
        smaller = [max(1, int(side * share + 1e-6)) for side in size]
        unscaled = torch.nn.functional.interpolate(unscaled.float(), smaller, mode="area").to(unscaled.dtype)
    return _picture(pipe, unscaled)


def _unscaled(pipe: Any, latents: Tensor, size: tuple[int, int]) -> Tensor | None:
    """Latents (1, C, h, w) as the autoencoder takes them; None if they aren't of a kind that is known here."""
    vae, (height, width) = getattr(pipe, "vae", None), size
    if vae is None:
        return None
    config = vae.config
    channels: int = getattr(config, "latent_channels", 0) or getattr(config, "z_dim", 0)  # the second is Qwen's
    latents = latents[None].to(vae.dtype)
    is_packed = latents.shape[1:] == (height * width // 4, 4 * channels)
    if is_packed and hasattr(vae, "bn"):  # FLUX.2: each value of a token has its own mean and deviation
        latents = latents * (vae.bn.running_var + config.batch_norm_eps).sqrt() + vae.bn.running_mean
    if is_packed:
        latents = pipelines.latents(latents, latents.new_empty(1, channels, height, width))
    if latents.shape[1:] != (channels, height, width):
        return None
    if hasattr(vae, "bn"):
        return latents
    scale, shift = getattr(config, "scaling_factor", None) or 1.0, getattr(config, "shift_factor", None) or 0.0
    if not getattr(config, "latents_mean", None) or not getattr(config, "latents_std", None):
        return latents / scale + shift
    mean, deviation = (
        torch.tensor(values).to(latents).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    return latents * deviation / scale + mean


def _picture(pipe: Any, unscaled: Tensor) -> Image | None:
    """The picture; None if the autoencoder runs over in its dtype."""
    is_film = hasattr(pipe.vae.config, "z_dim")  # a picture is a film of one frame
    decoded = pipe.vae.decode(unscaled[:, :, None] if is_film else unscaled, return_dict=False)[0]
    decoded = decoded[:, :, 0] if is_film else decoded
    if not decoded.isfinite().all():
        return None
    pictures: list[Image] = pipe.image_processor.postprocess(decoded.detach(), output_type="pil")
    return pictures[0]
