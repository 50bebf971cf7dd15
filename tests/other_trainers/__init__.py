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
