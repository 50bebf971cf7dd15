"""Qwen-Image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "QwenImagePipeline"


def latents(pipe: Any, image: Tensor) -> Tensor:
    """As train_dreambooth_lora_qwen_image.py, without its frame."""
    mean, deviation = (
        torch.tensor(values).view(1, pipe.vae.config.z_dim, 1, 1, 1)
        for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    return ((pipe.vae.encode(image[None].unsqueeze(2)).latent_dist.mode() - mean) * (1 / deviation)).squeeze(2)


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_qwen_image.py."""
    hidden, mask = pipe.encode_prompt(caption)
    height, width = noised.shape[2:]
    prediction = pipe.transformer(
        hidden_states=pipe._pack_latents(noised, *noised.shape), encoder_hidden_states=hidden,
        encoder_hidden_states_mask=mask, timestep=timestep / 1000,
        img_shapes=[[(1, height // 2, width // 2)]], return_dict=False,
    )[0]  # fmt: skip
    return pipe._unpack_latents(
        prediction, height * pipe.vae_scale_factor, width * pipe.vae_scale_factor, pipe.vae_scale_factor
    ).squeeze(2)


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "true_cfg_scale": stack.guidance_scale}
