"""The parts of a diffusers folder for each known architecture: class, config, and place in a single file.

Sizes are published facts of the models (papers, model cards); what of them a transformer's shapes show is read from the
shapes, so that SD 3.5 medium and large, FLUX.1 dev and schnell need no table. A UNet's sizes can't all be read from
shapes (heads, for one), so its table is fixed. Text encoders and tokenizers: CLIP ViT-L/14 (OpenAI), OpenCLIP ViT-H/14
and ViT-bigG/14 (LAION), T5 v1.1 XXL (Google). CLIP's vocabulary ships with Velatura; T5's does not, so whoever uses it
names a folder that has it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from trainer.single_file.detecting import Detected
from trainer.single_file.head import Head


@dataclass(frozen=True)
class Part:
    """One part of a pipeline, and the prefixes under which a single file may have its tensors."""

    library: str  # diffusers or transformers
    kind: str  # the class
    config: dict[str, Any]
    prefixes: tuple[str, ...] = ()
    optional: bool = False


VAE_PREFIXES = ("first_stage_model.", "vae.")


def blueprint(head: Head, detected: Detected) -> dict[str, Part] | None:
    """Every part by name, or None for an architecture that isn't known."""
    makers = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}
    return makers[detected.variant](head, detected) if detected.variant in makers else None


def index_extras(family: str) -> dict[str, Any]:
    """What model_index.json says besides the parts."""
    if family == "sd":
        return {
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
        }
    if family == "sdxl":
        return {"feature_extractor": [None, None], "image_encoder": [None, None], "force_zeros_for_empty_prompt": True}
    return {"feature_extractor": [None, None], "image_encoder": [None, None]}


def _sd1(head: Head, detected: Detected) -> dict[str, Part]:
    text = ("cond_stage_model.transformer.", "text_encoder.", "text_encoders.clip_l.transformer.")
    return {
        "unet": Part("diffusers", "UNet2DConditionModel", _unet(64, 768, 8), (detected.prefix,)),
        "vae": Part("diffusers", "AutoencoderKL", _autoencoder(512, 0.18215), VAE_PREFIXES),
        "text_encoder": Part("transformers", "CLIPTextModel", _clip(768, 3072, 12, 12, "quick_gelu", 49407), text),
        "tokenizer": Part("transformers", "CLIPTokenizer", {"pad_token": "<|endoftext|>"}),
        "scheduler": Part(
            "diffusers", "DDIMScheduler", _noise(detected) | {"clip_sample": False, "set_alpha_to_one": False}
        ),
    }


def _sd2(head: Head, detected: Detected) -> dict[str, Part]:
    # The v models are those of 768 px, the others of 512 px.
    sample = 96 if detected.prediction == "v" else 64
    # diffusers calls the number of heads `attention_head_dim` here; SD 1's 8 is right for every level.
    unet = _unet(sample, 1024, [5, 10, 20, 20]) | {"use_linear_projection": True}
    text = ("cond_stage_model.model.", "conditioner.embedders.0.model.", "text_encoder.")
    return {
        "unet": Part("diffusers", "UNet2DConditionModel", unet, (detected.prefix,)),
        "vae": Part("diffusers", "AutoencoderKL", _autoencoder(8 * sample, 0.18215), VAE_PREFIXES),
        "text_encoder": Part(
            "transformers", "CLIPTextModel", _clip(1024, 4096, 23, 16, "gelu", 0) | {"projection_dim": 512}, text
        ),
        "tokenizer": Part("transformers", "CLIPTokenizer", {"pad_token": "!"}),
        "scheduler": Part(
            "diffusers", "DDIMScheduler", _noise(detected) | {"clip_sample": False, "set_alpha_to_one": False}
        ),
    }


def _sdxl(head: Head, detected: Detected) -> dict[str, Part]:
    unet = {
        "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True, "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    first = ("conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer.")
    second = ("conditioner.embedders.1.model.", "text_encoders.clip_g.transformer.")
    scheduler = _noise(detected) | {"timestep_spacing": "leading", "interpolation_type": "linear"}
    return {
        "unet": Part("diffusers", "UNet2DConditionModel", unet, (detected.prefix,)),
        "vae": Part("diffusers", "AutoencoderKL", _autoencoder(1024, 0.13025) | {"force_upcast": True}, VAE_PREFIXES),
        "text_encoder": Part("transformers", "CLIPTextModel", _clip(768, 3072, 12, 12, "quick_gelu", 49407), first),
        "text_encoder_2": Part(
            "transformers", "CLIPTextModelWithProjection", _clip(1280, 5120, 32, 20, "gelu", 0), second
        ),
        "tokenizer": Part("transformers", "CLIPTokenizer", {"pad_token": "<|endoftext|>"}),
        "tokenizer_2": Part("transformers", "CLIPTokenizer", {"pad_token": "!"}),
        "scheduler": Part("diffusers", "EulerDiscreteScheduler", scheduler),
    }


def _sd3(head: Head, detected: Detected) -> dict[str, Part]:
    """Its width is 64 a layer, in heads of 64; medium 3.5 attends twice in its first blocks (`attn2`)."""
    prefix, layers = detected.prefix, _count(head, detected.prefix, "joint_blocks")
    # What the shapes show.
    positions = head.shapes.get(prefix + "pos_embed", (1, 192**2, 0))[1]
    second = (prefix + f"joint_blocks.{number}.x_block.attn2.qkv.weight" for number in range(layers))
    dual = [number for number, name in enumerate(second) if name in head.shapes]
    transformer = {
        "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers,
        "attention_head_dim": 64, "num_attention_heads": layers, "joint_attention_dim": 4096,
        "caption_projection_dim": 64 * layers, "pooled_projection_dim": 2048,
        "pos_embed_max_size": math.isqrt(positions),
        "qk_norm": "rms_norm" if prefix + "joint_blocks.0.x_block.attn.ln_q.weight" in head.shapes else None,
        "dual_attention_layers": dual,
    }  # fmt: skip
    return {
        "transformer": Part("diffusers", "SD3Transformer2DModel", transformer, (prefix,)),
        "vae": Part(
            "diffusers",
            "AutoencoderKL",
            _autoencoder(1024, 1.5305, 16) | {"shift_factor": 0.0609} | _NO_QUANT,
            VAE_PREFIXES,
        ),
        "text_encoder": Part(
            "transformers",
            "CLIPTextModelWithProjection",
            _clip(768, 3072, 12, 12, "quick_gelu", 49407),
            ("text_encoders.clip_l.transformer.",),
        ),
        "text_encoder_2": Part(
            "transformers",
            "CLIPTextModelWithProjection",
            _clip(1280, 5120, 32, 20, "gelu", 0),
            ("text_encoders.clip_g.transformer.",),
        ),
        "text_encoder_3": Part(
            "transformers", "T5EncoderModel", _T5, ("text_encoders.t5xxl.transformer.",), optional=True
        ),
        "tokenizer": Part("transformers", "CLIPTokenizer", {"pad_token": "<|endoftext|>"}),
        "tokenizer_2": Part("transformers", "CLIPTokenizer", {"pad_token": "!"}),
        "tokenizer_3": Part("transformers", "T5TokenizerFast", {}, optional=True),
        "scheduler": Part("diffusers", "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, "shift": 3.0}),
    }


def _flux(head: Head, detected: Detected) -> dict[str, Part]:
    """dev has an input for guidance, and a shift of noise that grows with the picture; schnell has neither."""
    prefix = detected.prefix
    is_dev = prefix + "guidance_in.in_layer.weight" in head.shapes
    transformer = {
        "patch_size": 1, "in_channels": 64, "num_layers": _count(head, prefix, "double_blocks"),
        "num_single_layers": _count(head, prefix, "single_blocks"), "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
        "guidance_embeds": is_dev, "axes_dims_rope": [16, 56, 56],
    }  # fmt: skip
    # Only dev's shift grows with the number of tokens.
    shift = {
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    }
    return {
        "transformer": Part("diffusers", "FluxTransformer2DModel", transformer, (prefix,)),
        "vae": Part(
            "diffusers",
            "AutoencoderKL",
            _autoencoder(1024, 0.3611, 16) | {"shift_factor": 0.1159} | _NO_QUANT,
            VAE_PREFIXES,
        ),
        "text_encoder": Part(
            "transformers",
            "CLIPTextModel",
            _clip(768, 3072, 12, 12, "quick_gelu", 49407),
            ("text_encoders.clip_l.transformer.",),
        ),
        "text_encoder_2": Part("transformers", "T5EncoderModel", _T5, ("text_encoders.t5xxl.transformer.",)),
        "tokenizer": Part("transformers", "CLIPTokenizer", {"pad_token": "<|endoftext|>"}),
        "tokenizer_2": Part("transformers", "T5TokenizerFast", {}),
        "scheduler": Part(
            "diffusers",
            "FlowMatchEulerDiscreteScheduler",
            {"num_train_timesteps": 1000} | (shift if is_dev else {"shift": 1.0}),
        ),
    }


_NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
_T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_decoder_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new",
    "is_gated_act": True, "relative_attention_num_buckets": 32, "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True,
    "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip


def _unet(sample_size: int, width: int, heads: int | list[int]) -> dict[str, Any]:
    return {
        "sample_size": sample_size, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": width,
        "attention_head_dim": heads, "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    }  # fmt: skip


def _autoencoder(sample_size: int, scaling_factor: float, latent_channels: int = 4) -> dict[str, Any]:
    return {
        "sample_size": sample_size, "latent_channels": latent_channels, "scaling_factor": scaling_factor,
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip


def _clip(width: int, inner: int, layers: int, heads: int, activation: str, pad: int) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": activation,
        "projection_dim": width, "vocab_size": 49408, "max_position_embeddings": 77,
        "layer_norm_eps": 1e-5, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": pad,
    }  # fmt: skip


def _noise(detected: Detected) -> dict[str, Any]:
    """Stable Diffusion's schedule of training noise."""
    kind = {"prediction_type": "v_prediction" if detected.prediction == "v" else "epsilon"} | (
        {"rescale_betas_zero_snr": True} if detected.zero_snr else {}
    )
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        **kind,
    }


def _count(head: Head, prefix: str, blocks: str) -> int:
    """How many blocks of a list the file has."""
    numbers = {
        int(match[1])
        for name in head.shapes
        if (match := re.match(rf"{re.escape(prefix)}{blocks}\.(\d{{1,4}})\.", name))
    }
    return max(numbers, default=-1) + 1
