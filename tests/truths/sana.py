"""Sana."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "SanaPipeline"
TOKENS = 32  # what the tiny model's tokenizer keeps


def latents(pipe: Any, image: Tensor) -> Tensor:
    return pipe.vae.encode(image[None]).latent * pipe.vae.config.scaling_factor


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_sana.py, with the instruction that the pipeline draws with."""
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    hidden, mask, _, _ = pipe.encode_prompt(
        [caption], do_classifier_free_guidance=False, max_sequence_length=TOKENS, complex_human_instruction=instruction
    )
    return pipe.transformer(
        hidden_states=noised,
        encoder_hidden_states=hidden,
        encoder_attention_mask=mask,
        timestep=timestep,
        return_dict=False,
    )[0]


def scheduler(pipe: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    options = {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale}
    return options | {"max_sequence_length": TOKENS, "use_resolution_binning": False}
