"""Chroma. Diffusers has no training script for it; its pipeline's own step is the truth, with a mask that masks.

The pipeline's is of ones and zeros in floats, which attention adds to its scores
(https://github.com/huggingface/diffusers/issues/12116).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "ChromaPipeline"
TOKENS = 32  # what the tiny model's tokenizer takes


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, text_ids, mask, _, _, _ = pipe.encode_prompt(
        caption, do_classifier_free_guidance=False, max_sequence_length=TOKENS
    )
    packed = pipe._pack_latents(noised, *noised.shape)
    prediction = pipe.transformer(
        hidden_states=packed,
        timestep=timestep / 1000,
        encoder_hidden_states=hidden,
        txt_ids=text_ids,
        img_ids=pipe._prepare_latent_image_ids(
            1, noised.shape[2] // 2, noised.shape[3] // 2, noised.device, noised.dtype
        ),
        attention_mask=pipe._prepare_attention_mask(1, packed.shape[1], noised.dtype, mask > 0),
        return_dict=False,
    )[0]
    return pipe._unpack_latents(
        prediction, *(side * pipe.vae_scale_factor for side in noised.shape[2:]), pipe.vae_scale_factor
    )


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    positive, _, positive_mask, negative, _, negative_mask = pipe.encode_prompt(
        stack.prompt, stack.negative_prompt, max_sequence_length=TOKENS
    )
    return {
        "prompt": None,
        "prompt_embeds": positive,
        "prompt_attention_mask": positive_mask > 0,
        "negative_prompt_embeds": negative,
        "negative_prompt_attention_mask": negative_mask > 0,
        "guidance_scale": stack.guidance_scale,
    }
