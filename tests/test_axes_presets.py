"""The stacks that ship are drawn with any LoRAs, and an empty slot is refused before a base is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batches import lora
from trainer.errors import ConfigError
from trainer.render import command, picture_metadata

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


def test_a_name_that_is_no_preset_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="character-then-style"):
        command.from_file(Path("none-such"))
