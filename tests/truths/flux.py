"""FLUX.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "FluxPipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_flux.py, at guidance 1."""
    hidden, pooled, text_ids = pipe.encode_prompt(caption, caption)
    packed = pipe._pack_latents(noised, *noised.shape)
    prediction = pipe.transformer(
        hidden_states=packed, timestep=timestep / 1000, guidance=torch.ones(1), pooled_projections=pooled,
        encoder_hidden_states=hidden, txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(1, noised.shape[2] // 2, noised.shape[3] // 2, "cpu", torch.float32),
        return_dict=False,
    )[0]  # fmt: skip
    return pipe._unpack_latents(
        prediction, *(side * pipe.vae_scale_factor for side in noised.shape[2:]), pipe.vae_scale_factor
    )


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {
        "negative_prompt": stack.negative_prompt,
        "guidance_scale": stack.guidance_scale,
        "true_cfg_scale": stack.true_guidance_scale,
    }
