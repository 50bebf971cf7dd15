"""Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "StableDiffusionPipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, _ = pipe.encode_prompt(caption, "cpu", 1, False)
    return pipe.unet(noised, timestep, encoder_hidden_states=hidden).sample


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {
        "negative_prompt": stack.negative_prompt,
        "guidance_scale": stack.guidance_scale,
        "guidance_rescale": stack.guidance_rescale or 0.0,
    }
