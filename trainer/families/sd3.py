"""Stable Diffusion 3 and 3.5: a multimodal transformer that predicts flow, with two CLIP text encoders and a T5.

T5 may be left out. The T5 encoder is never adapted: no tool reads a LoRA of it for this family. LoRA files keep
diffusers' names, since diffusers has no reader of kohya's for it, and ComfyUI reads both; updates are written at scale
1, which ComfyUI takes for granted there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import foreign_json, pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusion3Pipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance

name = "sd3"
title = "Stable Diffusion 3 / 3.5"
pipeline = "StableDiffusion3Pipeline"
prediction = ("flow",)
guidance = "classifier-free"
default_px = 1024
usual = (28, 7.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "stable-diffusion-3/lora"
base_version = "sd3"

caption_tokens = 255
_T5_TOKENS = caption_tokens + 1  # of a prompt, as the pipeline has it by default
_ATTENTION = r"attn2?\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"
_LINEAR = rf"{_ATTENTION}|ff(_context)?\.net\.(0\.proj|2)|norm1(_context)?\.linear"
targets = {
    "attention": rf"transformer_blocks\.\d+\.{_ATTENTION}",
    "attention-ff": rf"transformer_blocks\.\d+\.({_ATTENTION}|ff(_context)?\.net\.(0\.proj|2))",
    "linear": rf"transformer_blocks\.\d+\.({_LINEAR})",
    "all": rf"transformer_blocks\.\d+\.({_LINEAR})|context_embedder|pos_embed\.proj|norm_out\.linear|proj_out",
}
text_targets = r".*\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"
text_layers = r"\.(attn\.(add_[kqv]_proj|to_add_out)|attn2\.to_[kv])$"
placeless_layers = r"\.context_embedder|_context\."
joined_layers = ""
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
schedule = pipelines.flow_schedule


def load(folder: Path, device: str, dtype: torch.dtype) -> StableDiffusion3Pipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode; nothing is fetched and no remote code runs."""
    index = foreign_json.table(folder / "model_index.json")
    absent = {part: None for part in ("text_encoder_3", "tokenizer_3") if not index.get(part, [None])[0]}
    return pipelines.load(pipeline, folder, device, dtype, **absent)


def max_side_tokens(folder: Path) -> int:
    """How many tokens a picture's side may have: the side of the square of positions, whose middle it is given."""
    return int(foreign_json.table(folder / "transformer" / "config.json")["pos_embed_max_size"])


def window(pipe: StableDiffusion3Pipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out; CLIP's where there is no T5."""
    return caption_tokens if pipe.text_encoder_3 is not None else int(pipe.tokenizer.model_max_length) - 2


def count_tokens(pipe: StableDiffusion3Pipeline, caption: str) -> int:
    """How many tokens a caption has for T5, or for CLIP, without marks."""
    tokenizer = pipe.tokenizer_3 if pipe.text_encoder_3 is not None else pipe.tokenizer
    return len(tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: StableDiffusion3Pipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L + 256, D), pooled: (P,)}` a caption: CLIP's window, then T5's.

    CLIP cuts long captions off at its window.
    """
    hidden, _, pooled, _ = pipe.encode_prompt(
        captions,
        None,
        None,
        device=pipelines.device_of(pipe),
        do_classifier_free_guidance=False,
        max_sequence_length=_T5_TOKENS,
    )
    return [{"encoder_hidden_states": row, "pooled": whole} for row, whole in zip(hidden, pooled, strict=True)]


def prepare_batch(conditionings: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`{encoder_hidden_states: (B, L, D), pooled: (B, P)}`."""
    return pipelines.together(conditionings, "encoder_hidden_states", "pooled")


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    prediction: Tensor = denoiser(
        hidden_states=noised,
        timestep=timesteps,
        encoder_hidden_states=conditioning["encoder_hidden_states"],
        pooled_projections=conditioning["pooled"],
    ).sample
    return prediction


def call_settings(
    pipe: StableDiffusion3Pipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    return pipelines.pooled_call(positive, negative, guidance)


def file_keys(pipe: StableDiffusion3Pipeline) -> dict[str, str]:
    """`component.module.path` of every linear and convolution -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture (3.5's norms and dual attention), saved in `folder`, without network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=4, caption_projection_dim=64, joint_attention_dim=64, pooled_projection_dim=64,
            out_channels=4, pos_embed_max_size=32, qk_norm="rms_norm", dual_attention_layers=(0,),
        )  # fmt: skip
        first, second, third = (
            tiny_parts.clip("CLIPTextModelWithProjection"),
            tiny_parts.clip("CLIPTextModelWithProjection"),
            tiny_parts.t5(64),
        )
        vae = tiny_parts.autoencoder(4, 1.5305, 0.0609)
        pipe = diffusers.StableDiffusion3Pipeline(
            transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *first, *second, *third
        )
    pipe.save_pretrained(str(folder))
    return folder
