"""Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "StableDiffusionXLPipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_text_to_image_lora_sdxl.py."""
    hidden, _, pooled, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False)
    sizes = pipe._get_add_time_ids(size[:2], size[2:4], size[4:], torch.float32, pooled.shape[-1])
    return pipe.unet(
        noised, timestep, encoder_hidden_states=hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
    ).sample


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {
        "negative_prompt": stack.negative_prompt,
        "guidance_scale": stack.guidance_scale,
        "guidance_rescale": stack.guidance_rescale or 0.0,
    }
