"""The stacks that ship are drawn with any LoRAs, and an empty slot is refused before a base is loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.batches import lora
from trainer import cli
from trainer.config.batch import seeds
from trainer.errors import ConfigError
from trainer.render import command, picture_metadata

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", command.presets())
def test_a_preset_is_drawn_with_its_slots_filled_and_is_on_the_page(name: str, tmp_path: Path, tiny: Path) -> None:
    file, stack = lora(tmp_path / "one.safetensors", 0.1), command.from_file(Path(name))
    assert f"`{name}`" in (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")
    small = command.changed(stack, [f"base={tiny}", "steps=3", "width_px=32", "height_px=32"])
    with pytest.raises(ConfigError, match="adapters.0 has no file"):
        command.run(small, [], tmp_path / "x.png", download=False)
    filled = command.changed(small, [f"adapters.{number}.file={file}" for number in range(len(stack.adapters))])
    recipe = picture_metadata.read(command.run(filled, [], tmp_path / "x.png", download=False)).recipe
    assert [(adapter["name"], adapter["schedule"], adapter["region"]) for adapter in recipe["adapters"]] == [
        ("one", adapter.schedule, adapter.region) for adapter in stack.adapters
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "with-and-without" else [pytest.mark.slow]) for name in command.batches()],
)
def test_a_batch_that_ships_is_drawn_with_a_lora_and_is_on_the_page(
    name: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "stacks.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    file = lora(tmp_path / "one.safetensors", 0.1)
    options = [
        "--lora",
        str(file),
        "--base",
        str(tiny),
        "--steps",
        "1",
        "--size",
        "32x32",
        "--out",
        "out",
        "--prompt",
        "a",
    ]
    done = CliRunner().invoke(cli.app, ["batch", name, *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    values = tomllib.loads((command.BATCHES / f"{name}.toml").read_text(encoding="utf-8"))
    num_seeds = sum(len(seeds(item)) for item in values["seeds"])
    wanted = num_seeds * len(values.get("prompts", [""])) * len(values.get("weights", [1.0]))
    assert len(list((tmp_path / "out").glob("*.png"))) == wanted and (tmp_path / "out" / "contact-sheets").is_dir()
    assert f"{wanted} pictures" in (command.BATCHES / f"{name}.toml").read_text(encoding="utf-8")


def test_a_name_that_is_no_preset_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="character-then-style"):
        command.from_file(Path("none-such"))
