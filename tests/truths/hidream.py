"""HiDream-I1."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "HiDreamImagePipeline"
TOKENS = 20  # what the tiny model's T5 takes


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    """As train_dreambooth_lora_hidream.py, which turns the prediction round."""
    t5, _, llama, _, pooled, _ = pipe.encode_prompt(
        caption, do_classifier_free_guidance=False, max_sequence_length=TOKENS
    )
    prediction = pipe.transformer(
        hidden_states=noised, encoder_hidden_states_t5=t5, encoder_hidden_states_llama3=llama, pooled_embeds=pooled,
        timesteps=timestep, return_dict=False
    )[0]  # fmt: skip
    return prediction * -1


def shifted(pipe: Any, shares: Tensor, tokens: int) -> Tensor:
    """As the pipeline's scheduler does: for the largest picture, whatever this one's size is."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=shares.double().numpy(), mu=calculate_shift(pipe.transformer.max_seq))
    return scheduler.sigmas[:-1]


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    """The pipeline draws squares of its default size whatever is asked."""
    assert stack.width_px == stack.height_px
    pipe.default_sample_size = stack.width_px // pipe.vae_scale_factor
    return {
        "negative_prompt": stack.negative_prompt,
        "guidance_scale": stack.guidance_scale,
        "max_sequence_length": TOKENS,
    }
