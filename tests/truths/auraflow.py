"""AuraFlow. Diffusers has no training script for it; its pipeline's own step is the truth."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "AuraFlowPipeline"
TOKENS = 32  # what the tiny model's tokenizer takes


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, _, _, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    return pipe.transformer(noised, encoder_hidden_states=hidden, timestep=timestep / 1000, return_dict=False)[0]


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    return {
        "negative_prompt": stack.negative_prompt,
        "guidance_scale": stack.guidance_scale,
        "max_sequence_length": TOKENS,
    }
