"""Random bases of the real models' size, made on the device: no download, no file of weights, and never whole in the
CPU's memory.

A base is a diffusers folder as every other, but that its denoiser is a config alone. Its text encoders and autoencoder
are small ones whose outputs have the real widths, channels and numbers of tokens, so a run prepares itself as always
and a step sees real shapes. `depth` cuts the number of blocks of each repeated kind, for machines that can't hold all
of them; widths stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import families, tiny_parts
from trainer.families.contract import Family
from trainer.lazy import diffusers, torch

if TYPE_CHECKING:
    import torch
    from torch import nn

FAMILIES = {
    "sdxl": "sdxl",
    "sd35-medium": "sd3",
    "flux": "flux",
    "flux2-klein": "flux2",
    "zimage": "zimage",
    "qwen": "qwen",
}  # model -> its family
_STD = 0.02  # of weights, or less where so many inputs are summed that they would grow


def component(model: str) -> str:
    """The denoiser's name in the model's pipeline."""
    return families.registry()[FAMILIES[model]].denoiser


def write(model: str, depth: int | None, folder: Path) -> Path:
    """The folder of a model: all but the denoiser's weights. Its text encoders and autoencoder are the same
    every time.
    """
    from trainer import bases

    bases.quiet_libraries()
    # The same parts every time, and nobody else's random numbers are touched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = _PARTS[model]()
    kind, settings = config(model, depth)

    # The parts that have weights.
    named = {name: [type(part).__module__.split(".")[0], type(part).__name__] for name, part in parts.items()}
    for name, part in parts.items():
        part.save_pretrained(str(folder / name))

    # The denoiser, a config alone.
    name = component(model)
    (folder / name).mkdir(parents=True, exist_ok=True)  # where a killed process began
    (folder / name / "config.json").write_text(json.dumps({"_class_name": kind, **settings}))

    # The index comes last: where it is, the folder is whole.
    index = {
        "_class_name": families.registry()[FAMILIES[model]].pipeline,
        "_diffusers_version": diffusers.__version__,
        **named,
        name: ["diffusers", kind],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def open_pipeline(family: Family, folder: Path, device: str, dtype: torch.dtype) -> Any:
    """As `bases.open_pipeline`, in whose place a bench's process puts it: the folder's pipeline, frozen, with a random
    denoiser.
    """
    from trainer import bases

    bases.quiet_libraries()
    name = family.denoiser
    made = {name: filled(empty(folder / name), device, dtype)}
    kind = getattr(diffusers, family.pipeline)
    pipe = kind.from_pretrained(str(folder), torch_dtype=dtype, local_files_only=True, use_safetensors=True, **made).to(
        device
    )
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def empty(folder: Path) -> nn.Module:
    """The model of the config in this folder, its parameters without memory; buffers are computed, as they
    always are.
    """
    from accelerate import init_empty_weights

    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with init_empty_weights():
        model: nn.Module = getattr(diffusers, settings["_class_name"]).from_config(settings)
    return model


def filled(model: torch.nn.Module, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """The same model on the device with small normal values from a generator there; norms are 1, biases 0.

    What is to wait on the CPU for a GPU (`memory.offload=blocks`) is drawn on that, a tensor at a time: a CPU takes
    minutes for twelve billion.
    """
    drawn_on = "cuda" if torch.cuda.is_available() and device == "cpu" else device
    rng = torch.Generator(drawn_on).manual_seed(0)

    # Parameters.
    for path, parameter in list(model.named_parameters()):
        module, _, name = path.rpartition(".")
        values = torch.empty(parameter.shape, device=drawn_on, dtype=dtype)
        if parameter.ndim == 1 and name in ("weight", "bias"):
            values.fill_(name == "weight")
        else:
            values.normal_(0, min(_STD, parameter[0].numel() ** -0.5), generator=rng)
        setattr(model.get_submodule(module), name, torch.nn.Parameter(values.to(device), requires_grad=False))

    # Buffers: those that a file would hold have its dtype, others the dtype they were computed in.
    saved = set(model.state_dict())
    for path, buffer in list(model.named_buffers()):
        module, _, name = path.rpartition(".")
        kind = dtype if path in saved and buffer.is_floating_point() else buffer.dtype
        setattr(model.get_submodule(module), name, buffer.to(device, kind))
    return model


# The denoisers' configs, as the published models have them.


def config(model: str, depth: int | None) -> tuple[str, dict[str, Any]]:
    """The denoiser's class in diffusers and its settings, cut to `depth` blocks of each kind."""
    most = depth or 1_000
    if model == "sdxl":
        return "UNet2DConditionModel", {
            "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280],
            "layers_per_block": min(2, most),
            "transformer_layers_per_block": [1, min(2, most), min(10, most)], "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        }  # fmt: skip
    if model == "sd35-medium":
        return "SD3Transformer2DModel", {
            "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": min(24, most),
            "attention_head_dim": 64,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(min(13, most))),
            # 1,536 px; the real model's 384 take half a minute to compute, and a step reads its middle alone
            "pos_embed_max_size": 96,
        }  # fmt: skip
    if model == "flux":
        return "FluxTransformer2DModel", {
            "patch_size": 1, "in_channels": 64, "num_layers": min(19, most), "num_single_layers": min(38, most),
            "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
            "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
        }  # fmt: skip
    if model == "flux2-klein":
        return "Flux2Transformer2DModel", {
            "patch_size": 1, "in_channels": 128, "num_layers": min(5, most), "num_single_layers": min(20, most),
            "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 7680, "timestep_guidance_channels": 256, "mlp_ratio": 3.0,
            "guidance_embeds": False,
            "axes_dims_rope": [32, 32, 32, 32], "rope_theta": 2000,
        }  # fmt: skip
    if model == "zimage":
        return "ZImageTransformer2DModel", {
            "all_patch_size": [2], "all_f_patch_size": [1], "in_channels": 16, "dim": 3840, "n_layers": min(30, most),
            "n_refiner_layers": min(2, most),
            "n_heads": 30, "n_kv_heads": 30, "qk_norm": True, "cap_feat_dim": 2560, "rope_theta": 256.0,
            "t_scale": 1000.0,
            "axes_dims": [32, 48, 48], "axes_lens": [1536, 512, 512],
        }  # fmt: skip
    return "QwenImageTransformer2DModel", {
        "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": min(60, most), "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584, "guidance_embeds": False, "axes_dims_rope": [16, 56, 56],
    }  # fmt: skip


# Small text encoders of the real widths, autoencoders of the real sizes of latents, and the schedulers.

_CLIP_TOKENS = 77


def _sdxl() -> dict[str, Any]:
    (first, tokenizer), (second, _) = (
        tiny_parts.clip("CLIPTextModel", 768, _CLIP_TOKENS),
        tiny_parts.clip("CLIPTextModelWithProjection", 1280, _CLIP_TOKENS),
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return {
        "vae": tiny_parts.autoencoder(4, 0.13025, 0.0, stages=4), "text_encoder": first, "text_encoder_2": second,
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer, "scheduler": scheduler,
    }  # fmt: skip


def _sd35_medium() -> dict[str, Any]:
    (first, tokenizer), (second, _) = (
        tiny_parts.clip("CLIPTextModelWithProjection", width, _CLIP_TOKENS) for width in (768, 1280)
    )
    third, letters = tiny_parts.t5(4096)
    return {
        "vae": tiny_parts.autoencoder(16, 1.5305, 0.0609, stages=4), "text_encoder": first, "text_encoder_2": second,
        "text_encoder_3": third,
        "tokenizer": tokenizer, "tokenizer_2": tokenizer, "tokenizer_3": letters,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip


def _flux() -> dict[str, Any]:
    (first, tokenizer), (second, letters) = tiny_parts.clip("CLIPTextModel", 768, _CLIP_TOKENS), tiny_parts.t5(4096)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift=3.0, base_shift=0.5, max_shift=1.15
    )
    return {
        "vae": tiny_parts.autoencoder(16, 0.3611, 0.1159, stages=4),
        "text_encoder": first,
        "text_encoder_2": second,
        "tokenizer": tokenizer,
        "tokenizer_2": letters,
        "scheduler": scheduler,
    }


def _flux2_klein() -> dict[str, Any]:
    encoder, tokenizer = tiny_parts.qwen("Qwen3ForCausalLM", 512, 2560)
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 16), layers_per_block=1,
        latent_channels=32, norm_num_groups=4,
    )  # fmt: skip
    return {
        "vae": vae, "text_encoder": encoder, "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }  # fmt: skip


def _zimage() -> dict[str, Any]:
    encoder, tokenizer = tiny_parts.qwen("Qwen3Model", width=2560)
    return {
        "vae": tiny_parts.autoencoder(16, 0.3611, 0.1159, stages=4), "text_encoder": encoder, "tokenizer": tokenizer,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }  # fmt: skip


def _qwen() -> dict[str, Any]:
    encoder, tokenizer = tiny_parts.qwen_vl(3584)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 16, latents_std=[1.0] * 16
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02,
        time_shift_type="exponential"
    )  # fmt: skip
    return {"vae": vae, "text_encoder": encoder, "tokenizer": tokenizer, "scheduler": scheduler}


_PARTS = {
    "sdxl": _sdxl,
    "sd35-medium": _sd35_medium,
    "flux": _flux,
    "flux2-klein": _flux2_klein,
    "zimage": _zimage,
    "qwen": _qwen,
}
