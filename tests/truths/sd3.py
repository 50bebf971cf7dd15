"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "StableDiffusion3Pipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_sd3.py."""
    hidden, _, pooled, _ = pipe.encode_prompt(caption, caption, caption, do_classifier_free_guidance=False)
    return pipe.transformer(
        hidden_states=noised,
        timestep=timestep,
        encoder_hidden_states=hidden,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale}
