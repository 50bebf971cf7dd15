"""Sana: a transformer with linear attention that predicts flow, conditioned on Gemma 2.

Its latents are 32 times smaller than the picture. A caption is read after the instruction that the pipeline puts before
prompts, a negative prompt is read alone, both as the pipeline does it. Gemma is never adapted: no tool reads a LoRA of
it. Real bases come with a multistep solver for flow, whose `flow_shift` is that of the training too.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import SanaPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "sana"
title = "Sana"
pipeline = "SanaPipeline"
prediction = ("flow",)
guidance = "classifier-free"
caption_tokens = 298  # the pipeline keeps 300, with the mark and one of the instruction
comfyui_graph = False
default_px = 1024
usual = (20, 4.5)  # the pipeline's own
multiple_px = 32
patch = 1
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "sana/lora"
base_version = "sana"

_ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"transformer_blocks\.\d+\.ff\.conv_(inverted|point)"
_CAPTION = r"caption_projection\.linear_[12]"
_MODULATION = r"time_embed\.linear"
_LINEAR = rf"{_ATTENTION}|{_FEED_FORWARD}|{_CAPTION}|{_MODULATION}"
_OUTSIDE_BLOCKS = r"patch_embed\.proj|proj_out|time_embed\.emb\.timestep_embedder\.linear_[12]"
targets = {
    "attention": _ATTENTION,
    "attention-ff": rf"{_ATTENTION}|{_FEED_FORWARD}",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_OUTSIDE_BLOCKS}",
}
convolution_targets = ("attention-ff", "linear")
text_layers = r"\.attn2\.to_[kv]$"
placeless_layers = r"\.caption_(norm|projection)"
joined_layers = ""
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.masked_batch


def load(folder: Path, device: str, dtype: torch.dtype) -> SanaPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs."""
    return pipelines.load(pipeline, folder, device, dtype)


def _tokens(pipe: SanaPipeline) -> int:
    return min(caption_tokens + 2, int(pipe.tokenizer.model_max_length))


def window(pipe: SanaPipeline) -> int:
    """How many tokens of a caption are kept, the mark and one of the instruction left out."""
    return _tokens(pipe) - 2


def count_tokens(pipe: SanaPipeline, caption: str) -> int:
    """How many tokens a caption has for Gemma, without its mark."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: SanaPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), mask: (L,)}` a caption, the mask 0 at padding; long ones are cut off."""
    # The instruction is written nowhere but as the default of an argument of the pipeline's call.
    instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    return _encoded(pipe, captions, instruction)


def encode_negative(pipe: SanaPipeline, prompts: list[str]) -> list[dict[str, Tensor]]:
    """Negative prompts, without the instruction."""
    return _encoded(pipe, prompts, None)


def _encoded(pipe: SanaPipeline, texts: list[str], instruction: list[str] | None) -> list[dict[str, Tensor]]:
    hidden, mask, _, _ = pipe.encode_prompt(
        texts,
        False,
        device=pipelines.device_of(pipe),
        max_sequence_length=_tokens(pipe),
        complex_human_instruction=instruction,
    )
    return [{"encoder_hidden_states": row, "mask": row_mask} for row, row_mask in zip(hidden, mask, strict=True)]


def encode_image(pipe: SanaPipeline, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], scaled as the denoiser knows them."""
    latents: Tensor = pipe.vae.encode(images.to(pipe.vae.device, pipe.vae.dtype)).latent
    return latents * float(pipe.vae.config.scaling_factor)


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    config: Any = denoiser.config
    prediction: Tensor = denoiser(
        noised,
        encoder_hidden_states=conditioning["encoder_hidden_states"],
        timestep=timesteps * config.timestep_scale,
        encoder_attention_mask=conditioning["mask"],
    ).sample
    return prediction


def schedule(pipe: SanaPipeline) -> Schedule:
    """The training noise of this base, with the shift its scheduler draws with, whichever kind that is."""
    from trainer import objective

    config = dict(pipe.scheduler.config)
    return objective.flow_schedule({"shift": config.get("flow_shift", 1.0)} | config)


def call_settings(
    pipe: SanaPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    return pipelines.masked_call(pipe, positive, negative, guidance) | {
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def file_keys(pipe: SanaPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer and ungrouped convolution -> its name in a LoRA file, the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.gemma(32)
        transformer = diffusers.SanaTransformer2DModel(
            patch_size=1, in_channels=8, out_channels=8, num_layers=2, num_attention_heads=4,
            attention_head_dim=16, num_cross_attention_heads=4, cross_attention_head_dim=16,
            cross_attention_dim=64, caption_channels=encoder.config.hidden_size, sample_size=16,
        )  # fmt: skip
        scheduler = diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        )
        pipe = diffusers.SanaPipeline(
            tokenizer, encoder, tiny_parts.deep_autoencoder(8, 0.41407), transformer, scheduler
        )
    pipe.save_pretrained(str(folder))
    return folder
