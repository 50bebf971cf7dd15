"""A baked file does what its stack does, here and in diffusers, and says what a smaller rank costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import baking
from trainer.render.engine import Engine
from trainer.render.pipeline_call import draw


def stack(*adapters: tuple[Path, dict[str, Any]]) -> StackConfig:
    return StackConfig(
        prompt="a fox", steps=3, adapters=tuple(AdapterChoice(file=str(path), **more) for path, more in adapters)
    )


def held(engine: Engine, made: StackConfig) -> dict[str, torch.Tensor]:
    with engine.folded(made):
        return {path: weight.clone() for path, weight in engine.weights.items()}


@pytest.fixture
def two(trained: Path, trained_style: Path) -> StackConfig:
    return stack(
        (trained, {"weight": 0.7, "blocks": ("MID=0.5",)}), (trained_style, {"weight": -1.1, "text_weight": 0.4})
    )


def test_an_exact_bake_is_the_stack_in_every_layer(engine: Engine, two: StackConfig, tmp_path: Path) -> None:
    baked = baking.lora(engine, two, tmp_path / "both.safetensors", dtype=torch.float32)
    wanted, result = held(engine, two), held(engine, stack((baked.path, {})))
    for path, weight in wanted.items():
        torch.testing.assert_close(result[path], weight, rtol=1e-5, atol=1e-6)
    assert baked.residual == 0 and baked.rank == 7  # 4 and 3, side by side
    info = lora_file.inspect(baked.path)
    assert info.alpha == 7 and info.family == "sd"
    recipe = json.loads(info.metadata[baking.STACK_KEY])
    assert [adapter["weight"] for adapter in recipe["adapters"]] == [0.7, -1.1] and str(
        tmp_path.parent
    ) not in info.metadata[baking.STACK_KEY]


def test_a_baked_file_has_the_triggers_of_its_parts_each_once(engine: Engine, trained: Path, tmp_path: Path) -> None:
    parts = []
    for name, trigger in (("cat", "mokka"), ("style", "outline, mokka"), ("none", "")):
        header = lora_file.read_header(trained).metadata | {lora_file.TRIGGER_KEY: trigger}
        parts.append((tmp_path / f"{name}.safetensors", {}))
        save_file(load_file(trained), parts[-1][0], header)
    baked = baking.lora(engine, stack(*parts), tmp_path / "both.safetensors")
    assert lora_file.inspect(baked.path).trigger == "mokka, outline"


def test_a_smaller_rank_loses_what_the_dense_sum_says(engine: Engine, two: StackConfig, tmp_path: Path) -> None:
    wanted, base = held(engine, two), held(engine, stack())
    baked = baking.lora(engine, two, tmp_path / "small.safetensors", rank=2, dtype=torch.float32)
    result = held(engine, stack((baked.path, {})))
    lost = whole = 0.0
    for path in wanted:
        dense = (wanted[path] - base[path]).flatten(1).double()
        values = torch.linalg.svdvals(dense) if dense.any() else torch.zeros(1)
        lost, whole = lost + float(values[2:].square().sum()), whole + float(values.square().sum())
        assert (
            float((result[path] - wanted[path]).norm()) <= float(values[2:].norm()) + 1e-4 * float(dense.norm()) + 1e-5
        )
    assert baked.rank == 2 and 0.01 < baked.residual < 1
    assert baked.residual == pytest.approx((lost / whole) ** 0.5, rel=1e-3)


def test_diffusers_draws_the_same_with_the_baked_file(
    engine: Engine, two: StackConfig, tmp_path: Path, imprimatura_folder: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    baked = baking.lora(engine, two, tmp_path / "both.safetensors", dtype=torch.float32)
    pipe = StableDiffusionPipeline.from_pretrained(
        str(imprimatura_folder), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.load_lora_weights(str(tmp_path), weight_name=baked.path.name)
    pipe.set_progress_bar_config(disable=True)
    theirs, ours = draw(pipe, stack()), engine.render(two).image
    assert int(numpy.abs(numpy.asarray(theirs, dtype=int) - numpy.asarray(ours, dtype=int)).max()) <= 1


def test_a_base_with_the_stack_inside_draws_the_same_alone(engine: Engine, two: StackConfig, tmp_path: Path) -> None:
    wanted = numpy.asarray(engine.render(two).image, dtype=int)
    engine.restore()
    folder = baking.into_base(engine, two, tmp_path / "base")
    alone = (
        Engine(str(folder), device="cpu", dtype="float32")
        .render(stack().model_copy(update={"base": str(folder)}))
        .image
    )
    assert int(numpy.abs(numpy.asarray(alone, dtype=int) - wanted).max()) <= 1
    assert json.loads((folder / "velatura_stack.json").read_text())["adapters"][0]["weight"] == 0.7
    with pytest.raises(ConfigError, match="isn't empty"):
        baking.into_base(engine, two, folder)


def test_what_is_not_constant_or_not_low_rank_is_refused(engine: Engine, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a schedule"):
        baking.lora(engine, stack((trained, {"schedule": "linear 1 0"})), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="nothing to bake"):
        baking.lora(engine, stack((trained, {"weight": 0.0})), tmp_path / "x.safetensors")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, into = engine.shapes[name]
    loha = {
        "hada_w1_a": torch.randn(out, 2),
        "hada_w1_b": torch.randn(2, into),
        "hada_w2_a": torch.randn(out, 2),
        "hada_w2_b": torch.randn(2, into),
    }
    lora_file.save(tmp_path / "loha.safetensors", {engine.file_keys[name]: loha}, {}, torch.float32)
    with pytest.raises(ConfigError, match="give a rank"):
        baking.lora(engine, stack((tmp_path / "loha.safetensors", {})), tmp_path / "x.safetensors")
    baked = baking.lora(
        engine, stack((tmp_path / "loha.safetensors", {})), tmp_path / "y.safetensors", rank=4, dtype=torch.float32
    )
    assert baked.residual < 1e-5  # a product of two of rank 2 has rank 4
    assert not (tmp_path / "x.safetensors").exists() and not list(tmp_path.glob(".*"))


def test_the_commands_bake_and_show_the_modes(
    trained: Path, trained_style: Path, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    done = run_velatura(
        "stack", "bake", f"{trained}:0.5", f"{trained_style}:1", "--out", "both.safetensors", "--rank", "2"
    )
    assert done.returncode == 0 and "left out" in done.stdout, done.stderr
    done = run_velatura("stack", "modes", str(trained), str(trained_style), "--steps", "2", "--out", "modes.png")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[:5]] == [
        "composite",
        "k-lora",
        "loratorio",
        "sum",
        "switch",
    ]
    with Image.open(tmp_path / "modes.png") as sheet:
        assert sheet.width > 4 * 128
    assert run_velatura("stack", "bake", str(trained)).returncode == 2
