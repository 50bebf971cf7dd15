"""Lumina-Image 2.0 and what is made from it (Neta, NetaYume): a transformer that predicts flow, conditioned on Gemma 2.

One stack of blocks works on text and image. A caption is read after the pipeline's system prompt, a negative prompt
alone. The denoiser's time runs from noise to picture and its prediction points there, the other way round than ours.
Gemma is never adapted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import Lumina2Pipeline
    from torch import Tensor, nn

name = "lumina2"
title = "Lumina-Image 2.0"
pipeline = "Lumina2Pipeline"
prediction = ("flow",)
guidance = "classifier-free"
guidance_layout = "separate calls"
batch_limit = "prompt lengths"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
comfyui_graph = False
default_px = 1024
usual = (30, 4.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "lumina-2/lora"
base_version = "lumina2"

_TOKENS = 256
_PROMPT_BEGINS = " <Prompt Start> "
_BLOCKS = r"(layers|noise_refiner|context_refiner)\.\d+"
_ATTENTION = r"attn\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"feed_forward\.linear_[123]"
_MODULATION = r"(layers|noise_refiner)\.\d+\.norm1\.linear"
_LINEAR = rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})|{_MODULATION}"
_EMBEDDERS = r"x_embedder|time_caption_embed\.(caption_embedder\.1|timestep_embedder\.linear_[12])"
_OUTPUT = r"norm_out\.linear_[12]"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_OUTPUT}",
}
text_layers = ""
placeless_layers = r"\.(context_refiner|time_caption_embed)"
joined_layers = r"\.layers\."
call_settings = pipelines.masked_call
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.masked_batch
schedule = pipelines.flow_schedule


def named_as(pipe: Lumina2Pipeline, modules: set[str]) -> tuple[str, str]:
    """ComfyUI's names for the published width: it finds nothing of a file in diffusers' names (0.10.0)."""
    return ("comfyui", "2B") if pipe.transformer.config.hidden_size == 2304 else ("", "")


def load(folder: Path, device: str, dtype: torch.dtype) -> Lumina2Pipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def window(pipe: Lumina2Pipeline) -> int:
    """How many tokens of a caption are read: what the system prompt and the mark leave."""
    return _TOKENS - 1 - count_tokens(pipe, pipe.system_prompt + _PROMPT_BEGINS)


def count_tokens(pipe: Lumina2Pipeline, caption: str) -> int:
    """How many tokens a caption has for Gemma, without its mark."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: Lumina2Pipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), mask: (L,)}` a caption, the mask 0 at padding; long ones are cut off."""
    hidden, mask, _, _ = pipe.encode_prompt(
        captions, False, device=pipelines.device_of(pipe), max_sequence_length=_TOKENS
    )
    return [{"encoder_hidden_states": row, "mask": row_mask} for row, row_mask in zip(hidden, mask, strict=True)]


def encode_negative(pipe: Lumina2Pipeline, prompts: list[str]) -> list[dict[str, Tensor]]:
    """Negative prompts, without the system prompt."""
    _, _, hidden, mask = pipe.encode_prompt(
        [""] * len(prompts), True, prompts, device=pipelines.device_of(pipe), max_sequence_length=_TOKENS
    )
    return [{"encoder_hidden_states": row, "mask": row_mask} for row, row_mask in zip(hidden, mask, strict=True)]


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    text = conditioning["encoder_hidden_states"]
    velocity: Tensor = denoiser(
        noised, timestep=1 - timesteps / 1000, encoder_hidden_states=text, encoder_attention_mask=conditioning["mask"]
    ).sample
    return -velocity  # it points from noise to latents


def file_keys(pipe: Lumina2Pipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.gemma(_TOKENS)
        transformer = diffusers.Lumina2Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, hidden_size=64, num_layers=2,
            num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2, multiple_of=16, norm_eps=1e-5,
            axes_dim_rope=(8, 4, 4), axes_lens=(300, 128, 128), cap_feat_dim=encoder.config.hidden_size,
        )  # fmt: skip
        vae = tiny_parts.autoencoder(4, 0.3611, 0.1159, 4)
        pipe = diffusers.Lumina2Pipeline(
            transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0), vae, encoder, tokenizer
        )
    pipe.save_pretrained(str(folder))
    return folder
