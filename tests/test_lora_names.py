"""Name maps against independent truths: diffusers' own model classes at published sizes, diffusers' own converters, and
real files' key tables.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import lora_tables
import pytest
import torch
from torch import nn

from trainer.errors import AdapterError
from trainer.lora_file import fusing, names, reading
from trainer.lora_file.header import Header, by_module
from trainer.lora_file.names.rows import filled

# What diffusers' classes are made with where their defaults are another size.
SD = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "attention_head_dim": 8}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD3 = {
    "in_channels": 16, "out_channels": 16, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    "attention_head_dim": 64,
}  # fmt: skip
SD3_MEDIUM = {**SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
SD35_MEDIUM = {**SD3_MEDIUM, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}
SD35_LARGE = {**SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
ANIMA = {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28,
    "text_embed_dim": 1024, "adaln_lora_dim": 256, "concat_padding_mask": True,
}  # fmt: skip
PIXART = {
    "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152,
    "caption_channels": 4096, "sample_size": 128, "norm_type": "ada_norm_single",
}  # fmt: skip
HIDREAM = {
    "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 16, "num_single_layers": 32,
    "attention_head_dim": 128, "num_attention_heads": 20, "caption_channels": [4096, 4096], "text_emb_dim": 2048,
    "num_routed_experts": 4, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32), "max_resolution": (128, 128),
    "llama_layers": list(range(48)),
}  # fmt: skip
# Family, size, diffusers' class and what it is made with.
MODELS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "sd 1": ("sd", "1.x", "UNet2DConditionModel", {**SD, "cross_attention_dim": 768}),
    "sd 2": ("sd", "2.x", "UNet2DConditionModel", {**SD, "cross_attention_dim": 1024, "use_linear_projection": True}),
    "sdxl": ("sdxl", "base", "UNet2DConditionModel", SDXL),
    "sd3": ("sd3", "medium", "SD3Transformer2DModel", SD3_MEDIUM),
    "sd3.5 medium": ("sd3", "medium", "SD3Transformer2DModel", SD35_MEDIUM),
    "sd3.5 large": ("sd3", "3.5 large", "SD3Transformer2DModel", SD35_LARGE),
    "flux": ("flux", "dev / schnell", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2": ("flux2", "dev", "Flux2Transformer2DModel", {}),
    "flux2 klein": ("flux2", "klein 4B", "Flux2Transformer2DModel", KLEIN),
    "chroma": ("chroma", "1", "ChromaTransformer2DModel", {}),
    "qwen": ("qwen", "20B", "QwenImageTransformer2DModel", {}),
    "zimage": ("zimage", "6B", "ZImageTransformer2DModel", {}),
    "lumina2": ("lumina2", "2B", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "wan": ("wan", "14B", "WanTransformer3DModel", {}),
    "krea2": ("krea2", "2", "Krea2Transformer2DModel", {}),
    "anima": ("anima", "2B", "CosmosTransformer3DModel", ANIMA),
    "sana": ("sana", "1.6B", "SanaTransformer2DModel", {}),
    "pixart": ("pixart", "XL", "PixArtTransformer2DModel", PIXART),
    "auraflow": ("auraflow", "6.8B", "AuraFlowTransformer2DModel", {}),
    "hidream": ("hidream", "17B", "HiDreamImageTransformer2DModel", HIDREAM),
}


def layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every layer that can have an update, and its outputs and inputs."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    shapes = {path: module.weight.shape for path, module in model.named_modules() if isinstance(module, kinds)}
    return {path: (shape[0], math.prod(shape[1:])) for path, shape in shapes.items()}


@pytest.mark.parametrize("case", MODELS)
def test_every_layer_of_a_model_has_a_name_and_the_size_that_the_model_has(case: str) -> None:
    name, size, kind, settings = MODELS[case]
    with torch.device("meta"):
        there = layers(getattr(diffusers, kind)(**settings))
    family = names.registry()[name]
    known = names.identify({f"{family.component}.{path}": shape for path, shape in there.items()})
    assert not known.unknown and known.family == family and known.size == size, (
        known.unknown[:5],
        known.family,
        known.size,
    )
    assert all(target.paths == (module,) for module, target in known.targets.items())
    size_row = next(row for row in family.sizes if row.name == size)
    wrong = [
        module
        for module, target in known.targets.items()
        if target.fits(there[module.partition(".")[2]], size_row) is not True
    ]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("name", names.registry())
def test_no_two_layers_of_a_family_are_spelled_alike_with_underscores(name: str) -> None:
    family = names.registry()[name]
    seen: dict[str, str] = {}
    for row in family.rows:
        for numbers in ((0, 1, 2), (3, 4, 5), (1, 0, 10)):
            free = numbers[: row.original.count("#")]
            key, path = filled(row.original, free).replace(".", "_"), filled(row.paths[0], free)
            target = names.look_up(family, family.component, key)
            assert target is not None and seen.setdefault(key, target.paths[0]) == target.paths[0]
            assert target.paths[0] == f"{family.component}.{path}" or row.paths[0] in {
                other.paths[0] for other in family.rows if other is not row
            }, (key, path)


EXPECTED = {
    "anima_lora_kohya": ("kohya", "anima", ""), "anima_lora_lokr": ("comfyui", "anima", ""),
    "anima_lora_peft": ("comfyui", "anima", ""),
    "flux_control_lora": ("bfl", "flux", "dev / schnell"),
    "flux_dora_onetrainer": ("kohya+onetrainer", "flux", "dev / schnell"),
    "flux_lora_aitoolkit": ("comfyui", "flux", "dev / schnell"),
    "flux_lora_diffusers": ("diffusers", "flux", "dev / schnell"),
    "flux_lora_diffusers_base_model": ("peft", "flux", "dev / schnell"),
    "flux_lora_kohya": ("kohya", "flux", "dev / schnell"),
    "flux_lora_xlabs": ("xlabs", "flux", "dev / schnell"), "krea2_lora_kohya": ("kohya", "krea2", "2"),
    "qwen_image_lora_diffusers": ("bare", "qwen", "20B"), "qwen_image_lora_kohya": ("kohya", "qwen", ""),
    "sd15_locon_kohya": ("kohya", "sd", "1.x"), "sd15_lora_kohya": ("kohya", "sd", "1.x"),
    "sdxl_lora_kohya": ("kohya", "sdxl", "base"),
}  # fmt: skip


@pytest.mark.parametrize("table", lora_tables.NAMES)
def test_every_key_of_a_real_file_has_a_name_and_its_scheme_and_family_are_told(table: str) -> None:
    keys = [f"{module}.{suffix}" for module, parts in lora_tables.modules(table).items() for suffix in parts]
    grouped, strange = by_module(keys)
    shapes = {
        f"{module}.{suffix}": shape
        for module, parts in lora_tables.modules(table).items()
        for suffix, shape in parts.items()
    }
    known = reading.named(Header(shapes, {}, 0))
    assert not strange and not known.unknown and set(known.targets) == set(grouped)
    assert known.family is not None and (known.scheme, known.family.name, known.size) == EXPECTED[table]


def _converted(name: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """diffusers' own conversion of a checkpoint's weights, by path."""
    from diffusers.loaders import single_file_utils as utils

    return getattr(utils, name)(dict(state))


def test_flux_layers_lie_where_diffusers_checkpoint_converter_puts_them() -> None:
    """Every linear weight of a BFL checkpoint, marked by number, lands where the rows say, the swapped halves too."""
    family = names.registry()["flux"]
    with torch.device("meta"):
        from diffusers import FluxTransformer2DModel

        wanted = layers(FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True))
    originals: dict[str, tuple[int, int]] = {}
    for path in wanted:
        target = names.look_up(family, "transformer", path)
        assert target is not None
        whole = [
            wanted[layer.removeprefix("transformer.")]
            for layer in names.Target("transformer", target.row, target.numbers, None, "both", "").paths
        ]
        originals[filled(target.row.original, target.numbers)] = (sum(shape[0] for shape in whole), whole[0][1])
    state = {
        f"{name}.weight": torch.arange(out, dtype=torch.float32)[:, None] + 100_000 * number
        for number, (name, (out, _)) in enumerate(originals.items())
    }
    norms = [
        f"double_blocks.0.{side}_attn.norm.{kind}_norm.scale" for side in ("img", "txt") for kind in ("query", "key")
    ]
    norms += [f"single_blocks.0.norm.{kind}_norm.scale" for kind in ("query", "key")]
    biases = {f"{name}.bias": torch.zeros(out) for name, (out, _) in originals.items()}
    converted = _converted(
        "convert_flux_transformer_checkpoint_to_diffusers", state | biases | {norm: torch.zeros(1) for norm in norms}
    )
    for name, (out, into) in originals.items():
        target = names.look_up(family, "transformer", name)
        assert target is not None
        heights = target.parts(out, into)
        assert heights is not None
        for path, index in zip(target.paths, fusing.indices(heights, target.swaps(out, into)), strict=True):
            assert torch.equal(
                converted[f"{path.removeprefix('transformer.')}.weight"], state[f"{name}.weight"][index]
            ), path


def test_sd3_layers_lie_where_diffusers_checkpoint_converter_puts_them() -> None:
    family = names.registry()["sd3"]
    state: dict[str, torch.Tensor] = {"pos_embed": torch.zeros(1)}
    originals = {}
    with torch.device("meta"):
        from diffusers import SD3Transformer2DModel

        model = SD3Transformer2DModel(
            num_layers=24, num_attention_heads=2, attention_head_dim=8, caption_projection_dim=16, in_channels=16,
            joint_attention_dim=4096,
            pooled_projection_dim=2048, dual_attention_layers=(0,),
        )  # fmt: skip
    wanted = layers(model)
    for path in wanted:
        target = names.look_up(family, "transformer", path)
        assert target is not None
        whole = [
            wanted[layer.removeprefix("transformer.")]
            for layer in names.Target("transformer", target.row, target.numbers, None, "both", "").paths
        ]
        originals[filled(target.row.original, target.numbers)] = (sum(shape[0] for shape in whole), whole[0][1])
    # The last block's text stream feeds nothing: its q, k and v are there, its output and feed-forward are not.
    for number, (name, (out, _)) in enumerate(originals.items()):
        state[f"{name}.weight"] = torch.arange(out, dtype=torch.float32)[:, None] + 100_000 * number
        state[f"{name}.bias"] = torch.zeros(out)
    state["context_embedder.weight"] = torch.arange(16, dtype=torch.float32)[:, None] - 1000
    converted = _converted("convert_sd3_transformer_checkpoint_to_diffusers", state)
    for name, (out, into) in originals.items():
        target = names.look_up(family, "transformer", name)
        assert target is not None
        heights = target.parts(out, into)
        assert heights is not None
        for path, index in zip(target.paths, fusing.indices(heights, target.swaps(out, into)), strict=True):
            assert torch.equal(
                converted[f"{path.removeprefix('transformer.')}.weight"], state[f"{name}.weight"][index]
            ), path


def test_sdxl_blocks_have_the_numbers_that_sgm_gives_them() -> None:
    """Against diffusers' own mapping of SGM's numbers, layer by layer."""
    from types import SimpleNamespace

    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    family = names.registry()["sdxl"]
    table = [module for module in lora_tables.modules("sdxl_lora_kohya") if module.startswith("lora_unet_")]
    assert len(table) == 722
    mapped = _maybe_map_sgm_blocks_to_diffusers(
        {f"{module}.alpha": module for module in table}, SimpleNamespace(layers_per_block=2)
    )
    assert len(mapped) == 722
    for theirs, module in mapped.items():
        target, _ = names.find(family, module)
        renamed = (
            theirs.replace("input_blocks", "down_blocks")
            .replace("middle_block", "mid_block")
            .replace("output_blocks", "up_blocks")
        )
        assert target is not None and f"lora_{target.paths[0].replace('.', '_')}.alpha" == renamed


@pytest.mark.parametrize(
    "table", ["anima_lora_kohya", "krea2_lora_kohya", "qwen_image_lora_kohya", "flux_lora_kohya", "sdxl_lora_kohya"]
)
def test_a_file_of_another_family_is_named_as_what_it_is_and_refused_whole(
    table: str, tmp_path: Path, imprimatura_folder: Path
) -> None:
    from trainer import lora_file
    from trainer.render.engine import Engine

    engine = Engine(str(imprimatura_folder), device="cpu", dtype="float32")
    path = lora_tables.write(table, tmp_path, blocks=1)
    title = names.registry()[EXPECTED[table][1]].title
    with pytest.raises(
        AdapterError, match=rf"does not fit this base: \d+ of \d+ modules matched.*It is made for {title}"
    ):
        lora_file.read(path, engine.file_keys, engine.shapes)
