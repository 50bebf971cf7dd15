"""Published bases that are known by their shapes alone: enough to estimate a step, which loads and computes nothing.

Each is its denoiser's class in diffusers with the published config, its latents, and what its text encoders give for
one caption as their pipelines pad it. Those of `full_size` can be run as well.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import bases
from trainer.bench import full_size
from trainer.families.contract import Family
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_CLIP_L, _CLIP_G, _T5, _GEMMA, _KL = 123, 695, 4762, 2614, 84  # parameters in millions


@dataclass(frozen=True)
class Shapes:
    """One base."""

    family: str
    kind: str  # the denoiser's class
    settings: dict[str, Any]
    channels: int  # of latents
    downscale: int  # of pictures to latents
    caption: dict[str, tuple[int, ...]]
    encoders: int  # millions of parameters, the autoencoder's among them


def all_bases() -> dict[str, Shapes]:
    """The bases by a short name."""
    return {"imprimatura": _imprimatura(), **_PUBLISHED}


def denoiser(base: Shapes, folder: Path) -> nn.Module:
    """Its denoiser without memory; `folder` is where its config is written."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": base.kind, **base.settings}))
    model = full_size.empty(folder).eval()
    for module in model.modules():
        if hasattr(module, "experts"):  # these learn in training mode alone, which has no dropout
            module.training = True
    return model


def inputs(base: Shapes, family: Family, size_px: int) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The shape of a picture's latents (1, C, h, w), and a caption's conditioning on the meta device."""
    row = {
        name: torch.ones(shape, dtype=torch.bool) if name == "mask" else torch.empty(shape, device="meta")
        for name, shape in base.caption.items()
    }
    frame = torch.tensor([size_px, size_px, 0, 0, size_px, size_px])
    side = size_px // base.downscale
    return (1, base.channels, side, side), family.prepare_batch([{**row, "frame": frame}])


def _imprimatura() -> Shapes:
    """The base that ships, as it lies there."""
    config = json.loads((bases.IMPRIMATURA / "unet" / "config.json").read_text(encoding="utf-8"))
    settings = {name: value for name, value in config.items() if not name.startswith("_")}
    caption: dict[str, tuple[int, ...]] = {"encoder_hidden_states": (77, int(config["cross_attention_dim"]))}
    return Shapes("sd", config["_class_name"], settings, int(config["in_channels"]), 16, caption, 8)


_PUBLISHED = {
    "sd15": Shapes(
        "sd", "UNet2DConditionModel",
        {
            "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": 8,
            "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        },
        4, 8, {"encoder_hidden_states": (77, 768)}, _CLIP_L + _KL,
    ),
    "auraflow": Shapes(
        "auraflow", "AuraFlowTransformer2DModel",
        {
            "num_mmdit_layers": 4, "num_single_dit_layers": 32, "attention_head_dim": 256, "num_attention_heads": 12,
            "joint_attention_dim": 2048, "caption_projection_dim": 3072, "in_channels": 4, "out_channels": 4,
            "pos_embed_max_size": 9216,
        },
        4, 8, {"encoder_hidden_states": (256, 2048), "mask": (256,)}, 1225 + _KL,  # Pile-T5 XL's encoder
    ),
    "chroma": Shapes(
        "chroma", "ChromaTransformer2DModel",
        {
            "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
            "num_attention_heads": 24, "joint_attention_dim": 4096, "axes_dims_rope": [16, 56, 56],
            "approximator_num_channels": 64, "approximator_hidden_dim": 5120, "approximator_layers": 5,
        },
        16, 8, {"encoder_hidden_states": (512, 4096), "mask": (512,)}, _T5 + _KL,
    ),
    "flux2-dev": Shapes(
        "flux2dev", "Flux2Transformer2DModel",
        {
            "in_channels": 128, "num_layers": 8, "num_single_layers": 48, "attention_head_dim": 128,
            "num_attention_heads": 48, "joint_attention_dim": 15360, "axes_dims_rope": [32, 32, 32, 32],
            "guidance_embeds": True,
        },
        32, 8, {"encoder_hidden_states": (512, 15360)}, 24011 + _KL,  # Mistral Small 3
    ),
    "hidream": Shapes(
        "hidream", "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32,
            "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096],
            "text_emb_dim": 2048, "axes_dims_rope": [64, 32, 32], "max_resolution": [128, 128],
            "llama_layers": [*range(32), *[31] * 16],
        },
        16, 8, {"encoder_hidden_states": (128, 4096), "llama": (32, 128, 4096), "pooled": (2048,)},
        _CLIP_L + _CLIP_G + _T5 + 8030 + _KL,  # and Llama 3.1 8B
    ),
    "lumina2": Shapes(
        "lumina2", "Lumina2Transformer2DModel",
        {
            "sample_size": 128, "in_channels": 16, "hidden_size": 2304, "num_layers": 26, "num_refiner_layers": 2,
            "num_attention_heads": 24, "num_kv_heads": 8, "multiple_of": 256, "axes_dim_rope": [32, 32, 32],
            "axes_lens": [300, 512, 512], "cap_feat_dim": 2304,
        },
        16, 8, {"encoder_hidden_states": (256, 2304), "mask": (256,)}, _GEMMA + _KL,
    ),
    "pixart": Shapes(
        "pixart", "PixArtTransformer2DModel",
        {
            "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
            "cross_attention_dim": 1152, "caption_channels": 4096, "use_additional_conditions": False,
        },
        4, 8, {"encoder_hidden_states": (300, 4096), "mask": (300,)}, _T5 + _KL,
    ),
    "sana": Shapes(
        "sana", "SanaTransformer2DModel",
        {
            "sample_size": 32, "in_channels": 32, "out_channels": 32, "num_layers": 20, "num_attention_heads": 70,
            "attention_head_dim": 32, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
            "cross_attention_dim": 2240, "caption_channels": 2304,
        },
        32, 32, {"encoder_hidden_states": (300, 2304), "mask": (300,)}, _GEMMA + 312,  # and Sana's deep autoencoder
    ),
}  # fmt: skip
