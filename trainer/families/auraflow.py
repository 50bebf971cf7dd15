"""AuraFlow: a transformer of joint, then single blocks that predicts flow; a T5 trained on the Pile encodes captions.

The text encoder is never adapted.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import foreign_json, pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import AuraFlowPipeline
    from torch import Tensor, nn

name = "auraflow"
title = "AuraFlow"
pipeline = "AuraFlowPipeline"
prediction = ("flow",)
guidance = "classifier-free"
caption_tokens = 255
default_px = 1024
usual = (50, 3.5)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "auraflow/lora"
base_version = "auraflow"

_BLOCKS = r"(joint|single)_transformer_blocks\.\d+"
_ATTENTION = r"attn\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"
_FEED_FORWARD = r"ff(_context)?\.(linear_[12]|out_projection)"
_MODULATION = r"norm1(_context)?\.linear"
_LINEAR = rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|{_MODULATION})"
_EMBEDDERS = r"pos_embed\.proj|context_embedder|time_step_proj\.linear_[12]"
_OUTPUT = r"norm_out\.linear|proj_out"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_OUTPUT}",
}
text_layers = r"\.attn\.(add_[kqv]_proj|to_add_out)$"
placeless_layers = r"\.context_embedder|_context\."
joined_layers = r"\.single_transformer_blocks\."
call_settings = pipelines.masked_call
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.masked_batch
schedule = pipelines.flow_schedule


def load(folder: Path, device: str, dtype: torch.dtype) -> AuraFlowPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def max_side_tokens(folder: Path) -> int:
    """How many tokens a picture's side may have: the side of the square of position embeddings.

    A picture gets the middle of that square. Beyond it diffusers silently takes wrong positions.
    """
    config = foreign_json.table(folder / "transformer" / "config.json")
    return isqrt(int(config["pos_embed_max_size"]))


def _tokens(pipe: AuraFlowPipeline) -> int:
    return min(caption_tokens + 1, int(pipe.tokenizer.model_max_length))


def window(pipe: AuraFlowPipeline) -> int:
    """How many tokens of a caption are read, the mark left out."""
    return _tokens(pipe) - 1


def count_tokens(pipe: AuraFlowPipeline, caption: str) -> int:
    """How many tokens a caption has, without its mark."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: AuraFlowPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), mask: (L,)}` a caption, both 0 at padding; long captions are cut off."""
    hidden, mask, _, _ = pipe.encode_prompt(
        captions, None, False, device=pipelines.device_of(pipe), max_sequence_length=_tokens(pipe)
    )
    return [
        {"encoder_hidden_states": row, "mask": row_mask[: len(row)]} for row, row_mask in zip(hidden, mask, strict=True)
    ]


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    prediction: Tensor = denoiser(
        noised, encoder_hidden_states=conditioning["encoder_hidden_states"], timestep=timesteps / 1000
    ).sample
    return prediction


def file_keys(pipe: AuraFlowPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.t5(32, "UMT5", 32)
        transformer = diffusers.AuraFlowTransformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
            attention_head_dim=16, num_attention_heads=4, caption_projection_dim=64,
            joint_attention_dim=32, out_channels=4, pos_embed_max_size=256,
        )  # fmt: skip
        pipe = diffusers.AuraFlowPipeline(
            tokenizer,
            encoder,
            tiny_parts.autoencoder(4, 0.13025, 0.0),
            transformer,
            diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        )
    pipe.save_pretrained(str(folder))
    return folder
