"""Recipes from outside: bombs and depths are refused in words, quickly, and nothing but the file passed is opened."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from tests.other_trainers import RECIPES
from trainer import cli, lora_file, preset_heads, presets
from trainer.errors import ConfigError
from trainer.other_trainers import command_lines, documents, importing, presets_from, yaml_text
from trainer.other_trainers.recipes_out import leaves

AI_TOOLKIT = "job: extension\nconfig:\n  name: x\n  process:\n    - type: sd_trainer\n      train: {lr: 1e-4}\n"
PAIRS = [(chr(97 + number), chr(98 + number)) for number in range(20)]
BOMBS = {
    "aliases": "a: &a [x, x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 7)}]\n" for a, b in PAIRS[:9]),
    "merge keys": "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in PAIRS),
    "deep yaml": "[" * 50_000,
    "deep flow": AI_TOOLKIT + "      x: " + "[" * 500 + "]" * 500,
    "deep json": '{"LoRA_type": ' + '{"a":' * 100_000,
    "python tag": AI_TOOLKIT + "      x: !!python/object/apply:os.system ['touch pwned']\n",
    "wide": json.dumps({"LoRA_type": "Standard", "network_dim": 4, **dict.fromkeys(map(str, range(20_000)), 1)}),
    "long line": "accelerate launch train_network.py " + "--network_dim " * 60_000,
    "quotes": "accelerate launch train_network.py --x '" + "a" * 900_000,
    "huge number": 'network_dim = 1\nnetwork_alpha = 1\nlearning_rate = 1\nseed = "' + "9" * 900_000 + '"',
    "huge": "a" * (2 << 20),
    "nothing": "",
    "zeros": "\0" * 4000,
    "own alias": "a: &a [*a]\n",
}  # fmt: skip
NUMBER = re.compile(r"(?<=[:=,\[ ])-?\d+(\.\d+)?(e-?\d+)?(?=[\s,\]}]|$)")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_or_refused_in_words_within_a_second(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe"
    path.write_text(BOMBS[name])
    importing.tools()
    start = time.process_time()
    try:
        imported = importing.read(path)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000 and str(error).isprintable()
    else:
        assert len(json.dumps([key.value for key in imported.keys])) < 1 << 20
    assert time.process_time() - start < 1.0
    assert not (tmp_path / "pwned").exists() and not Path("pwned").exists()


def test_yaml_builds_plain_values_alone() -> None:
    text = "a: 1e-4\nb: !!python/name:os.system\nc: [yes, ~, 'yes', 0x10, 1_0]\nd: &x {e: 2}\nf: *x\n"
    values = yaml_text.values(text)
    assert values["a"] == 1e-4 and values["c"] == [True, None, "yes", "0x10", 10] and values["f"] == {"e": 2}
    assert isinstance(values["b"], str)


def test_only_a_file_beside_the_recipe_is_opened(tmp_path: Path) -> None:
    # The same name elsewhere, above, and behind a link.
    (tmp_path / "in").mkdir()
    dataset = (RECIPES / "fluxgym" / "dataset.toml").read_text().replace("num_repeats = 10", "num_repeats = 3")
    (tmp_path / "up.toml").write_text(dataset)
    os.symlink(tmp_path / "up.toml", tmp_path / "in" / "link.toml")
    recipe = tmp_path / "in" / "train.sh"
    for named in ("../up.toml", str(tmp_path / "up.toml"), "link.toml", "..", ".", "", "/dev/zero"):
        recipe.write_text(
            (RECIPES / "fluxgym" / "train.sh").read_text().replace("/pinokio/fluxgym/outputs/cat/dataset.toml", named)
        )
        assert importing.read(recipe, pictures=10).settings["max_steps"] == 160
    (tmp_path / "in" / "beside.toml").write_text(dataset)
    recipe.write_text((RECIPES / "fluxgym" / "train.sh").read_text().replace("dataset.toml", "beside.toml"))
    assert importing.read(recipe, pictures=10).settings["max_steps"] == 480


def test_no_command_in_a_script_is_run_and_no_variable_of_ours_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    command = command_lines.first(
        'X=5\naccelerate launch train_network.py --a=$(touch pwned) --b=$SECRET --c=${X} --d "`id`"\n'
    )
    assert command is not None
    values = command_lines.options(command)
    assert values["b"] == "$SECRET" and values["c"] == "5" and not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("key", ["huggingface_token", "wandb_api_key", "secrets.huggingface_token", "cloud.password"])
def test_secrets_are_never_shown(key: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15"}
    place = values
    for part in key.split(".")[:-1]:
        place = place.setdefault(part, {})
    place[key.rpartition(".")[2]] = "s3cret"
    path = tmp_path / "x.json"
    path.write_text(json.dumps(values))
    imported = importing.read(path)
    text = presets_from.text_of(imported, path) + json.dumps(
        [[each.value, each.why, each.became] for each in imported.keys]
    )
    assert "s3cret" not in text and any(each.value == "(hidden)" for each in imported.keys)


def test_a_damaged_value_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text((RECIPES / "sdxl_sd_scripts.toml").read_text().replace("seed = 42", 'seed = "\u202eabc"'))
    keys = {key.key: key for key in importing.read(path).keys}
    assert keys["seed"].status == "can't be" and "a number" in keys["seed"].why and "\u202e" not in keys["seed"].why
    assert keys["network_dim"].status == "translated"


@pytest.mark.parametrize("number", ["1e308", "-1e308", f"{10**30}", "0", "-1", "0.5"])
@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.*")), ids=lambda path: path.name)
def test_with_any_number_everywhere_it_is_read_or_refused_in_words(recipe: Path, number: str, tmp_path: Path) -> None:
    path = tmp_path / recipe.name
    path.write_text(NUMBER.sub(number, recipe.read_text(encoding="utf-8")), encoding="utf-8")
    try:
        importing.read(path)
    except ConfigError as error:
        assert 0 < len(str(error)) < 2000 and str(error).isprintable()


# The header of a LoRA.


def test_the_header_of_a_kohya_lora_gives_its_recipe(tmp_path: Path) -> None:
    import torch

    from tests.doors_recipes import HEADER

    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_x.alpha": torch.ones(1)}, path, HEADER)
    imported = importing.read(path)
    settings = imported.settings
    assert imported.tool == "lora-header" and settings["family"] == "sdxl" and settings["max_steps"] == 900
    assert settings["optimizer"]["name"] == "adamw8bit" and settings["optimizer"]["weight_decay"] == 0.1
    assert settings["optimizer"]["options"] == ["betas=(0.9, 0.99)"] and settings["adapter"]["alpha"] == 16.0
    assert settings["captions"]["shuffle_tags"] and settings["resolution_px"] == 1024 and settings["batch_size"] == 2
    assert settings["adapter"]["block_ranks"] == ["conv1=8", "conv2=8", "samplers=8"]


def test_a_lora_of_ours_gives_its_settings_back_exactly(trained: Path) -> None:
    imported = importing.read(trained)
    recipe = lora_file.recipe_of(lora_file.read_header(trained).metadata)
    assert recipe is not None
    from trainer.config import TrainConfig, parse

    was, now = (dict(leaves(parse(TrainConfig, values, "test"))) for values in (recipe["config"], imported.settings))
    assert {name for name in was if was[name] != now[name]} <= {"data.folder", "data.heldout"}


def test_a_lora_that_says_nothing_is_refused(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "x.safetensors"
    save_file({"lora_unet_x.alpha": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="says nothing of how it was trained"):
        importing.read(path)


# The command.


def test_the_command_writes_a_preset_beside_the_users_own_and_reports_every_key(home: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["preset", "import", str(RECIPES / "kohya_gui_lora.json"), "--json", "--pictures", "20"]
    )
    report = json.loads(result.stdout)
    assert report["tool"] == "kohya_ss" and report["preset"] == "elf-style-v2"
    assert all(set(key) == {"key", "value", "became", "status", "why"} for key in report["keys"])
    assert set(json.loads((RECIPES / "kohya_gui_lora.json").read_text())) == {key["key"] for key in report["keys"]}
    assert presets.load("elf-style-v2", {}).adapter.method == "dora"
    assert (
        (home / "presets" / "elf-style-v2.toml")
        .read_text()
        .startswith("# From kohya_gui_lora.json, a recipe of kohya_ss")
    )
    assert preset_heads.of("elf-style-v2").was_run is False

    again = (
        CliRunner()
        .invoke(cli.app, ["preset", "import", str(RECIPES / "onetrainer_flux.json"), "--name", "mine"])
        .stdout
    )
    assert "preset mine, from a recipe of onetrainer" in again and "can't be (" in again and "hf_secret" not in again


def test_the_command_writes_a_recipe_that_it_reads_back(tmp_path: Path) -> None:
    for tool, name in (("kohya", "x.toml"), ("onetrainer", "x.json"), ("ai-toolkit", "x.yaml"), ("diffusers", "x.sh")):
        out = tmp_path / name
        shown = CliRunner().invoke(cli.app, ["preset", "export", "sdxl-character", "--to", tool, "--out", str(out)])
        assert shown.exit_code == 0 and "can't be said there:" in shown.stdout
        assert importing.read(out, family="sdxl").settings["adapter"]["rank"] == 32


def test_a_document_is_read_by_its_content(tmp_path: Path) -> None:
    kinds = {
        "a = 1\n": "toml",
        '{"a": 1}': "json",
        "a: 1\n": "yaml",
        "python train_x.py --a 1": "command",
        "[a]\nb = 1\n": "toml",
    }
    for text, kind in kinds.items():
        path = tmp_path / "x.png"
        path.write_text(text)
        assert documents.read(path).kind == kind
