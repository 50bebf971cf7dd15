"""HiDream-I1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "HiDreamImagePipeline"
TOKENS = 32  # what the tiny model's tokenizer takes


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_hidream.py, which turns the prediction round."""
    t5, _, llama, _, pooled, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False, max_sequence_length=TOKENS)
    said = pipe.transformer(
        hidden_states=noised, encoder_hidden_states_t5=t5, encoder_hidden_states_llama3=llama, pooled_embeds=pooled, timesteps=timestep, return_dict=False
    )[0]  # fmt: skip
    return said * -1


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    """The pipeline draws squares of its own size, so that is made the one asked for."""
    assert stack.width_px == stack.height_px
    pipe.default_sample_size = stack.width_px // pipe.vae_scale_factor
    return {"negative_prompt": stack.negative_prompt, "guidance_scale": stack.guidance_scale, "max_sequence_length": TOKENS}
