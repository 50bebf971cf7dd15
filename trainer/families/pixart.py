"""PixArt-Sigma: a transformer with cross-attention to T5 that predicts noise, and a variance that nothing here uses.

T5 is never adapted. Diffusers has no loader for its LoRAs: files are in the names that PEFT's own loader takes once
`transformer.` is off, and ComfyUI as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import pipelines, tiny_parts
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from diffusers import PixArtSigmaPipeline
    from torch import Tensor, nn

    from trainer.objective import Guidance, Schedule

name = "pixart"
title = "PixArt-Sigma"
pipeline = "PixArtSigmaPipeline"
prediction = ("epsilon",)
guidance = "classifier-free"
rescales = False
comfyui_graph = False
caption_tokens = 299
default_px = 1024
usual = (20, 4.5)  # the pipeline's own
multiple_px = 16
patch = 2
components = {"transformer": "transformer."}
file_names = "peft"
words: dict[str, str] = {}
architecture = "pixart-sigma/lora"
base_version = "pixart"

_ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)"
_FEED_FORWARD = r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
_MODULATION = r"adaln_single\.linear"
_CAPTION = r"caption_projection\.linear_[12]"
_LINEAR = rf"{_ATTENTION}|{_FEED_FORWARD}|{_MODULATION}|{_CAPTION}"
_OUTSIDE_BLOCKS = r"pos_embed\.proj|proj_out|adaln_single\.emb\.timestep_embedder\.linear_[12]"
targets = {
    "attention": _ATTENTION,
    "attention-ff": rf"{_ATTENTION}|{_FEED_FORWARD}",
    "linear": _LINEAR,
    "all": rf"{_LINEAR}|{_OUTSIDE_BLOCKS}",
}
text_layers = r"\.attn2\.to_[kv]$"
placeless_layers = r"\.caption_projection"
joined_layers = ""
encode_image = pipelines.encode_image
is_v2 = pipelines.is_not_v2
prepare_batch = pipelines.masked_batch


def load(folder: Path, device: str, dtype: torch.dtype) -> PixArtSigmaPipeline:
    """The pipeline of a diffusers folder, frozen, in eval mode."""
    return pipelines.load(pipeline, folder, device, dtype)


def prediction_of(folder: Path) -> str:
    """What the model in this diffusers folder predicts."""
    return "epsilon"


def _tokens(pipe: PixArtSigmaPipeline) -> int:
    return min(caption_tokens + 1, int(pipe.tokenizer.model_max_length))


def window(pipe: PixArtSigmaPipeline) -> int:
    """How many tokens of a caption T5 reads, its mark left out."""
    return _tokens(pipe) - 1


def count_tokens(pipe: PixArtSigmaPipeline, caption: str) -> int:
    """How many tokens a caption has for T5, without its mark."""
    return len(pipe.tokenizer(caption, add_special_tokens=False).input_ids)


def encode_text(pipe: PixArtSigmaPipeline, captions: list[str], chunks: int) -> list[dict[str, Tensor]]:
    """One `{encoder_hidden_states: (L, D), mask: (L,)}` a caption, the mask 0 at padding; long ones are cut off.

    The pipeline makes captions lower case first, as the model was trained.
    """
    hidden, mask, _, _ = pipe.encode_prompt(
        captions, False, device=pipelines.device_of(pipe), clean_caption=False, max_sequence_length=_tokens(pipe)
    )
    return [{"encoder_hidden_states": row, "mask": row_mask} for row, row_mask in zip(hidden, mask, strict=True)]


def denoise(denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
    """The prediction (B, C, h, w) for noised latents at integer timesteps (B,), without the variance."""
    prediction: Tensor = denoiser(
        noised,
        encoder_hidden_states=conditioning["encoder_hidden_states"],
        encoder_attention_mask=conditioning["mask"],
        timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # (B, 2C, h, w)
    return prediction[:, : noised.shape[1]]


def schedule(pipe: PixArtSigmaPipeline) -> Schedule:
    """The training noise of this base: its scheduler's own alphas."""
    from trainer.objective import Schedule

    return Schedule(prediction="epsilon", alphas_cumprod=pipe.scheduler.alphas_cumprod.float().cpu())


def call_settings(
    pipe: PixArtSigmaPipeline, positive: dict[str, Tensor], negative: dict[str, Tensor] | None, guidance: Guidance
) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    return pipelines.masked_call(pipe, positive, negative, guidance) | {
        "negative_prompt": None,
        "use_resolution_binning": False,
    }


def file_keys(pipe: PixArtSigmaPipeline) -> dict[str, str]:
    """`component.module.path` of every linear layer and convolution -> its name in a LoRA file, which is the same."""
    return pipelines.own_names(pipe, components)


def tiny(folder: Path) -> Path:
    """A random 1 MB model of this architecture, saved in `folder`; needs no network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, tokenizer = tiny_parts.t5(32, tokens=32)
        transformer = diffusers.PixArtTransformer2DModel(
            sample_size=16, num_layers=2, patch_size=2, attention_head_dim=16, num_attention_heads=4,
            caption_channels=32, in_channels=4, out_channels=8, cross_attention_dim=64, norm_type="ada_norm_single",
            norm_elementwise_affine=False, norm_eps=1e-6, use_additional_conditions=False,
        )  # fmt: skip
        pipe = diffusers.PixArtSigmaPipeline(
            tokenizer,
            encoder,
            tiny_parts.autoencoder(4, 0.13025, 0.0),
            transformer,
            diffusers.DPMSolverMultistepScheduler(beta_schedule="linear"),
        )
    pipe.save_pretrained(str(folder))
    return folder
