"""Lumina-Image 2.0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "Lumina2Pipeline"


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_lumina2.py, whose target is latents minus noise: the same, pointing the other way."""
    hidden, mask, _, _ = pipe.encode_prompt([caption], do_classifier_free_guidance=False)
    prediction = pipe.transformer(
        hidden_states=noised, encoder_hidden_states=hidden, encoder_attention_mask=mask,
        timestep=(1000 - timestep) / 1000, return_dict=False
    )[0]  # fmt: skip
    return -prediction


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale}
