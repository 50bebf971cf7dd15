"""No place of anybody's machine travels with a card, and what a card needs is looked for where LoRAs lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import plain
from trainer import card_file, cli, lora_file, presets
from trainer.cards import making, sources
from trainer.cards.making import Wishes
from trainer.config import BatchConfig, StackConfig, TrainConfig
from trainer.config.stack import AdapterChoice
from trainer.schema import Settings, path_kind

SECRET = "secretname"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def imported(card: Path) -> str:
    done = CliRunner().invoke(cli.app, ["preset", "import", str(card)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def filled(model: type[Settings], values: dict[str, Any], place: str) -> dict[str, Any]:
    """The values with a place in every setting of the model that names one; how a value is spelled goes by its kind."""
    for name, field in model.model_fields.items():
        kind = path_kind(field)
        inner = field.annotation
        if kind == "mask":
            values[name] = f"mask {place}/mask.png"
        elif kind == "loras":
            values[name] = [f"{place}/other.safetensors:0.5"]
        elif kind:
            values[name] = f"{place}/cat.safetensors" if kind == "lora" else f"{place}/cat"
        elif isinstance(inner, type) and issubclass(inner, Settings):
            values[name] = filled(inner, dict(values.get(name, {})), place)
    return values


@pytest.mark.parametrize("place", [f"/home/{SECRET}/set", f"C:\\\\{SECRET}\\set", f"../{SECRET}/set"])
@pytest.mark.parametrize("kind", ["train", "stack", "batch"])
def test_no_setting_that_names_a_place_travels_with_it(kind: str, place: str, tmp_path: Path) -> None:
    choice = filled(AdapterChoice, {"weight": 0.5, "name": "cat"}, place)
    if kind == "train":
        base = presets.load(plain.CHARACTER, {}).model_dump(mode="json")
        values = filled(TrainConfig, base | {"data": base["data"] | {"mask": "file"}}, place)
    elif kind == "stack":
        values = filled(StackConfig, {"adapters": [choice], "prompt": "a cat"}, place)
    else:
        values = filled(BatchConfig, {"stacks": [[choice]], "prompts": ["a cat"]}, place)
    assert SECRET in json.dumps(values)
    models: dict[str, type[TrainConfig | StackConfig | BatchConfig]]
    models = {"train": TrainConfig, "stack": StackConfig, "batch": BatchConfig}
    config = models[kind].model_validate(values)
    raw = making.make(sources.Source("file", "x", config), Wishes(title="x")).raw
    told = card_file.opened(raw, "x")
    assert SECRET not in told.card.model_dump_json() + told.settings.model_dump_json() and SECRET.encode() not in raw


def test_a_batch_becomes_a_card_that_knows_its_loras_by_hash(tmp_path: Path, trained: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text(
        f"prompts = ['a cat']\nsteps_of = '{trained.parent}'\n"
        f"stacks = [['{trained}:0.7'], ['{trained}:0.2', 'gone.safetensors']]\n"
    )
    made = making.make(sources.of(str(path)), Wishes())
    opened = card_file.opened(made.raw, "x")
    assert isinstance(opened.settings, BatchConfig) and opened.settings.steps_of is None
    digest = lora_file.inspect(trained).sha256
    assert [choice.sha256 for stack in opened.settings.stacks for choice in stack] == [digest, digest, ""]
    assert [lora.sha256 for lora in opened.card.loras] == [digest] and "steps_of" in made.notes[0]
    named = card_file.opened(making.make(sources.of(str(path)), Wishes(with_names=True)).raw, "x").settings
    assert isinstance(named, BatchConfig) and named.steps_of == trained.parent.name


def test_a_lora_of_a_card_that_is_here_is_not_said_to_be_missing(tmp_path: Path, trained: Path) -> None:
    stack = tmp_path / "stack.toml"
    stack.write_text(f"base = 'imprimatura'\n[[adapters]]\nfile = '{trained}'\nweight = 0.7\n")
    card = tmp_path / "stack.velatura"
    card.write_bytes(making.make(sources.of(str(stack)), Wishes()).raw)
    assert "is not here" in imported(card)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "moved.safetensors").write_bytes(trained.read_bytes())
    assert "is not here" not in imported(card)
