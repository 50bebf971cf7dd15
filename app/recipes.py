"""The pictures that were rendered here, and the stacks they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import path_gate
from app.context import Context, newest_first
from app.texts import say
from trainer import base_defaults
from trainer.config import StackConfig, parse
from trainer.config.parsing import from_json, from_toml
from trainer.errors import ConfigError

_MOST = 24
_HEAD = 200  # lines of a text in which a recipe shows itself


def recent(context: Context) -> list[Path]:
    """The newest pictures in the render folder, whatever is in them."""
    pictures = [path for path in context.renders.glob("*.png") if not path.name.startswith(".")]
    return newest_first(pictures)[:_MOST]


def read_recipe(context: Context, path: Path) -> StackConfig:
    """The stack a picture was made from, its LoRAs found here by hash, its base offered here.

    Raises: DataError, AdapterError, ConfigError.
    """
    from trainer.render.picture_metadata import read_stack

    return path_gate.checked(context, read_stack(path, context.find_loras()))


def read_picture(context: Context, path: Path) -> tuple[StackConfig, list[str]]:
    """The stack of a picture of ours or of another tool, and a sentence for everything of it that could not be used.

    Its LoRAs are found among what this server offers, and its base by name.

    Raises: DataError, AdapterError, ConfigError.
    """
    from trainer.render import opening

    stack, notes = opening.stack_of(path, StackConfig(), context.find_loras(), dict(context.base_choices()))
    return base_defaults.completed(path_gate.checked(context, stack)), notes


def read_text(context: Context, text: str) -> tuple[StackConfig, list[str]]:
    """The same of a text that was copied from elsewhere: a picture's, a ComfyUI graph, or a recipe of ours.

    Raises: DataError, AdapterError, ConfigError.
    """
    from trainer.render import opening

    if (values := own_values(text)) is not None:
        own = parse(StackConfig, values, say("where.recipe"))
        return base_defaults.completed(path_gate.checked(context, own)), []
    stack, notes = opening.stack_of_text(text, StackConfig(), context.find_loras(), dict(context.base_choices()))
    return base_defaults.completed(path_gate.checked(context, stack)), notes


def own_values(text: str) -> dict[str, Any] | None:
    """What a recipe of ours says, as JSON or TOML; None for any other text."""
    fields = StackConfig.model_fields
    is_json = text.lstrip("\ufeff \t\r\n").startswith("{")
    # TOML has our words at the beginnings of its lines; most other texts are never parsed.
    if not is_json and not any(line.partition("=")[0].strip() in fields for line in text.split("\n", _HEAD)[:_HEAD]):
        return None
    try:
        values = (from_json if is_json else from_toml)(text, say("where.recipe"))
    except ConfigError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("prompt", ""), str):  # a graph may be called so
        return None
    return values if sum(key in fields for key in values) > 0.8 * len(values) else None


def text_of(path: Path) -> str:
    """The A1111 text of one of our pictures."""
    from trainer.render.picture_metadata import read

    return read(path).infotext
