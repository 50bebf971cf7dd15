"""Recipes of other trainers as tests need them: documented examples rebuilt from their documented keys, and names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RECIPES = FOLDER / "recipes"


def arguments() -> dict[str, dict[str, Any]]:
    """The names that each tool's own parser takes, with the tool's version and where they stand in it."""
    lists: dict[str, dict[str, Any]] = json.loads((FOLDER / "arguments.json").read_text(encoding="utf-8"))
    return {tool: {**entry, "keys": entry["keys"].split()} for tool, entry in lists.items()}


def scripts() -> dict[str, dict[str, dict[str, str]]]:
    """Tool -> script -> argument -> int, float, str, any, list or flag, then `:` and choices, then `!` if needed."""
    lists: dict[str, Any] = json.loads((FOLDER / "scripts.json").read_text(encoding="utf-8"))
    return {
        tool: {
            script: dict(entry.split("=", 1) for entry in arguments.split())
            for script, arguments in entry["scripts"].items()
        }
        for tool, entry in lists.items()
    }


def older_configs() -> dict[str, dict[str, Any]]:
    """OneTrainer's configs of older versions by name: `old`, and `now` as its own migrations (23df383) leave it."""
    configs: dict[str, dict[str, Any]] = json.loads((FOLDER / "onetrainer_old.json").read_text(encoding="utf-8"))
    return configs
