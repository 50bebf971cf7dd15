"""Name maps against independent truths: diffusers' own model classes at published sizes, diffusers' own converters, and real files' key tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainer.lora_file import names, reading
from trainer.lora_file.header import by_module
from trainer.lora_file.names.rows import filled

TABLES = Path(__file__).parent / "key_tables"


def _models() -> dict[str, tuple[str, str, Callable[[], nn.Module]]]:
    """Family, size and a model of it, without weights."""
    import diffusers as d

    sd = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "attention_head_dim": 8}
    sdxl = {
        "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    sd3 = {"in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "attention_head_dim": 64}
    medium, large = {**sd3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}, {"num_layers": 38, "num_attention_heads": 38}
    hidream = {
        "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32, "attention_head_dim": 128, "num_attention_heads": 20,
        "caption_channels": [4096, 4096], "text_emb_dim": 2048, "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128), "llama_layers": list(range(48)),
    }  # fmt: skip
    anima = {"in_channels": 16, "out_channels": 16, "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28, "text_embed_dim": 1024}
    pixart = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "caption_channels": 4096, "sample_size": 128}
    return {
        "sd 1": ("sd", "1.x", lambda: d.UNet2DConditionModel(cross_attention_dim=768, **sd)),
        "sd 2": ("sd", "2.x", lambda: d.UNet2DConditionModel(cross_attention_dim=1024, use_linear_projection=True, **sd)),
        "sdxl": ("sdxl", "base", lambda: d.UNet2DConditionModel(**sdxl)),
        "sd3": ("sd3", "medium", lambda: d.SD3Transformer2DModel(**medium)),
        "sd3.5 medium": ("sd3", "medium", lambda: d.SD3Transformer2DModel(**medium, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")),
        "sd3.5 large": ("sd3", "3.5 large", lambda: d.SD3Transformer2DModel(**{**sd3, **large, "caption_projection_dim": 2432})),
        "flux": ("flux", "dev / schnell", lambda: d.FluxTransformer2DModel(guidance_embeds=True)),
        "flux2": ("flux2", "dev", d.Flux2Transformer2DModel),
        "flux2 klein": ("flux2", "klein 4B", lambda: d.Flux2Transformer2DModel(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680)),
        "chroma": ("chroma", "1", d.ChromaTransformer2DModel),
        "qwen": ("qwen", "20B", d.QwenImageTransformer2DModel),
        "zimage": ("zimage", "6B", d.ZImageTransformer2DModel),
        "lumina2": ("lumina2", "2B", lambda: d.Lumina2Transformer2DModel(cap_feat_dim=2304)),
        "wan": ("wan", "14B", d.WanTransformer3DModel),
        "krea2": ("krea2", "2", d.Krea2Transformer2DModel),
        "anima": ("anima", "2B", lambda: d.CosmosTransformer3DModel(**anima, adaln_lora_dim=256, concat_padding_mask=True)),
        "sana": ("sana", "1.6B", d.SanaTransformer2DModel),
        "pixart": ("pixart", "XL", lambda: d.PixArtTransformer2DModel(**pixart, norm_type="ada_norm_single")),
        "auraflow": ("auraflow", "6.8B", d.AuraFlowTransformer2DModel),
        "hidream": ("hidream", "17B", lambda: d.HiDreamImageTransformer2DModel(**hidream)),
    }  # fmt: skip


def layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every layer that can have an update, and its outputs and inputs."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    found = {path: module.weight.shape for path, module in model.named_modules() if isinstance(module, kinds)}
    return {path: (shape[0], math.prod(shape[1:])) for path, shape in found.items()}


@pytest.mark.parametrize("case", _models())
def test_every_layer_of_a_model_has_a_name_and_the_size_that_the_model_has(case: str) -> None:
    name, size, make = _models()[case]
    with torch.device("meta"):
        there = layers(make())
    family = names.registry()[name]
    known = names.identify({f"{family.component}.{path}": shape for path, shape in there.items()})
    assert not known.unknown and known.family == family and known.size == size, (known.unknown[:5], known.family, known.size)
    assert all(target.paths == (module,) for module, target in known.targets.items())
    one = next(one for one in family.sizes if one.name == size)
    wrong = [module for module, target in known.targets.items() if target.fits(there[module.partition(".")[2]], one) is not True]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("name", names.registry())
def test_no_two_layers_of_a_family_are_spelled_alike_with_underscores(name: str) -> None:
    family = names.registry()[name]
    seen: dict[str, str] = {}
    for one in family.rows:
        for numbers in ((0, 1, 2), (3, 4, 5), (1, 0, 10)):
            free = numbers[: one.original.count("#")]
            key, path = filled(one.original, free).replace(".", "_"), filled(one.paths[0], free)
            target = names.look_up(family, family.component, key)
            assert target is not None and seen.setdefault(key, target.paths[0]) == target.paths[0]
            assert target.paths[0] == f"{family.component}.{path}" or one.paths[0] in {other.paths[0] for other in family.rows if other is not one}, (key, path)
