"""Qwen-Image: a multimodal transformer that predicts flow, conditioned on Qwen 2.5-VL.

Guidance is a second pass, and the guided prediction is scaled back to the norm of the positive one. Latents are those
of a video autoencoder, one frame of them. Captions have their own lengths. Qwen is never adapted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import QwenImagePipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance

name = "qwen"
title = "Qwen-Image"
pipeline = "QwenImagePipeline"
prediction = ("flow",)
guidance = "classifier-free"
guidance_layout = "separate calls"
unfit_samplers = ("flow_heun",)  # the pipeline gives the scheduler its sigmas, which that sampler doesn't take
comfyui_graph = False
default_px = 1024
usual = (50, 4.0)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "qwen-image/lora"
base_version = "qwen_image"

_TOKENS = 512  # of the text encoder's output, as many as the pipeline keeps
_BLOCKS = r"transformer_blocks\.\d+"
_ATTENTION = r"attn\.(to_(q|k|v|out\.0|add_out)|add_[qkv]_proj)"
_FEED_FORWARD = r"(img|txt)_mlp\.net\.(0\.proj|2)"
_MODULATION = r"(img|txt)_mod\.1"
_LINEAR = rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD}|{_MODULATION})"
_EMBEDDERS = r"img_in|txt_in|time_text_embed\.timestep_embedder\.linear_[12]"
_OUTPUT = r"norm_out\.linear|proj_out"
targets = {
    "attention": rf"{_BLOCKS}\.{_ATTENTION}",
    "attention-ff": rf"{_BLOCKS}\.({_ATTENTION}|{_FEED_FORWARD})",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_EMBEDDERS}|{_OUTPUT}",
}
text_layers = r"\.attn\.(add_[kqv]_proj|to_add_out)$"
placeless_layers = r"\.txt_(in|mlp|mod|norm)"
joined_layers = ""
is_v2 = pipelines.is_not_v2
prediction_of = pipelines.predicts_flow
prepare_batch = pipelines.padded
schedule = pipelines.flow_schedule


def load(folder: Path, device: str, dtype: torch.dtype) -> QwenImagePipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def window(pipe: QwenImagePipeline) -> int:
    """How many tokens of a caption are kept: the limit less the end of the pipeline's template."""
    template = count_tokens(pipe, pipe.prompt_template_encode.format(""))
    return _TOKENS - (template - int(pipe.prompt_template_encode_start_idx))


def count_tokens(pipe: QwenImagePipeline, caption: str) -> int:
    """How many tokens a caption has for Qwen."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: QwenImagePipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D)}` a caption, each of its own length; long ones are cut off."""
    hidden, mask = pipe.encode_prompt(captions, pipelines.device_of(pipe), max_sequence_length=_TOKENS)
    lengths = [hidden.shape[1]] * len(captions) if mask is None else mask.sum(1).tolist()
    return [{"encoder_hidden_states": row[:length]} for row, length in zip(hidden, lengths, strict=True)]


def encode_image(pipe: QwenImagePipeline, images: Tensor) -> Tensor:
    """Latents (B, C, H/f, W/f) of images (B, 3, H, W) in [-1, 1], each channel of zero mean and unit deviation."""
    frames = images[:, :, None].to(pipe.vae.device, pipe.vae.dtype)  # (B, 3, 1, H, W)
    latents: Tensor = pipe.vae.encode(frames).latent_dist.mode()[:, :, 0]
    mean, deviation = (
        torch.tensor(getattr(pipe.vae.config, f"latents_{key}")).to(latents).view(1, -1, 1, 1)
        for key in ("mean", "std")
    )
    return (latents - mean) / deviation


def _mask(conditioning: dict[str, Tensor]) -> Tensor | None:
    """(B, L), 1 at tokens of the caption, 0 at padding; None, as the pipeline has it, where there is no padding."""
    text, lengths = conditioning["encoder_hidden_states"], conditioning[pipelines.LENGTHS]
    if min(lengths.tolist()) == text.shape[1]:
        return None
    return (torch.arange(text.shape[1])[None] < lengths[:, None]).long().to(text.device, non_blocking=True)


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w), noise minus latents, for noised latents at timesteps (B,) from 1 to 1000."""
    prediction: Tensor = denoiser(
        hidden_states=pipelines.tokens(noised),
        timestep=timesteps / 1000,
        encoder_hidden_states=conditioning["encoder_hidden_states"],
        encoder_hidden_states_mask=_mask(conditioning),
        img_shapes=[[(1, noised.shape[2] // 2, noised.shape[3] // 2)]] * len(noised),
    ).sample
    return pipelines.latents(prediction, noised)


def call_settings(
    pipe: QwenImagePipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    settings = {
        "prompt_embeds": positive["encoder_hidden_states"],
        "prompt_embeds_mask": _mask(positive),
        "true_cfg_scale": guidance.scale,
    }
    if negative:
        settings |= {
            "negative_prompt_embeds": negative["encoder_hidden_states"],
            "negative_prompt_embeds_mask": _mask(negative),
        }
    return settings


def file_keys(pipe: QwenImagePipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 2 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.qwen_vl()
        transformer = diffusers.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
            num_attention_heads=4, joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
        )  # fmt: skip
        vae = diffusers.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[0.8, 1.1, 0.9, 1.0],
        )  # fmt: skip
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9,
            max_image_seq_len=8192, shift_terminal=0.02, time_shift_type="exponential",
        )  # fmt: skip
        pipe = diffusers.QwenImagePipeline(scheduler, vae, encoder, tokenizer, transformer)
    pipe.save_pretrained(str(folder))
    return folder
