"""Layers, rates and ranks that other trainers give by block or by pattern: the same ones here, or said why not."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainer import layer_patterns, schema
from trainer.config import TrainConfig, parse
from trainer.other_trainers import importing, layer_texts, recipes_out
from trainer.other_trainers.contract import Imported

SDXL = 'network_module = "networks.lora"\npretrained_model_name_or_path = "someone/base"\nsdxl = true\n'


def read(tmp_path: Path, text: str, name: str = "recipe.toml", **options: Any) -> Imported:
    (tmp_path / name).write_text(text)
    return importing.read(tmp_path / name, **{"pictures": 20, **options})


def network(tmp_path: Path, family: str, module: str, *arguments: str) -> Imported:
    """A recipe of sd-scripts with these arguments of its network."""
    lines = ", ".join(f'"{argument}"' for argument in arguments)
    values = f'network_module = "networks.{module}"\nnetwork_dim = 16\nnetwork_alpha = 16\nlearning_rate = 1e-4\n'
    text = (
        f"{values}network_args = [{lines}]\nmax_train_steps = 9\ntrain_batch_size = 1\nnetwork_train_unet_only = true\n"
    )
    return read(tmp_path, text, family=family)


def fate(imported: Imported, key: str) -> tuple[str, str]:
    (found,) = [one for one in imported.keys if one.key == key]
    return found.status, found.why


# Regular expressions.


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r".*attn\.to_q.*", ["attn.to_q"]),
        (r"^layers\.\d+\.attention\.to_(q|k)$", ["layers.*.attention.to_q", "layers.*.attention.to_k"]),
        (r"blocks\.[0-2]\.", ["blocks.0.", "blocks.1.", "blocks.2."]),
        ("attn|ff", ["attn", "ff"]),
        ("(?:attn1|attn2).*to_out", ["attn1*to_out", "attn2*to_out"]),
        (r"single_blocks\.[^.]+\.linear", ["single_blocks.*.linear"]),
    ],
)
def test_a_pattern_of_texts_numbers_and_alternatives_has_the_same_layers(pattern: str, texts: list[str]) -> None:
    assert layer_texts.of_pattern(pattern) == texts


@pytest.mark.parametrize(
    "pattern", ["", ".*", "(?!attn)", "(?<=a)b", "a{2}", "a?", "(ab)+", "[^q]", "a\\b", "(a", "[a-z]", "\\"]
)
def test_a_pattern_that_is_more_has_none(pattern: str) -> None:
    assert layer_texts.of_pattern(pattern) is None


def test_texts_fit_what_the_pattern_is_found_in() -> None:
    """Against Python's own engine, over paths that are made of the same parts."""
    drawn = random.Random(0)
    parts = ["attn", "ff", "to_q", "to_k", "blocks.1", "blocks.12", "net.0", "proj"]
    patterns = [
        r"blocks\.\d+\.(attn|ff)",
        r"attn.*to_(q|k)",
        r".*ff\.net\.0",
        r"(?:attn|proj)\.to_k",
        r"blocks\.[12]\.",
    ]
    for _ in range(2000):
        path = ".".join(drawn.choices(parts, k=4))
        for pattern in patterns:
            ours = any(layer_patterns.fits(text, path) for text in layer_texts.of_pattern(pattern) or [])
            assert ours >= bool(re.search(pattern, path)), (pattern, path)  # a number there is any text here


def test_a_hostile_pattern_is_read_or_given_up_at_once() -> None:
    for pattern in ("(" * 390, "(a|b)" * 80, ".*" * 200, "((a|b)|(c|d))" * 30, "[0-9]" * 90, "\\" * 400):
        layer_texts.of_pattern(pattern)


# sd-scripts and musubi-tuner.


def test_rates_by_block_of_sdxl_are_rates_of_the_same_blocks(tmp_path: Path) -> None:
    weights = ["down_lr_weight=0,0,0,0,0.5,1,1,1,1", "mid_lr_weight=1,2,1", "up_lr_weight=1,0.25,1,1,1,1,1,1,1"]
    imported = network(tmp_path, "sdxl", "lora", *weights)
    assert imported.settings["optimizer"]["block_rates"] == [
        "down_blocks.1.attentions.0.=0.5", "mid_block.attentions=2", "up_blocks.0.attentions.1.=0.25", "resnets.=0"
    ]  # fmt: skip
    assert fate(imported, "network_args.down_lr_weight")[0] == "translated"


def test_a_curve_of_rates_and_its_threshold_are_those_of_sd_scripts(tmp_path: Path) -> None:
    imported = network(tmp_path, "sd", "lora", "up_lr_weight=reverse_linear+0.1", "block_lr_zero_threshold=0.2")
    rates = dict(line.rsplit("=", 1) for line in imported.settings["optimizer"]["block_rates"])
    assert float(rates["up_blocks.1.attentions.0."]) == pytest.approx(8 / 11 + 0.1, abs=1e-5)
    assert rates["up_blocks.3.attentions.2."] == "0" and "up_blocks.0.attentions.0." not in rates


def test_ranks_by_block_are_ranks_here_and_a_scale_of_its_own_is_said(tmp_path: Path) -> None:
    ranks = [0] * 4 + [8] * 9 + [16] * 12
    given = f"block_dims={','.join(map(str, ranks))}"
    same = network(tmp_path, "sd", "lora", given, f"block_alphas={','.join(map(str, ranks))}")
    adapter = same.settings["adapter"]
    assert adapter["without_layers"] == ["down_blocks.0.attentions.0.", "down_blocks.0.attentions.1."]
    assert (
        "mid_block.attentions=8" in adapter["block_ranks"] and "down_blocks.2.attentions.1.=8" in adapter["block_ranks"]
    )
    assert fate(same, "network_args.block_alphas")[0] == "translated"
    other = network(tmp_path, "sd", "lora", given, f"block_alphas={','.join(['4'] * 25)}")
    assert fate(other, "network_args.block_alphas")[0] == "translated"
    rates = dict(line.split("=") for line in other.settings["optimizer"]["block_rates"])
    texts = {line.rpartition("=")[0]: int(line.rpartition("=")[2]) for line in other.settings["adapter"]["block_ranks"]}
    for text, rank in texts.items():  # an alpha of 4 over its rank, where the scale of all is 1
        if rank != 4 and text not in ("resnets.", "samplers."):
            assert float(rates[f"{text}*lora_B"]) == pytest.approx(4 / rank)
    assert any("the same but for weight decay and clipping" in note for note in other.notes)


# The number of a layer's block in sd-scripts' lists, as `get_block_index` of its networks/lora.py (48d368fa) has it.
def block_number(path: str, family: str) -> int:
    if path.startswith("mid_block"):
        return 12 if family == "sd" else 11 if "attentions" in path else 10 if "resnets.0" in path else 12
    side, stage, kind, layer = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)", path).groups()  # type: ignore[union-attr]
    place = 3 * int(stage) + (2 if kind.endswith("samplers") else int(layer))
    return place + (({"sd": 1, "sdxl": 2} if side == "down" else {"sd": 13, "sdxl": 13})[family])


def unet_layers(family: str) -> dict[str, bool]:
    """Every layer that sd-scripts adapts with convolutions, and whether it is a 3x3 one."""
    full = {
        "sd": {"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
               "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
               "block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 32},
        "sdxl": {"down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
                 "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
                 "block_out_channels": (32, 64, 128), "cross_attention_dim": 32,
                 "transformer_layers_per_block": (1, 2, 10)},
    }[family]  # fmt: skip
    with torch.device("meta"):
        unet = UNet2DConditionModel(**full, attention_head_dim=8)
    kinds = ("Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D")
    return {
        f"{path}.{inner}": getattr(layer, "kernel_size", ()) == (3, 3)
        for path, module in unet.named_modules()
        if type(module).__name__ in kinds
        for inner, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_layer_has_the_rank_and_scale_of_its_block(tmp_path: Path, family: str, seed: int) -> None:
    """Convolutions too, with lists of their own or one rank for all; a rank of 0 leaves layers out."""
    chance, count = random.Random(f"{family} {seed}"), {"sd": 25, "sdxl": 23}[family]
    lists = {
        "block_dims": [chance.choice((0, 4, 8, 16)) for _ in range(count)],
        "block_alphas": [chance.choice((1, 4, 8, 16)) for _ in range(count)],
        "conv_block_dims": [chance.choice((0, 2, 8)) for _ in range(count)],
        "conv_block_alphas": [chance.choice((1, 2, 8)) for _ in range(count)],
    }
    rates = [chance.choice((0.5, 1.0, 2.0)) for _ in range({"sd": 12, "sdxl": 9}[family])]
    given = {name: list(values) for name, values in lists.items()}
    if seed == 1:  # one rank for all convolutions
        given |= {"conv_dim": [4], "conv_alpha": [2]}
        del given["conv_block_dims"], given["conv_block_alphas"]
        lists |= {"conv_block_dims": [4] * count, "conv_block_alphas": [2] * count}
    if seed == 2:  # ranks of all blocks are the network's where there are rates by block
        del given["block_dims"], given["block_alphas"]
        lists |= {"block_dims": [16] * count, "block_alphas": [16] * count}
    if seed == 3:  # an alpha of 1 where none is given
        del given["conv_block_alphas"]
        lists["conv_block_alphas"] = [1] * count
    arguments = [f"{name}={','.join(map(str, values))}" for name, values in given.items()]
    imported = network(tmp_path, family, "lora", *arguments, f"up_lr_weight={','.join(map(str, rates))}")
    adapter, optimizer = imported.settings["adapter"], imported.settings["optimizer"]
    ranks = schema.rank_patterns(tuple(adapter["block_ranks"]))
    factors = [(text, float(rate)) for text, _, rate in (line.rpartition("=") for line in optimizer["block_rates"])]

    for path, is_convolution in unet_layers(family).items():
        number = block_number(path, family)
        kind = "conv_block" if is_convolution else "block"
        rank, alpha = lists[f"{kind}_dims"][number], lists[f"{kind}_alphas"][number]
        is_absent = any(layer_patterns.fits(text, path) for text in adapter["without_layers"])
        assert is_absent == (rank == 0), path
        if rank:
            assert next((held for line, held in ranks.items() if re.match(line, path)), 16) == rank, path
            wanted = rates[number - 13] if 13 <= number < 13 + len(rates) else 1.0
            for factor, want in (("lora_A", wanted), ("lora_B", wanted * alpha / rank)):
                rate = next(
                    (rate for text, rate in factors if layer_patterns.fits(text, f"{path}.{factor}.weight")), 1.0
                )
                assert rate == pytest.approx(want), (path, factor)


def test_lists_of_blocks_without_block_dims_or_rates_have_no_effect(tmp_path: Path) -> None:
    imported = network(tmp_path, "sd", "lora", f"conv_block_dims={','.join(['4'] * 25)}")
    assert fate(imported, "network_args.conv_block_dims")[0] == "no effect"
    assert "without_layers" not in imported.settings["adapter"]


def test_rates_and_ranks_by_pattern_name_fluxs_layers_as_diffusers_does(tmp_path: Path) -> None:
    arguments = (
        r"network_reg_lrs=double_blocks\\.\\d+\\.img_attn=2e-4",
        r"network_reg_dims=single_blocks\\..*linear2=4",
    )
    imported = network(tmp_path, "flux", "lora_flux", *arguments)
    assert imported.settings["optimizer"]["block_rates"] == [
        "single_transformer_blocks.*proj_out*lora_B=4",  # the one alpha over 4, not over 16
        *(f"transformer/transformer_blocks.*.attn.{part}=2" for part in ("to_q", "to_k", "to_v", "to_out")),
    ]
    assert imported.settings["adapter"]["block_ranks"] == ["single_transformer_blocks.*proj_out=4"]


def test_patterns_to_leave_out_are_layers_left_out(tmp_path: Path) -> None:
    text = r"""
network_module = "networks.lora_qwen_image"
dit = "Qwen/Qwen-Image"
network_args = ['exclude_patterns=[".*img_mlp.*", "transformer_blocks\\.[0-1]\\."]', 'include_patterns=[".*norm.*"]']
"""
    imported = read(tmp_path, text)
    assert imported.settings["adapter"]["without_layers"] == [
        "img_mlp",
        "transformer_blocks.0.",
        "transformer_blocks.1.",
    ]
    assert fate(imported, "network_args.include_patterns")[0] == "can't be"
    imported = read(tmp_path, text.replace(".*img_mlp.*", "(?!x)"))
    status, why = fate(imported, "network_args.exclude_patterns")
    assert status == "can't be" and "is more than texts, numbers and alternatives" in why


# The others.


def _ai_toolkit(only: list[str], ignore: list[str]) -> str:
    return f"""
job: extension
config:
  name: x
  process:
    - type: sd_trainer
      network:
        type: lora
        linear: 16
        linear_alpha: 16
        network_kwargs:
          only_if_contains: {only}
          ignore_if_contains: {ignore}
      train: {{steps: 9, lr: 1e-4, batch_size: 1}}
      model: {{name_or_path: black-forest-labs/FLUX.1-dev, arch: flux}}
"""


def test_ai_toolkits_filters_are_layers_here(tmp_path: Path) -> None:
    """Those of its readme: two layers of FLUX alone."""
    only = ["transformer.single_transformer_blocks.7.proj_out", "transformer.single_transformer_blocks.20.proj_out"]
    adapter = read(tmp_path, _ai_toolkit(only, ["norm"]), "recipe.yaml").settings["adapter"]
    assert adapter["only_layers"] == [
        "transformer/single_transformer_blocks.7.proj_out", "transformer/single_transformer_blocks.20.proj_out"
    ]  # fmt: skip
    assert adapter["without_layers"] == ["norm"] and adapter["targets"] == "linear"


def test_onetrainers_filter_is_layers_here_plain_or_by_patterns(tmp_path: Path) -> None:
    def of(words: str, is_regex: bool) -> Imported:
        regex = str(is_regex).lower()
        values = f"""{{"model_type": "FLUX_DEV_1", "training_method": "LORA", "lora_rank": 16,
            "layer_filter_preset": "custom", "layer_filter": "{words}", "layer_filter_regex": {regex}}}"""
        return read(tmp_path, values, "recipe.json")

    assert of("blocks.7.,proj_out", False).settings["adapter"]["only_layers"] == ["blocks.7.", "proj_out"]
    texts = of(r"^transformer_blocks\\.\\d+\\.attn,ff\\.(net|x)", True).settings["adapter"]["only_layers"]
    assert texts == ["transformer_blocks.*.attn", "ff.net", "ff.x"]
    assert fate(of("(?!x)y", True), "layer_filter")[0] == "can't be"


def test_layers_that_are_left_out_come_back_from_musubi_tuner() -> None:
    values: dict[str, Any] = {"family": "qwen", "base": "a/b", "adapter": {"method": "lora", "targets": "attention-ff"}}
    values["adapter"]["without_layers"] = ["img_mlp", "transformer_blocks.0.*to_q"]
    assert "adapter.without_layers" not in recipes_out.write(parse(TrainConfig, values, "x"), "musubi-tuner").unsaid


@pytest.mark.parametrize("tool", ["ai-toolkit", "onetrainer"])
def test_layers_that_a_tool_can_say_come_back(tool: str) -> None:
    values: dict[str, Any] = {"family": "flux", "base": "a/b", "adapter": {"method": "lora", "targets": "linear"}}
    values["adapter"]["only_layers"] = ["single_transformer_blocks.7.", "proj_out"]
    if tool == "onetrainer":
        values["adapter"]["targets"] = "all"
    else:
        values["adapter"]["without_layers"] = ["transformer/transformer_blocks.3"]
    unsaid = recipes_out.write(parse(TrainConfig, values, "x"), tool).unsaid
    assert not {"adapter.only_layers", "adapter.without_layers", "adapter.targets"} & set(unsaid)
