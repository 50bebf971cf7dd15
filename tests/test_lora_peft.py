"""PEFT's folders: every adapter that PEFT saves is what PEFT merges, wherever a LoRA file is taken, and a damaged
config is refused in words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.timing import since
from trainer import against_stack, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError
from trainer.lora_file.patterns import Patterns
from trainer.lora_tools.opening import open_file, updates
from trainer.lora_tools.weights import open_weights
from trainer.render import batch_recipe
from trainer.render.adapter_cache import Shelf
from trainer.render.engine import Engine

LINEAR = r".*attn[12]\.to_[qkv]"
BOTH = r".*(attn[12]\.to_[qk]|resnets\.\d\.conv1|proj_in)"
VARIANTS: dict[str, Any] = {
    "plain": LoraConfig(r=4, lora_alpha=8, target_modules=BOTH),
    "rslora": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=BOTH),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=BOTH,
        rank_pattern={r"attn1\.to_q": 2, "^mid_block.*": 3, "conv1": 6},
        alpha_pattern={r"mid_block.*to_k": 1, "to_q": 3, r".*conv\d": 5},
    ),
    "patterns of rslora": LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=LINEAR,
        rank_pattern={"to_q": 9},
        alpha_pattern={"to_(q|k)": 3},
    ),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=BOTH),
    "gaussian": LoraConfig(r=3, lora_alpha=1, init_lora_weights="gaussian", target_modules=["to_q"]),
    "loha": LoHaConfig(r=3, alpha=6, target_modules=BOTH, rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 1}),
    "loha kernels": LoHaConfig(r=3, alpha=6, target_modules=BOTH, use_effective_conv2d=True),
    "lokr": LoKrConfig(r=3, alpha=6, target_modules=BOTH, decompose_both=True),
    "lokr whole": LoKrConfig(r=64, alpha=16, target_modules=BOTH, rank_pattern={"to_q": 48}, alpha_pattern={"to_k": 4}),
    "lokr kernels": LoKrConfig(r=2, alpha=6, target_modules=BOTH, use_effective_conv2d=True),
}


def saved(folder: Path, config: Any, base: Path) -> dict[str, Tensor]:
    """A random adapter of PEFT's on Imprimatura's denoiser, saved; what PEFT's merge changes, by `unet.path`."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(str(base / "unet"))
    before = {name: weight.detach().clone() for name, weight in unet.named_parameters()}
    model = get_peft_model(unet, config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, 1.0 if "magnitude" in name else 0.0, 0.1)
    model.save_pretrained(str(folder))
    model.merge_and_unload()
    after = dict(unet.named_parameters())
    return {
        f"unet.{name.removesuffix('.weight')}": after[name].detach() - weight
        for name, weight in before.items()
        if not torch.equal(after[name], weight)
    }


def compare(path: Path, wanted: dict[str, Tensor], engine: Engine, bound: float = 1e-4) -> None:
    updates = lora_file.read(path, engine.file_keys, engine.shapes)
    assert set(updates) == set(wanted)
    for name, change in wanted.items():
        base = engine.weights[name]
        assert float((updates[name].dense(base, torch.float32) - change).norm() / change.norm()) < bound, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_folder_of_pefts_is_what_peft_merges(
    variant: str, imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    wanted = saved(tmp_path, VARIANTS[variant], imprimatura_folder)
    compare(tmp_path, wanted, engine)
    compare(tmp_path / "adapter_model.safetensors", wanted, engine)


@pytest.mark.parametrize("variant", ["plain", "patterns", "rslora", "loha", "lokr", "lokr whole"])
def test_what_is_converted_says_the_strength_itself(
    variant: str, imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    from trainer.lora_tools.convert import convert

    wanted = saved(tmp_path / "fox", VARIANTS[variant], imprimatura_folder)
    done = convert(tmp_path / "fox", tmp_path / "fox.safetensors", "kohya", "float32")
    assert "adapter_config" not in lora_file.read_header(done.path).metadata
    compare(done.path, wanted, engine)


def test_the_whole_header_of_a_file_that_diffusers_saves_for_one_model_counts(
    imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    """`save_lora_adapter` writes PEFT's config without a component, and names without one."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(str(imprimatura_folder / "unet"))
    unet.add_adapter(
        LoraConfig(
            r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q"], alpha_pattern={"mid_block.*to_q": 2}
        )
    )
    before = {
        f"unet.{name.removesuffix('.base_layer.weight')}": parameter.detach().clone()
        for name, parameter in unet.named_parameters()
        if "to_q.base" in name
    }
    unet.save_lora_adapter(str(tmp_path), weight_name="fox.safetensors")
    unet.fuse_lora()
    after = {
        f"unet.{name.removesuffix('.base_layer.weight')}": parameter.detach()
        for name, parameter in unet.named_parameters()
        if "to_q.base" in name
    }
    compare(tmp_path / "fox.safetensors", {name: after[name] - weight for name, weight in before.items()}, engine, 1e-3)


def test_the_commands_take_a_folder_of_pefts(
    imprimatura_folder: Path, trained: Path, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    saved(tmp_path / "fox", VARIANTS["plain"], imprimatura_folder)
    inspected = json.loads(run_velatura("inspect", "fox", "--json").stdout)
    assert (inspected["name"], inspected["alpha"], inspected["rank"], inspected["scheme"]) == ("fox", 8.0, 4, "peft")
    drawing = ["--prompt", "a cat", "--steps", "2", "--size", "64x64", "--set", "seed=1"]
    pictures = {}
    for name, lora in (("folder", "fox:1.0"), ("file", "fox/adapter_model.safetensors"), ("half", "fox:0.5")):
        done = run_velatura("render", "--lora", lora, "--out", f"{name}.png", *drawing)
        assert done.returncode == 0, done.stderr
        pictures[name] = lora_pixels(tmp_path / f"{name}.png")
    assert pictures["folder"] == pictures["file"] != pictures["half"]
    for words in (
        ["convert", "fox", "--out", "a.safetensors"],
        ["merge", "fox:0.5", trained, "--out", "b.safetensors", "--dtype", "float32"],
        ["merge", "fox", trained, "--out", "b2.safetensors"],
        ["resize", "fox", "--rank", "2", "--out", "c.safetensors"],
    ):  # fmt: skip
        done = run_velatura("lora", *words)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (words, done.stdout, done.stderr)
    *named, converter = run_velatura("lora", "verify", "fox").stdout.splitlines()
    assert sum(line.startswith("ok") for line in named) >= 7 and "diffusers' converter" in converter, (
        "diffusers has no names of PEFT's for this family"
    )
    done = run_velatura("lora", "verify", "fox", "--base", "imprimatura")
    inspected = [line for line in done.stdout.splitlines() if "diffusers'" in line]
    assert (
        done.returncode == 0
        and len(inspected) == 2
        and all("as if the LoRA weren't there" in line and "velatura lora convert" in line for line in inspected)
    )
    done = run_velatura("lora", "verify", "a.safetensors", "--base", "imprimatura")  # what `convert` made of it
    assert done.returncode == 0 and [line[:2] for line in done.stdout.splitlines() if "diffusers'" in line] == [
        "ok",
        "ok",
    ]
    assert run_velatura("lora", "convert", "fox", "--out", "fox/adapter_model.safetensors").returncode == 2
    merged, whole = norms(tmp_path / "b.safetensors"), norms(tmp_path / "fox")
    only = next(path for path in whole if path not in norms(trained))
    assert merged[only] == pytest.approx(whole[only] / 2, rel=1e-4)


def lora_pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as opened:
        return opened.convert("RGB").tobytes()


def norms(path: Path) -> dict[str, float]:
    return {name: float(update.squared_norm() or 0) ** 0.5 for name, update in updates(open_file(path)).items()}


def test_a_stack_file_and_a_batch_take_a_folder_of_pefts(
    imprimatura_folder: Path, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    saved(tmp_path / "fox", VARIANTS["rslora"], imprimatura_folder)
    lines = 'prompt = "a cat"\nsteps = 2\nwidth_px = 64\nheight_px = 64\nadapters = [{file = "fox", weight = 0.8}]\n'
    (tmp_path / "stack.toml").write_text(lines)
    done = run_velatura("render", "--stack", "stack.toml", "--out", "stack.png")
    assert done.returncode == 0 and (tmp_path / "stack.png").is_file(), done.stderr
    (tmp_path / "jobs.toml").write_text(
        'prompts = ["a cat"]\nseeds = [1]\nstacks = [["fox:0.8"]]\nsteps = 2\nwidth_px = 64\nheight_px = 64\n'
    )
    done = run_velatura("batch", "jobs.toml", "--out", "pictures")
    assert done.returncode == 0 and len(list((tmp_path / "pictures").glob("*.png"))) == 1, done.stderr


def test_training_against_a_folder_of_pefts_folds_it_in_at_its_strength(
    imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    wanted = saved(tmp_path / "fox", VARIANTS["plain"], imprimatura_folder)
    weights = {name: weight.clone() for name, weight in engine.weights.items()}
    lines = (f"{tmp_path / 'fox'}:0.5",)
    before = against_stack.digest(lines)
    against_stack.fold(lines, weights, engine.file_keys)
    name, change = next(iter(wanted.items()))
    torch.testing.assert_close(weights[name] - engine.weights[name], 0.5 * change, rtol=1e-3, atol=1e-5)
    config = tmp_path / "fox" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 4'))
    assert against_stack.digest(lines) != before, "another strength is another stack"


def test_a_config_that_changes_is_another_adapter_to_the_one_who_keeps_them(
    imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    saved(tmp_path, VARIANTS["plain"], imprimatura_folder)
    shelf = Shelf(engine.opened, lambda words, name: None)
    strong = shelf.get(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 40'))
    weak = shelf.get(tmp_path)
    name = next(iter(strong.updates))
    assert float(weak.updates[name].squared_norm() or 0) == pytest.approx(
        25 * float(strong.updates[name].squared_norm() or 0), rel=1e-4
    )


def test_a_config_that_changes_is_another_picture_to_a_batch(tmp_path: Path) -> None:
    stack = StackConfig(
        base="imprimatura", prompt="x", adapters=(AdapterChoice(file=str(small(tmp_path)), weight=1.0),)
    )
    weak, _ = batch_recipe.identified(stack, "base", dict)
    assert batch_recipe.identified(stack, "base", dict)[0] == weak
    small(tmp_path, lora_alpha=40)
    strong, held = batch_recipe.identified(stack, "base", dict)
    assert strong != weak and len(held.adapters[0].sha256) == 64


def small(folder: Path, **config: Any) -> Path:
    """A folder of one layer of Imprimatura, with a config by hand."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, into = open_weights(Path("imprimatura")).shapes[layer]
    name = layer.replace("unet.", "base_model.model.")
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, into), f"{name}.lora_B.weight": torch.ones(out, 2)},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "PEFT's kind 'IA3'"),
        ({"peft_type": ["LORA"]}, "which can't be used here"),
        ({"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "started from a part of the base"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; allowed: a number"),
        ({"lora_alpha": float("nan")}, "allowed: a number"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alpha_pattern": ["to_q"]}, "alpha_pattern is"),
        ({"alpha_pattern": {"to_q": None, "(": 3}}, "no regular expression"),
        ({"alpha_pattern": {"to_q": [3]}}, "allowed: a number"),
        ({"alpha_pattern": {"x" * 501: 3}}, "allowed: 20000 of 500"),
        ({"alpha_pattern": {"((((.{1,99}){1,99}){1,99}){1,99})+[y-z]": 2}}, "more than 3 s"),
        ({"r": "\ud800", "peft_type": "\ud800"}, "PEFT's kind"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_the_command(
    config: dict[str, Any], says: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    small(tmp_path, **config)
    done = run_velatura("inspect", ".")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "can't be read"),
        (b"\xff\xfe{", "it is not text"),
        (b"[" * 100_000, "can't be read"),
        (b"[1]", "it is no table"),
        (b" " * (2 << 20), "1048576 bytes"),
    ],
)
def test_a_config_that_is_none_is_refused_by_the_command(
    text: bytes, says: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    small(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text)
    for words in (("inspect", "."), ("render", "--lora", ".:1", "--out", "x.png")):
        done = run_velatura(*words)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_folder_that_is_no_lora_is_refused_with_what_to_do(tmp_path: Path, run_velatura: Callable[..., Any]) -> None:
    (tmp_path / "empty").mkdir()
    assert "folder without adapter_model.safetensors" in run_velatura("inspect", "empty").stderr
    (tmp_path / "empty" / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert "a pickle, which can run anything" in run_velatura("inspect", "empty").stderr


def test_the_config_of_another_file_says_nothing_of_a_lora_beside_it(tmp_path: Path) -> None:
    small(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "wolf.safetensors")
    assert (lora_file.inspect(tmp_path / "wolf.safetensors").alpha, lora_file.inspect(tmp_path).alpha) == (None, 4.0)


PATTERNS = [
    "to_q", "attn1.to_q", r"down_blocks\.0\..*to_k", "^mid_block.x$", ".*attn[12].*", "a|b", "(?i:TO_V)", "to_.", "x$",
    "^unet", "to_out.0",
    r"blocks\.(\d+)\.attn\.to_q", "to-q", r".*\.to_q", r"attn1\.to_q$", "[^x]+", r"^blocks\.12", "",
]  # fmt: skip
PATHS = [
    "to_q", "a.to_q", "attn1_to_q", "x.attn1.to_q", "down_blocks.0.attentions.0.to_k", "mid_block.x", "q.mid_block.x",
    "b", "xa.b", "c.to_v", "z.xto_q",
    "to_out_0", "blocks.12.attn.to_q", "u.unet", "unet", "k.to-q",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_the_pattern_that_counts_is_the_one_that_counts_for_peft(path: str) -> None:
    for first in PATTERNS:
        for second in PATTERNS:
            theirs = get_pattern_key([first, second], path)
            ours = Patterns({first: 1.0} | ({second: 2.0} if second != first else {})).get(path)
            matched = theirs if theirs in (first, second) and (theirs != path or path in (first, second)) else None
            assert ours == (None if matched is None else 1.0 if matched == first else 2.0), (first, second)


@pytest.mark.parametrize(
    "evil",
    [
        "(a+)+$x",
        "(.*)*(.*)*(.*)*z",
        "((((a{1,99}){1,99}){1,99}){1,99}){1,99}b",
        "(a|a)*b",
        "(x+x+)+y",
        "(?:(?:(?:.*.*)*)*)*q",
    ],
)
def test_a_hostile_pattern_takes_seconds_at_most_for_all_modules_together(evil: str) -> None:
    start, patterns = time.thread_time(), Patterns({evil: 1.0})
    try:
        answers = {patterns.get("a" * 200 + f".{'x' * 30}{number}") for number in range(500)}
        assert answers == {None}
    except ValueError as error:
        assert "more than 3 s" in str(error)
    assert since(start) < 6


def test_many_plain_patterns_are_compared_with_many_modules_in_a_moment() -> None:
    names = [f"transformer_blocks.{number}.attn.to_{part}" for number in range(300) for part in "qkv"]
    patterns = Patterns({name: float(number) for number, name in enumerate(names)})
    assert [patterns.get(name) for name in names] == list(range(900))
    with pytest.raises(AdapterError, match="more than 3 s|20000"):
        crowded = lora_file.header_meaning.stated(
            "x", {"adapter_config": json.dumps({"alpha_pattern": {f"(a|b)*{number}c": 1 for number in range(20_001)}})}
        )
        crowded.alpha("base_model.model.ab", 1)
