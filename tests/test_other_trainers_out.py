"""Presets in the words of other trainers: what both can say comes back as it was, and what can't be said is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from trainer import cli, presets
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import importing, recipes_out

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a tool can't say, so that the other settings of any preset that ships must come back equal.
UNSAYABLE = {
    "kohya": {
        "data.max_upscale", "preview.prompts", "preview.guidance_scale", "preview.guidance_rescale", "preview.steps",
        "data.bucket_step_px",
    },
    "onetrainer": {"data.max_upscale", "data.max_aspect_ratio", "captions.lines", "preview.guidance_rescale",
                   "data.bucket_step_px"},
    "ai-toolkit": {"data.max_upscale", "data.max_aspect_ratio", "validate_every_steps", "preview.guidance_rescale",
                   "data.bucket_step_px", "optimizer.options"},
    "diffusers": {
        "preview_every_steps", "validate_every_steps", "adapter.init", "data.caption_dropout", "data.buckets",
        "data.max_upscale", "preview.prompts", "preview.guidance_scale", "preview.guidance_rescale", "preview.steps",
        "objective.shift", "data.bucket_step_px",
    },
    "musubi-tuner": {
        "validate_every_steps", "data.caption_dropout", "data.bucket_step_px", "data.max_aspect_ratio",
        "data.max_upscale", "preview.prompts", "preview.guidance_scale", "preview.steps",
    },
    "simpletuner": {
        "validate_every_steps", "data.flip", "data.bucket_step_px", "data.max_aspect_ratio", "data.max_upscale",
        "preview.prompts",
    },
    "diffusion-pipe": {
        "preview_every_steps", "data.max_upscale", "preview.prompts", "preview.guidance_scale", "preview.steps",
    },
}  # fmt: skip
# What can't be said of some presets alone, and why.
OF_SOME = {
    "dtype": "auto is a choice of ours",
    "memory.quantise": "sd-scripts and diffusers have no int8",
    "adapter.targets": "a UNet's projections belong to kohya's transformers; other tools have one choice of layers",
    "optimizer.block_rates": "so do these lines, which freeze what it leaves out",
    "adapter.block_ranks": "so do these: what it leaves out is as small as can be",
    "objective.weighting": "diffusers' script for SD 1.5 has none",
    "data.flip": "nor does it mirror pictures",
    "objective.shift": "ai-toolkit has no shift of its own",
    "objective.timesteps": "diffusers has no sigmoid beside a shift",
    "adapter.alpha": "a script has no alpha; diffusion-pipe's is the rank",
}


@pytest.mark.parametrize("tool", recipes_out.TOOLS)
@pytest.mark.parametrize("name", presets.names())
def test_what_both_can_say_of_a_preset_comes_back_equal(tool: str, name: str) -> None:
    try:
        written = recipes_out.write(presets.load(name, {}), tool)
    except ConfigError as error:
        assert "trains no" in str(error)
        return
    assert set(written.unsaid) <= UNSAYABLE[tool] | set(OF_SOME)
    assert all(" here, " in why and why.endswith(" there") for why in written.unsaid.values())


def test_every_family_can_be_written_for_some_tool() -> None:
    for name in presets.names():
        config = presets.load(name, {})
        assert any(_written(config, tool) for tool in recipes_out.TOOLS), name


def _written(config: TrainConfig, tool: str) -> bool:
    try:
        return bool(recipes_out.write(config, tool).text)
    except ConfigError:
        return False


RATES = st.sampled_from([1e-5, 3e-4, 1e-4, 0.5, 1.0])
SAYABLE = {
    "max_steps": st.integers(50, 5000),
    "batch_size": st.integers(1, 16),
    "accumulation": st.integers(1, 8),
    "learning_rate": RATES,
    "resolution_px": st.sampled_from([512, 640, 768, 1024]),
    "dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    "save_dtype": st.sampled_from(["float32", "bfloat16", "float16"]),
    "checkpoint_every_steps": st.integers(1, 2000),
    "keep_checkpoints": st.integers(2, 9),
    "adapter.rank": st.integers(1, 256),
    "adapter.alpha": st.sampled_from([0.5, 1.0, 8.0, 16.0, 128.0]),
    "adapter.dropout": st.sampled_from([0.0, 0.1, 0.25]),
    "data.flip": st.booleans(),
    "data.crop": st.sampled_from(["centre", "random"]),
    "data.caption_dropout": st.sampled_from([0.0, 0.05, 0.1]),
    "optimizer.weight_decay": st.sampled_from([0.0, 0.01, 0.1]),
    "optimizer.warmup_steps": st.integers(0, 40),
    "optimizer.schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "optimizer.max_grad_norm": st.sampled_from([0.1, 1.0, 2.5]),
    "optimizer.name": st.sampled_from(["adamw", "adamw8bit", "lion", "prodigy", "adafactor"]),
    "memory.gradient_checkpointing": st.booleans(),
}
OF_KOHYA = SAYABLE | {
    "seed": st.integers(0, 2**32 - 1),
    "captions.suffix": st.sampled_from(["", "best quality"]),
    "objective.loss": st.sampled_from(["l2", "huber", "smooth_l1"]),
}
OF_NOISE = {
    "objective.noise_offset": st.sampled_from([0.0, 0.05, 0.1]),
    "objective.weighting": st.sampled_from(["none", "min-snr", "debiased"]),
}
OF_FLOW = {
    "objective.timesteps": st.sampled_from(["uniform", "sigmoid", "mode"]),
    "objective.shift": st.sampled_from(["none", "fixed"]),
    "objective.shift_factor": st.just(3.0),
}
OF_SIMPLETUNER = {name: values for name, values in OF_KOHYA.items() if name != "data.flip"} | {
    "data.trigger": st.sampled_from(["", "mokka"]),
    "preview_every_steps": st.integers(0, 500),
    "data.more_resolutions_px": st.sampled_from([[], [256], [256, 384]]),
    "optimizer.name": st.sampled_from(["adamw", "adamw8bit", "lion", "prodigy"]),
    "optimizer.options": st.sampled_from([[], ["betas=(0.9,0.98)"]]),
    "optimizer.schedule": st.sampled_from(["constant", "linear"]),
}
OF_MUSUBI = {name: values for name, values in SAYABLE.items() if name not in (
    "data.flip", "data.crop", "data.caption_dropout")}  # fmt: skip
OF_PIPE = {name: values for name, values in SAYABLE.items() if name not in (
    "data.flip", "data.crop", "adapter.alpha", "keep_checkpoints")} | {
    "data.more_resolutions_px": st.sampled_from([[], [256], [256, 384]]),
    "validate_every_steps": st.integers(1, 900),
    "optimizer.schedule": st.just("constant"),
}  # fmt: skip
NO_MODE = {"objective.timesteps": st.sampled_from(["uniform", "sigmoid"])}
BASES = {
    "sdxl": {"adapter.targets": "all", "preview.guidance_rescale": 0.0},
    "flux": {"adapter.targets": "attention-ff"},
    "qwen": {"adapter.targets": "attention-ff"},
}


def _said(draw: dict[str, Any], family: str, tool: str) -> None:
    values = {
        "family": family, "base": "someone/base", "adapter.method": "lora", **BASES[family], **draw,
    }  # fmt: skip
    tree: dict[str, Any] = {}
    for key, value in values.items():
        place = tree
        for part in key.split(".")[:-1]:
            place = place.setdefault(part, {})
        place[key.split(".")[-1]] = value
    if draw.get("objective.shift") == "none":
        del tree["objective"]["shift_factor"]
    written = recipes_out.write(parse(TrainConfig, tree, "drawn"), tool)
    changed = {name: written.unsaid[name] for name in draw if name in written.unsaid}
    assert not changed


QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.fixed_dictionaries(OF_KOHYA | OF_NOISE))
def test_any_config_that_kohya_can_say_comes_back_for_sdxl(draw: dict[str, Any]) -> None:
    _said(draw, "sdxl", "kohya")


@QUICK
@given(st.fixed_dictionaries(OF_KOHYA | OF_FLOW))
def test_any_config_that_kohya_can_say_comes_back_for_flux(draw: dict[str, Any]) -> None:
    _said(draw, "flux", "kohya")


@QUICK
@given(st.fixed_dictionaries(SAYABLE | OF_NOISE))
def test_any_config_that_onetrainer_can_say_comes_back_for_sdxl(draw: dict[str, Any]) -> None:
    _said(draw, "sdxl", "onetrainer")


@QUICK
@given(st.fixed_dictionaries(SAYABLE | OF_FLOW))
def test_any_config_that_onetrainer_can_say_comes_back_for_flux(draw: dict[str, Any]) -> None:
    _said(draw, "flux", "onetrainer")


@QUICK
@given(st.fixed_dictionaries(OF_MUSUBI | OF_FLOW | {"seed": st.integers(0, 2**32 - 1)}))
def test_any_config_that_musubi_tuner_can_say_comes_back_for_qwen(draw: dict[str, Any]) -> None:
    _said(draw, "qwen", "musubi-tuner")


@QUICK
@given(st.fixed_dictionaries(OF_SIMPLETUNER | OF_FLOW | NO_MODE))
def test_any_config_that_simpletuner_can_say_comes_back_for_flux(draw: dict[str, Any]) -> None:
    _said({key: value for key, value in draw.items() if key not in ("captions.suffix", "save_dtype")}, "flux",
          "simpletuner")  # fmt: skip


@QUICK
@given(st.fixed_dictionaries(OF_PIPE | OF_FLOW | NO_MODE))
def test_any_config_that_diffusion_pipe_can_say_comes_back_for_flux(draw: dict[str, Any]) -> None:
    _said({key: value for key, value in draw.items() if key != "adapter.targets"}, "flux", "diffusion-pipe")


def test_a_tool_with_a_file_for_the_dataset_gets_one_beside_that_names_no_other(tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    done = CliRunner().invoke(cli.app, ["preset", "export", "qwen-style", "--to", "musubi-tuner", "--out", str(out)])
    assert done.exit_code == 0 and {path.name for path in tmp_path.iterdir()} == {"mine.toml", "mine-dataset.toml"}
    assert 'dataset_config = "mine-dataset.toml"' in out.read_text()
    imported = importing.read(out)
    assert imported.tool == "musubi-tuner" and imported.settings["resolution_px"] == 1024
    assert not [key for key in imported.keys if key.why.startswith("no key of")]


@pytest.mark.parametrize("tool", recipes_out.TOOLS)
def test_what_is_written_has_no_key_that_the_tool_does_not_know(tool: str, tmp_path: Path) -> None:
    for name in ("sdxl-style", "flux-character", "qwen-concept@8gb"):
        config = presets.load(name, {})
        if not _written(config, tool):
            continue
        written = recipes_out.write(config, tool)
        ending = recipes_out.PAIRS[tool][1] if tool in recipes_out.PAIRS else ".txt"
        for file, text in {f"recipe{ending}": written.text, **written.beside}.items():
            (tmp_path / file).write_text(text)
        keys = importing.read(tmp_path / f"recipe{ending}", family=config.family).keys
        assert not [key.key for key in keys if key.why.startswith("no key of")]


@pytest.mark.parametrize("tool", recipes_out.TOOLS)
def test_an_optimizer_that_a_tool_lacks_is_named_and_its_arguments_stay_at_home(tool: str) -> None:
    """Any other class would stop at them."""
    for changes in (
        {
            "optimizer.name": "schedule-free",
            "optimizer.options": ["weight_lr_power=3.0"],
            "optimizer.schedule": "constant",
        },
        {"optimizer.name": "other", "optimizer.other": "SOAP", "optimizer.options": ["precondition_frequency=7"]},
        {"optimizer.name": "adafactor", "optimizer.options": ["clip_threshold=0.5"]},
    ):
        values = changes | {"optimizer.weight_decay": 0.02, "optimizer.warmup_steps": 0}
        family = "qwen-style" if tool == "musubi-tuner" else "sdxl-style"
        config = presets.load(family, values)
        written = recipes_out.write(config, tool)
        argument = changes["optimizer.options"][0].partition("=")[0]
        is_said = argument in written.text
        assert is_said == ("optimizer.name" not in written.unsaid and "optimizer.other" not in written.unsaid)


def test_what_the_tools_own_parsers_have_is_written() -> None:
    """Names of optimizers and schedules as the tools' code has them; each was refused there before."""

    def said(tool: str, preset: str, **changes: Any) -> Any:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        text = recipes_out.write(presets.load(preset, named), tool).text
        return json.loads(text) if tool == "simpletuner" else tomllib.loads(text)

    assert said("simpletuner", "flux-style", optimizer__name="adafactor")["optimizer"] == "optimi-stableadamw"
    told = said("simpletuner", "flux-style", optimizer__name="adamw", optimizer__options=["betas=(0.9,0.95)"])
    assert (told["optimizer_beta1"], told["optimizer_beta2"]) == (0.9, 0.95) and "betas" not in told["optimizer_config"]
    falling = {"optimizer__schedule": "cosine", "optimizer__warmup_steps": 0, "max_steps": 700}
    assert said("simpletuner", "flux-style", **falling)["lr_warmup_steps"] == 700
    free = {"optimizer__name": "schedule-free", "optimizer__schedule": "constant", "optimizer__warmup_steps": 0}
    assert said("diffusion-pipe", "flux-style", **free)["optimizer"]["type"] == "ScheduleFreeAdamW"
    assert said("diffusion-pipe", "sdxl-style")["model"]["checkpoint_path"]
    assert said("diffusion-pipe", "zimage-style")["model"]["text_encoders"][0]["type"] == "lumina2"
    assert said("musubi-tuner", "qwen-style", **free)["optimizer_type"] == "schedulefree.AdamWScheduleFree"
    assert said("musubi-tuner", "qwen-style", optimizer__name="prodigy")["optimizer_type"] == "prodigyopt.Prodigy"


def test_diffusers_scripts_get_the_options_that_their_parsers_have() -> None:
    """Each of these ended the script before its first step (examples/dreambooth)."""
    changes = {"optimizer.name": "prodigy", "data.flip": True, "adapter.text_encoder": True}
    told = recipes_out.write(presets.load("sd-style", changes), "diffusers")
    for option in ("--optimizer", "--random_flip", "--text_encoder_lr"):
        assert option not in told.text
    assert "--train_text_encoder" in told.text and {"optimizer.name", "data.flip"} <= set(told.unsaid)
    told = recipes_out.write(presets.load("sd3-style", {"objective.timesteps": "uniform"}), "diffusers")
    assert "--weighting_scheme=mode" in told.text and "--mode_scale=0" in told.text
    assert "objective.timesteps" not in told.unsaid


def test_a_schedule_that_goes_by_epochs_is_said_to_fall_no_further() -> None:
    changes = {"optimizer.schedule": "linear", "max_steps": 700}
    unsaid = recipes_out.write(presets.load("flux-style", changes), "diffusion-pipe").unsaid
    assert unsaid["optimizer.schedule"] == "linear here, constant there"


def test_a_tool_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="allowed: kohya, onetrainer, ai-toolkit, diffusers, musubi-tuner"):
        recipes_out.write(presets.load("sdxl-style", {}), "invoke")


def test_rates_of_parts_come_back() -> None:
    config = presets.load(
        "sdxl-character",
        {
            "adapter.text_encoder": True,
            "optimizer.block_rates": ["text_encoder/=0.5", "text_encoder_2/=0.25"],
            "adapter.targets": "all",
        },
    )
    for tool in ("kohya", "onetrainer"):
        assert "optimizer.block_rates" not in recipes_out.write(config, tool).unsaid
    told = json.loads(recipes_out.write(config, "onetrainer").text)
    assert told["text_encoder_2"]["learning_rate"] == config.learning_rate * 0.25
