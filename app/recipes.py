"""The pictures that were rendered here, and the stacks they were made from."""

from __future__ import annotations

from pathlib import Path

from app import path_gate
from app.context import Context, newest_first
from trainer import base_defaults
from trainer.config import StackConfig

_MOST = 24


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
    """The same of the text of a picture, which was copied from elsewhere. Raises: DataError, ConfigError."""
    from trainer.render import opening

    stack, notes = opening.stack_of_text(text, StackConfig(), context.find_loras(), dict(context.base_choices()))
    return base_defaults.completed(path_gate.checked(context, stack)), notes


def text_of(path: Path) -> str:
    """The A1111 text of one of our pictures."""
    from trainer.render.picture_metadata import read

    return read(path).infotext
