"""What a picture looks like before it is done: a pipeline's latents after some step, decoded by its own autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> Image | None:
    """The picture of one latent (C, h, w) with the noise it still has; None where the pipeline packs its latents."""
    vae = getattr(pipe, "vae", None)
    if latents.ndim != 3 or vae is None or latents.shape[0] != getattr(vae.config, "latent_channels", 0):
        return None
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    unscaled = latents[None].to(vae.dtype) / vae.config.scaling_factor + shift
    decoded = vae.decode(unscaled, return_dict=False)[0]
    pictures: list[Image] = pipe.image_processor.postprocess(decoded.detach(), output_type="pil")
    return pictures[0]
