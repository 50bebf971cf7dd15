"""No place of anybody's machine travels with a card, and what a card needs is looked for where LoRAs lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from tests import plain
from trainer import card_file, cli, lora_file, presets
from trainer.cards import keeping, making, sources
from trainer.cards.making import Wishes
from trainer.config import BatchConfig, StackConfig, TrainConfig
from trainer.config.stack import AdapterChoice
from trainer.errors import ConfigError
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


@pytest.mark.parametrize("option", ["--family", "--base", "--pictures"])
def test_what_a_card_says_itself_is_not_ignored_but_refused(option: str, tmp_path: Path) -> None:
    card = tmp_path / "a.velatura"
    card.write_bytes(making.make(sources.of("imprimatura-style"), Wishes()).raw)
    with pytest.raises(ConfigError, match=f"{option}: a card says these itself"):
        CliRunner().invoke(cli.app, ["preset", "import", str(card), option, "3"], catch_exceptions=False)
    assert not presets.own()


INFOTEXT = "a lighthouse\nNegative prompt: fog\nSteps: 23, Sampler: Euler a, CFG scale: 6.5, Seed: 42, Size: 512x768"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 42, "steps": 23, "cfg": 6.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["4", 1]}},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["picture", "text", "graph"])
def test_a_picture_or_graph_of_another_tool_is_imported_as_a_stack(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "from-elsewhere"
    if kind == "picture":
        info = PngInfo()
        info.add_text("parameters", INFOTEXT)
        Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    else:
        file.write_text(INFOTEXT if kind == "text" else json.dumps(GRAPH))
    dry = CliRunner().invoke(cli.app, ["preset", "import", str(file), "--dry-run"], catch_exceptions=False)
    assert dry.exit_code == 0 and "nothing was written" in dry.stdout and not keeping.every()
    assert "kept as" in imported(file)
    (card,) = keeping.every().values()
    stack = card_file.read(card).settings
    assert isinstance(stack, StackConfig)
    assert (stack.prompt, stack.negative_prompt, stack.seed, stack.steps) == ("a lighthouse", "fog", 42, 23)
    assert (stack.width_px, stack.height_px, stack.guidance_scale) == (512, 768, 6.5)


def test_a_text_that_is_neither_is_refused_as_before(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="is no recipe that is known"):
        CliRunner().invoke(cli.app, ["preset", "import", str(file)], catch_exceptions=False)
