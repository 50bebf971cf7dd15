"""Chroma: FLUX.1's blocks without its modulation layers, whose values a small network makes; T5 alone reads the
caption, and guidance is a second pass.

Padding of a caption is masked but for its first token, in the blocks too, as Chroma was trained. Two faults of
diffusers 0.42 are corrected here. Its pipeline makes a float mask of ones and zeros, which attention adds to its
scores, so that padding is attended to all the same (https://github.com/huggingface/diffusers/issues/12116): ours is
boolean, in training and in drawing. And its single blocks lose the mask under gradient checkpointing. T5 is never
adapted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import ChromaPipeline
    from torch import Tensor, nn

name = "chroma"
title = "Chroma"
pipeline = "ChromaPipeline"
prediction = ("flow",)
guidance = "classifier-free"
guidance_layout = "separate calls"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
caption_tokens = 511
comfyui_graph = False
default_px = 1024
usual = (35, 5.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "chroma/lora"
base_version = "chroma"

_BLOCKS = r"(single_)?transformer_blocks\.\d+"
_ATTENTION = r"attn\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"
_FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
_GUIDANCE = r"distilled_guidance_layer\.(in_proj|out_proj|layers\.\d+\.linear_[12])"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})|x_embedder|context_embedder",
    "all": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})|x_embedder|context_embedder|{_GUIDANCE}",
}
text_layers = r"\.attn\.(add_[kqv]_proj|to_add_out)$"
placeless_layers = r"\.(context_embedder|distilled_guidance_layer)|_context\."
joined_layers = r"\.single_transformer_blocks\."
call_settings = pipelines.masked_call
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.masked_batch
schedule = pipelines.flow_schedule


def load(folder: Path, device: str, dtype: torch.dtype) -> ChromaPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def _tokens(pipe: ChromaPipeline) -> int:
    return min(caption_tokens + 1, int(pipe.tokenizer.model_max_length))


def window(pipe: ChromaPipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out."""
    return _tokens(pipe) - 1


def count_tokens(pipe: ChromaPipeline, caption: str) -> int:
    """How many tokens a caption has for T5, without its mark."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: ChromaPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), mask: (L,)}` a caption; long ones are cut off.

    The mask is boolean, False at tokens that are not attended to.
    """
    hidden, _, mask, _, _, _ = pipe.encode_prompt(
        captions, device=pipelines.device_of(pipe), do_classifier_free_guidance=False, max_sequence_length=_tokens(pipe)
    )
    return [{"encoder_hidden_states": row, "mask": row_mask.bool()} for row, row_mask in zip(hidden, mask, strict=True)]


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    tokens, text, mask = pipelines.tokens(noised), conditioning["encoder_hidden_states"], conditioning["mask"]
    joined_mask = torch.cat([mask, mask.new_ones(len(tokens), tokens.shape[1])], 1)  # (B, L + h/2 * w/2)
    with _mask_in_checkpoints(denoiser, joined_mask):
        prediction: Tensor = denoiser(
            hidden_states=tokens,
            timestep=timesteps / 1000,
            encoder_hidden_states=text,
            img_ids=pipelines.places(noised, 3),
            txt_ids=torch.zeros(text.shape[1], 3, device=noised.device, dtype=noised.dtype),
            attention_mask=joined_mask,
        ).sample
    return pipelines.latents(prediction, noised)


@contextmanager
def _mask_in_checkpoints(denoiser: nn.Module, mask: Tensor) -> Iterator[None]:
    """For the body, single blocks under gradient checkpointing get the mask too.

    Each call keeps its own mask for backward.
    """
    if not getattr(denoiser, "gradient_checkpointing", False):
        yield
        return
    # diffusers has a public name to set this function, but none to read it and put it back.
    checkpointed: Any = denoiser._gradient_checkpointing_func

    def call(block: nn.Module, *inputs: Any) -> Any:
        # Joint blocks are already given the mask as their fourth input; single blocks have three.
        return checkpointed(block, *inputs, *((mask,) if len(inputs) == 3 else ()))

    denoiser._gradient_checkpointing_func = call  # type: ignore[assignment]
    try:
        yield
    finally:
        denoiser._gradient_checkpointing_func = checkpointed


def file_keys(pipe: ChromaPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.t5(32, tokens=32)
        transformer = diffusers.ChromaTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=64, approximator_layers=1, approximator_num_channels=64,
        )  # fmt: skip
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15
        )
        pipe = diffusers.ChromaPipeline(
            scheduler, tiny_parts.autoencoder(4, 0.3611, 0.1159), encoder, tokenizer, transformer
        )
    pipe.save_pretrained(str(folder))
    return folder
