"""Documented examples of other trainers: recognised by content, every key known, and what the important ones become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.other_trainers import RECIPES
from trainer import cli, presets
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import importing
from trainer.other_trainers.contract import Imported
from trainer.other_trainers.recipes_out import leaves
from trainer.other_trainers.rows import STATUSES

TOOLS = {
    "sdxl_sd_scripts.toml": "sd-scripts", "flux_sd_scripts.sh": "sd-scripts", "sd3_sd_scripts.sh": "sd-scripts",
    "dataset_sd_scripts.toml": "sd-scripts", "kohya_gui_lora.json": "kohya_ss", "onetrainer_sdxl.json": "onetrainer",
    "onetrainer_flux.json": "onetrainer", "ai_toolkit_flux.yaml": "ai-toolkit",
    "diffusion_pipe_qwen.toml": "diffusion-pipe", "simpletuner_flux.json": "simpletuner",
    "musubi/zimage.sh": "musubi-tuner", "musubi/dataset.toml": "musubi-tuner", "diffusers_flux.sh": "diffusers",
    "diffusers_sdxl.txt": "diffusers", "fluxgym/train.sh": "fluxgym", "fluxgym/dataset.toml": "sd-scripts",
    "ai_toolkit_qwen.yaml": "ai-toolkit", "ai_toolkit_zimage.yaml": "ai-toolkit", "ai_toolkit_sd35.yaml": "ai-toolkit",
    "ai_toolkit_hidream.yaml": "ai-toolkit", "simpletuner_hidream.json": "simpletuner",
    "simpletuner_lumina2.json": "simpletuner", "onetrainer_chroma.json": "onetrainer",
    "onetrainer_flux2.json": "onetrainer", "onetrainer_qwen.json": "onetrainer", "onetrainer_sd15.json": "onetrainer",
    "musubi/qwen.sh": "musubi-tuner", "musubi/flux2.sh": "musubi-tuner", "diffusion_pipe/flux.toml": "diffusion-pipe",
    "diffusion_pipe/dataset.toml": "diffusion-pipe",
}  # fmt: skip
# What each recipe trains, by hand from its tool's documentation and source.
EXPECTED: dict[str, dict[str, Any]] = {
    "sdxl_sd_scripts.toml": {
        "family": "sdxl", "max_steps": 200, "batch_size": 1, "adapter.rank": 32, "adapter.alpha": 16.0,
        "adapter.targets": "linear", "optimizer.block_rates": ("resnets.=0",), "adapter.text_encoder": False,
        "objective.weighting": "min-snr", "optimizer.name": "adamw8bit", "optimizer.schedule": "constant",
        "dtype": "bfloat16", "save_dtype": "float16", "captions.shuffle_tags": True, "captions.keep_tags": 1,
        "data.caption_dropout": 0.05, "data.max_aspect_ratio": 4.0, "seed": 42, "learning_rate": 1e-4,
        "checkpoint_every_steps": 20,
    },
    "flux_sd_scripts.sh": {
        "family": "flux", "max_steps": 1000, "adapter.rank": 16, "adapter.alpha": 1.0, "adapter.targets": "linear",
        "objective.timesteps": "sigmoid", "objective.shift": "resolution", "memory.offload": "blocks",
        "objective.weighting": "none", "objective.noise_offset": 0.0, "data.caption_dropout": 0.0,
    },
    "sd3_sd_scripts.sh": {
        "family": "sd3", "objective.timesteps": "logit-normal", "objective.timesteps_mean": 0.5,
        "objective.shift": "fixed", "objective.shift_factor": 3.0, "objective.timesteps_low": 0.1,
        "optimizer.name": "adafactor", "optimizer.weight_decay": 0.0, "max_steps": 200, "adapter.alpha": 1.0,
    },
    "kohya_gui_lora.json": {
        "family": "sdxl", "adapter.method": "dora", "adapter.targets": "all", "adapter.rank": 32, "adapter.alpha": 16.0,
        "adapter.block_ranks": ("conv1=8", "conv2=8", "samplers=8"), "optimizer.name": "prodigy",
        "optimizer.weight_decay": 0.5, "learning_rate": 1.0, "adapter.text_encoder": True,
        "optimizer.block_rates": (), "optimizer.warmup_steps": 4, "max_steps": 40, "objective.multires_noise": 5,
        "objective.noise_offset": 0.0, "dtype": "float16", "preview.seed": 7, "preview.guidance_scale": 6.5,
        "preview.prompts": ("an elf", "an elf in rain"), "preview_every_steps": 10,
        "optimizer.options": ("decouple=True", "betas=(0.9,0.99)", "use_bias_correction=False"),
    },
    "onetrainer_sdxl.json": {
        "family": "sdxl", "adapter.rank": 16, "adapter.alpha": 1.0, "learning_rate": 3e-4, "max_steps": 500,
        "adapter.targets": "linear", "optimizer.block_rates": ("resnets.=0",), "optimizer.warmup_steps": 200,
        "optimizer.schedule": "constant", "optimizer.weight_decay": 0.01, "dtype": "float16", "batch_size": 4,
        "memory.gradient_checkpointing": True, "data.crop": "random", "captions.lines": "choose",
    },
    "onetrainer_flux.json": {
        "family": "flux", "max_steps": 50, "accumulation": 2, "adapter.rank": 8, "adapter.alpha": 8.0,
        "adapter.targets": "attention-ff", "objective.timesteps_mean": 0.5, "objective.shift": "resolution",
        "resolution_px": 512, "data.more_resolutions_px": (768,), "memory.quantise": "nf4", "data.flip": True,
        "captions.keep_tags": 2, "preview_every_steps": 20, "optimizer.warmup_steps": 5, "data.caption_dropout": 0.1,
        "optimizer.options": ("eps=1e-08", "betas=(0.9, 0.99)"), "optimizer.weight_decay": 0.02,
        "preview.prompts": ("a cat",), "preview.steps": 22,
    },
    "ai_toolkit_flux.yaml": {
        "family": "flux", "adapter.rank": 16, "adapter.alpha": 16.0, "adapter.targets": "linear", "max_steps": 2000,
        "resolution_px": 1024, "data.more_resolutions_px": (512, 768), "optimizer.ema_decay": 0.99,
        "save_dtype": "float16",
        "objective.timesteps": "sigmoid", "objective.shift": "none", "memory.quantise": "fp8", "learning_rate": 1e-4,
        "data.trigger": "p3r5on", "preview.prompts": ("p3r5on holding a coffee cup", "a horse at a night club"),
    },
    "diffusion_pipe_qwen.toml": {
        "family": "qwen", "max_steps": 500, "accumulation": 4, "adapter.alpha": 32.0, "optimizer.warmup_steps": 100,
        "objective.timesteps": "sigmoid", "objective.shift_factor": 3.0, "memory.quantise": "fp8",
        "optimizer.options": ("betas=(0.9, 0.99)", "eps=1e-08"), "learning_rate": 2e-5,
    },
    "simpletuner_flux.json": {
        "family": "flux", "adapter.rank": 16, "adapter.dropout": 0.1, "adapter.targets": "attention", "max_steps": 100,
        "objective.shift": "fixed", "objective.shift_factor": 3.0, "optimizer.max_grad_norm": 2.0,
        "memory.quantise": "int8", "optimizer.schedule": "constant",
    },
    "musubi/zimage.sh": {
        "family": "zimage", "adapter.rank": 32, "adapter.alpha": 1.0, "adapter.targets": "attention-ff",
        "objective.shift_factor": 2.0, "max_steps": 640, "memory.quantise": "fp8", "resolution_px": 720,
        "adapter.without_layers": ("_refiner.",),
        "data.buckets": True, "dtype": "bfloat16",
    },
    "diffusers_flux.sh": {
        "family": "flux", "adapter.rank": 4, "adapter.alpha": 4.0, "adapter.init": "gaussian", "max_steps": 500,
        "optimizer.name": "prodigy", "optimizer.weight_decay": 1e-4, "captions.prefix": "a photo of sks dog",
        "adapter.targets": "attention-ff", "optimizer.block_rates": ("proj_mlp=0", "proj_out=0"), "data.crop": "random",
        "objective.timesteps": "uniform", "objective.shift": "none", "data.buckets": False, "accumulation": 4,
    },
    "diffusers_sdxl.txt": {
        "family": "sdxl", "adapter.alpha": 8.0, "adapter.targets": "attention", "max_steps": 40, "dtype": "float16",
        "optimizer.block_rates": (".mlp.fc=0", "text_encoder/=0.05", "text_encoder_2/=0.05"), "data.flip": True,
        "objective.weighting": "min-snr", "optimizer.schedule": "cosine", "optimizer.weight_decay": 0.01,
    },
    "ai_toolkit_qwen.yaml": {
        "family": "qwen", "base": "Qwen/Qwen-Image", "adapter.rank": 16, "adapter.alpha": 16.0, "max_steps": 2000,
        "memory.quantise": "nf4", "optimizer.name": "adamw8bit", "learning_rate": 1e-4, "preview.steps": 25,
        "data.more_resolutions_px": (512, 768), "data.caption_dropout": 0.05, "keep_checkpoints": 4,
    },
    "ai_toolkit_zimage.yaml": {
        "family": "zimage", "adapter.rank": 128, "batch_size": 2, "optimizer.name": "prodigy", "learning_rate": 1.0,
        "objective.preservation_weight": 1.0, "data.class_caption": "person", "save_dtype": "bfloat16",
        "resolution_px": 1024, "data.more_resolutions_px": (), "memory.quantise": "fp8", "optimizer.ema_decay": 0.0,
    },
    "ai_toolkit_hidream.yaml": {
        "family": "hidream", "adapter.targets": "linear", "adapter.without_layers": ("ff_i.experts", "ff_i.gate"),
        "learning_rate": 2e-4, "max_steps": 3000, "objective.shift": "resolution", "adapter.alpha": 32.0,
    },
    "ai_toolkit_sd35.yaml": {
        "family": "sd3", "objective.timesteps": "uniform", "optimizer.ema_decay": 0.99, "adapter.rank": 16,
        "memory.quantise": "fp8", "preview_every_steps": 250,
    },
    "simpletuner_hidream.json": {
        "family": "hidream", "adapter.rank": 128, "optimizer.name": "lion", "optimizer.schedule": "cosine",
        "learning_rate": 5e-5, "objective.shift_factor": 3.0, "optimizer.max_grad_norm": 1e9, "max_steps": 100,
        "memory.quantise": "int8", "data.caption_dropout": 0.1, "optimizer.warmup_steps": 0, "resolution_px": 512,
    },
    "simpletuner_lumina2.json": {
        "family": "lumina2", "objective.shift": "resolution", "batch_size": 2, "optimizer.warmup_steps": 0,
        "adapter.alpha": 16.0, "preview_every_steps": 50, "preview.steps": 40, "preview.guidance_scale": 4.0,
    },
    "onetrainer_chroma.json": {
        "family": "chroma", "adapter.rank": 16, "adapter.alpha": 1.0, "learning_rate": 3e-4, "batch_size": 2,
        "adapter.targets": "attention-ff", "memory.quantise": "fp8", "memory.offload": "blocks",
    },
    "onetrainer_flux2.json": {
        "family": "flux2", "learning_rate": 3e-5, "adapter.targets": "linear", "objective.timesteps": "logit-normal",
        "objective.shift": "resolution", "memory.quantise": "int8", "memory.compile": "blocks",
    },
    "onetrainer_qwen.json": {
        "family": "qwen", "adapter.targets": "attention-ff", "objective.timesteps": "logit-normal",
        "memory.quantise": "fp8", "save_dtype": "bfloat16",
    },
    "onetrainer_sd15.json": {
        "family": "sd", "adapter.targets": "all", "optimizer.block_rates": ("resnets.=0", "samplers.=0"),
        "adapter.text_encoder": True, "adapter.alpha": 1.0, "batch_size": 4, "resolution_px": 512,
    },
    "musubi/qwen.sh": {
        "family": "qwen", "adapter.rank": 16, "adapter.alpha": 1.0, "objective.shift_factor": 2.2,
        "learning_rate": 5e-5, "max_steps": 320, "optimizer.name": "adamw8bit", "seed": 42, "dtype": "bfloat16",
    },
    "musubi/flux2.sh": {
        "adapter.rank": 32, "adapter.alpha": 1.0, "objective.shift": "resolution", "learning_rate": 1e-4,
        "objective.timesteps": "sigmoid", "memory.gradient_checkpointing": True,
    },
    "diffusion_pipe/flux.toml": {
        "family": "flux", "adapter.method": "lokr", "adapter.rank": 256, "adapter.factor": 4, "batch_size": 1,
        "max_steps": 5000, "optimizer.schedule": "constant", "objective.loss": "huber", "objective.huber_delta": 0.5,
        "objective.shift": "resolution", "memory.offload": "blocks", "memory.compile": "blocks",
        "memory.gradient_checkpointing": True, "optimizer.name": "adamw8bit", "data.max_aspect_ratio": 2.0,
    },
    "fluxgym/train.sh": {
        "family": "flux", "adapter.rank": 4, "adapter.alpha": 1.0, "learning_rate": 8e-4, "max_steps": 3200,
        "objective.shift_factor": 3.1582, "memory.quantise": "fp8",
        "optimizer.block_rates": ("transformer/transformer_blocks.=0",), "optimizer.max_grad_norm": 1e9,
    },
}  # fmt: skip


def read(name: str, **options: Any) -> Imported:
    return importing.read(RECIPES / name, **{"pictures": 20, **options})


def config_of(imported: Imported) -> dict[str, Any]:
    return dict(leaves(parse(TrainConfig, imported.settings, "test")))


def by_key(imported: Imported) -> dict[str, tuple[str, str]]:
    return {key.key: (key.status, key.why) for key in imported.keys}


def test_every_recipe_has_its_tool_here() -> None:
    files = {path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*") if path.is_file()}
    assert files == set(TOOLS)


@pytest.mark.parametrize("name", TOOLS)
def test_a_documented_example_is_recognised_and_no_key_of_it_is_unknown(name: str, tmp_path: Path) -> None:
    nameless = tmp_path / "x"
    nameless.write_bytes((RECIPES / name).read_bytes())
    assert importing.recognised(nameless) == TOOLS[name]
    imported = read(name)
    assert imported.tool == TOOLS[name] and imported.keys
    assert not [key.key for key in imported.keys if "no key of" in key.why]
    assert {key.status for key in imported.keys} <= set(STATUSES)
    assert all(key.became or key.why for key in imported.keys if key.status != "taken")
    text = json.dumps([imported.settings, [[key.value, key.why] for key in imported.keys]])
    assert "hf_secret" not in text


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_becomes_what_its_tool_would_train(name: str) -> None:
    config = config_of(read(name))
    assert {setting: config[setting] for setting in EXPECTED[name]} == EXPECTED[name]


def test_known_no_ops_are_said_to_have_no_effect() -> None:
    keys = by_key(read("flux_sd_scripts.sh"))
    for key in ("min_snr_gamma", "noise_offset"):
        assert keys[key][0] == "no effect" and "reads it nowhere" in keys[key][1]


def test_what_a_recipe_leaves_out_is_named_with_the_tools_default() -> None:
    left_out = {key.key: key.became for key in read("fluxgym/train.sh").left_out}
    assert left_out["network_alpha"] == "adapter.alpha = 1"


def test_a_dataset_config_says_repeats_and_regularisation() -> None:
    imported = read("dataset_sd_scripts.toml", family="sd")
    config, keys = config_of(imported), by_key(imported)
    assert config["data.repeats"] == ("hoge=2", "fuga=6") and config["batch_size"] == 4
    assert config["captions.shuffle_tags"] and config["captions.keep_tags"] == 2
    assert keys["datasets[0].subsets[2].is_reg"][0] == "can't be"


def test_the_users_family_and_base_stand_before_the_recipes() -> None:
    settings = read("dataset_sd_scripts.toml", family="sdxl", base="someone/pony").settings
    assert (settings["family"], settings["base"]) == ("sdxl", "someone/pony")


def test_steps_that_go_by_pictures_say_how_they_were_found() -> None:
    guessed, told = read("sdxl_sd_scripts.toml", pictures=0), read("sdxl_sd_scripts.toml", pictures=33)
    assert any("doesn't say how many; give --pictures" in note for note in guessed.notes)
    assert told.settings["max_steps"] == 330 and not any("doesn't say how many" in note for note in told.notes)
    assert any("10_name" in note for note in told.notes)


@pytest.mark.parametrize("name", ["onetrainer_sdxl.json", "ai_toolkit_flux.yaml", "sdxl_sd_scripts.toml"])
def test_no_place_of_the_recipes_machine_is_in_the_settings(name: str) -> None:
    text = json.dumps(read(name).settings)
    assert "/path" not in text and "/models" not in text and "/data" not in text


def test_a_recipe_of_a_family_that_is_not_trained_here_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "wan.json"
    path.write_text(json.dumps({"model_type": "HUNYUAN_VIDEO", "training_method": "LORA", "lora_rank": 4}))
    with pytest.raises(ConfigError, match="HUNYUAN_VIDEO, which isn't trained here"):
        importing.read(path)


def test_a_setting_that_ours_refuses_is_left_out_with_its_reason(tmp_path: Path) -> None:
    recipe = (RECIPES / "sdxl_sd_scripts.toml").read_text().replace("network_dim = 32", "network_dim = 1024")
    path = tmp_path / "x.toml"
    path.write_text(recipe)
    imported = importing.read(path)
    status, why = by_key(imported)["network_dim"]
    assert status == "can't be" and "256 or less" in why and "rank" not in imported.settings["adapter"]


def test_a_recipe_can_be_looked_at_before_anything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    command = ["preset", "import", str(RECIPES / "sdxl_sd_scripts.toml"), "--pictures", "20"]
    dry = CliRunner().invoke(cli.app, [*command, "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0 and "nothing was written" in dry.stdout and not presets.own()
    wet = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    report, _, end = dry.stdout.rpartition("\n\nwould be kept as")
    assert end and wet.exit_code == 0 and wet.stdout.startswith(report) and len(presets.own()) == 1
    asked = CliRunner().invoke(cli.app, [*command, "--dry-run", "--json"], catch_exceptions=False)
    assert json.loads(asked.stdout)["kept"] is False
