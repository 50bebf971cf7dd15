"""FLUX.2 dev."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from trainer.config import StackConfig

PIPELINE = "Flux2Pipeline"
ASKED = {"max_sequence_length": 96, "text_encoder_out_layers": (1, 2, 3)}  # of the tiny model


def latents(pipe: Any, image: Tensor) -> Tensor:
    """As train_dreambooth_lora_flux2.py; the pipeline patchifies them, training here doesn't."""
    return pipe._unpatchify_latents(pipe._encode_vae_image(image[None], torch.Generator()))


def predict(pipe: Any, noised: Tensor, timestep: Tensor, caption: str, size: tuple[int, ...]) -> Tensor:
    hidden, text_ids = pipe.encode_prompt(caption, **ASKED)
    patches = pipe._patchify_latents(noised)
    ids = pipe._prepare_latent_ids(patches)
    prediction = pipe.transformer(
        hidden_states=pipe._pack_latents(patches), timestep=timestep / 1000, guidance=torch.full([1], 1.0),
        encoder_hidden_states=hidden, txt_ids=text_ids,
        img_ids=ids, return_dict=False,
    )[0]  # fmt: skip
    return pipe._unpatchify_latents(pipe._unpack_latents_with_ids(prediction, ids))


def shifted(pipe: Any, shares: Tensor, tokens: int) -> Tensor:
    """As the pipeline's scheduler does in fifty steps."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=shares.double().numpy(), mu=compute_empirical_mu(tokens, 50))
    return scheduler.sigmas[:-1]


def call(pipe: Any, stack: StackConfig) -> dict[str, Any]:
    """The pipeline takes no negative prompt."""
    assert not stack.negative_prompt
    return ASKED | {"guidance_scale": stack.guidance_scale}
