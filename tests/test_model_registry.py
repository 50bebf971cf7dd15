"""Bases under names of one's own: what is kept of them, found again, and offered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import single_files
import torch
from safetensors.torch import load_file, save_file
from single_files import add, velatura

from trainer import bases, families, model_registry, single_file
from trainer.errors import ConfigError, ModelError

BIAS = "model.diffusion_model.out.2.bias"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_models_are_listed_inspected_and_found_again(tmp_path: Path, imprimatura_folder: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    file = single_files.sd_file(tiny, tmp_path / "artist.safetensors")
    assert "predicts epsilon" in add(str(file), "--like", str(tiny)) and "sd" in add(
        str(imprimatura_folder), "--name", "own"
    )
    listed = json.loads(velatura("models", "list", "--json"))["models"]
    assert [(model["name"], model["family"]) for model in listed] == [("artist", "sd"), ("own", "sd")]
    facts = json.loads(velatura("models", "inspect", "artist", "--json"))
    assert (facts["family"], facts["sha256"], facts["missing"]) == ("sd", single_file.sha256(file), {})
    unet = single_files.weights(tiny, "unet")
    assert (
        facts["parameters"]["unet"]
        == sum(tensor.numel() for tensor in unet.values())
        == json.loads(velatura("models", "inspect", str(tiny), "--json"))["parameters"]["unet"]
    )
    assert bases.resolve("own", families.registry()["sd"]).samefile(imprimatura_folder)
    # Renamed where it was, then gone.
    file.rename(tmp_path / "renamed.safetensors")
    assert bases.family_of("artist") == "sd" and model_registry.entries()["artist"].path.endswith("renamed.safetensors")
    (tmp_path / "renamed.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"base 'artist' was .*renamed.safetensors, which is gone; .*velatura models add"
    ):
        bases.resolve("artist", families.registry()["sd"])
    assert "gone" in velatura("models", "list")


def test_a_changed_file_is_laid_out_anew(tmp_path: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    file = single_files.sd_file(tiny, tmp_path / "artist.safetensors")
    add(str(file), "--like", str(tiny))
    before = bases.resolve("artist", families.registry()["sd"])
    tensors = load_file(file)
    save_file(tensors | {BIAS: tensors[BIAS] + 1}, file)
    after = bases.resolve("artist", families.registry()["sd"])
    changed = [
        name
        for name, tensor in single_files.weights(after, "unet").items()
        if not torch.equal(tensor, single_files.weights(before, "unet")[name])
    ]
    assert after != before and changed == ["conv_out.bias"]


def test_names_and_registries_that_cannot_be_are_refused(tmp_path: Path, home: Path, imprimatura_folder: Path) -> None:
    for name in ("imprimatura", "../x", "", "a b"):
        with pytest.raises(ConfigError, match="--name is"):
            add(str(imprimatura_folder), "--name", name)
    add(str(imprimatura_folder), "--name", "own")
    with pytest.raises(ConfigError, match="'own', which is .* already"):
        add(str(families.registry()["sd"].tiny(tmp_path / "tiny")), "--name", "own")
    (home / "models.toml").write_text("[models.x]\nstrange = 1\n")
    with pytest.raises(ConfigError, match=r"models.toml can't be read"):
        model_registry.entries()


def test_the_page_offers_what_was_added(imprimatura_folder: Path) -> None:
    from app.ui import known_bases

    add(str(imprimatura_folder), "--name", "own")
    assert known_bases([]) == ("imprimatura", "own")


def test_a_checkpoint_of_today_is_told_from_one_that_took_its_place(tmp_path: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    add(str(single_files.sd_file(tiny, tmp_path / "artist.safetensors")), "--like", str(tiny))
    save_file({"lora_unet_conv_in.lora_down.weight": torch.ones(4, 4)}, tmp_path / "artist.safetensors")
    with pytest.raises(ModelError, match="is a LoRA, not a base"):
        bases.resolve("artist", families.registry()["sd"])


@pytest.mark.parametrize(
    ("marker", "options", "wanted"),
    [({}, [], "v"), ({}, ["--prediction", "epsilon"], "epsilon"), ({"v_pred": 1}, [], "v")],
)
def test_a_prediction_is_the_files_own_word_then_ours_then_that_of_its_like(
    marker: dict[str, int], options: list[str], wanted: str, tmp_path: Path
) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    scheduler = tiny / "scheduler" / "scheduler_config.json"
    settings = json.loads(scheduler.read_text()) | {"prediction_type": "epsilon" if marker else "v_prediction"}
    scheduler.write_text(json.dumps(settings))
    add(
        str(single_files.sd_file(tiny, tmp_path / "artist.safetensors", **{name: torch.ones(1) for name in marker})),
        "--like",
        str(tiny),
        *options,
    )
    family = families.registry()["sd"]
    assert (
        family.prediction_of(bases.resolve("artist", family))
        == wanted
        == velatura_facts("artist")["prediction"].split()[0]
    )


def velatura_facts(name: str) -> dict[str, str]:
    return dict(json.loads(velatura("models", "inspect", name, "--json")))
