"""Every name that a tool's own parser takes is known: a key we forgot is found by the tool's own list."""

from __future__ import annotations

import pytest

from tests.other_trainers import arguments
from trainer.config import TrainConfig
from trainer.other_trainers.importing import tools
from trainer.other_trainers.reading import row_of

NAMES = arguments()
TOOLS = {tool.name: tool for tool in tools()}


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_tool_has_a_row(name: str) -> None:
    unknown = [key for key in NAMES[name]["keys"] if row_of(TOOLS[name], key) is None]
    assert not unknown, f"{name} {NAMES[name]['version']}: {', '.join(unknown)}"


def test_the_lists_are_whole() -> None:
    least = {"sd-scripts": 200, "kohya_ss": 280, "onetrainer": 500, "ai-toolkit": 300, "simpletuner": 400}
    assert all(len(NAMES[name]["keys"]) >= count for name, count in least.items())


@pytest.mark.parametrize("name", TOOLS)
def test_rows_name_settings_that_there_are(name: str) -> None:
    known = {
        f"{section}.{key}" if section else key
        for section, model in [("", TrainConfig), *_sections()]
        for key in model.model_fields
    }
    for key, row in TOOLS[name].rows.items():
        assert row.became or row.why or row.status in ("taken", "translated"), key
        for setting in filter(None, row.became.split(", ")):
            assert setting in known or setting.startswith("adapter."), f"{key}: {setting}"


def _sections() -> list[tuple[str, type[TrainConfig]]]:
    return [
        (name, field.annotation)
        for name, field in TrainConfig.model_fields.items()
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")
    ]  # type: ignore[misc]
