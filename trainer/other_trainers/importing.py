"""Recipes of other trainers as presets of ours.

`recognised` says by its content which tool a file is of, `read` makes settings of it that train the same, and tells of
every key what became of it. A tool is a file here with a `TOOL` (see `contract`).
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from trainer import other_trainers
from trainer.config import TrainConfig, parse
from trainer.config.refusals import sentences
from trainer.errors import ConfigError
from trainer.other_trainers import documents
from trainer.other_trainers.contract import Imported, Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading

_ROUNDS = 6  # of leaving out what our own rules refuse


@lru_cache(maxsize=1)
def tools() -> tuple[Tool, ...]:
    """All tools whose recipes are read, in the order in which they are asked."""
    files = (f"{other_trainers.__name__}.{info.name}" for info in pkgutil.iter_modules(other_trainers.__path__))
    found = (getattr(importlib.import_module(file), "TOOL", None) for file in files)
    return tuple(sorted((tool for tool in found if isinstance(tool, Tool)), key=lambda tool: tool.turn))


def recognised(path: Path) -> str:
    """The name of the tool that a file is a recipe of. Raises: ConfigError if it is none that is known."""
    return _tool_of(documents.read(path)).name


def read(path: Path, pictures: int = 0, family: str = "", base: str = "") -> Imported:
    """The recipe in a file as settings of ours, with the report of its keys.

    `pictures` is how many will be trained on, for a recipe that counts epochs; `family` and `base` are as the user
    says, "" as the recipe does. Raises: ConfigError.
    """
    return read_document(documents.read(path), pictures, family, base)


def read_document(document: Document, pictures: int = 0, family: str = "", base: str = "") -> Imported:
    """The same of a document that was read. Raises: ConfigError."""
    tool = _tool_of(document)
    reading = Reading(tool, document, tool.flatten(document), pictures)
    reading.asked_family = family
    tool.read(reading)
    # What the user says counts before the recipe.
    if base:
        reading.put("base", base)
    _settle(reading)
    return Imported(
        tool=tool.name, version=tool.version, settings=nested(reading.settings), keys=reading.keys(),
        left_out=reading.left_out(), notes=tuple(dict.fromkeys(reading.notes)), name=reading.name,
    )  # fmt: skip


def _tool_of(document: Document) -> Tool:
    for tool in tools():
        if tool.recognises(document):
            return tool
    known = ", ".join(tool.title for tool in tools())
    what = (
        f"a command for {document.command}"
        if document.kind == "command"
        else f"{document.kind.upper()} with other keys"
    )
    raise ConfigError(f"{document.path.name[:80]} is no recipe that is known: it is {what}. Known: {known}.")


def _settle(reading: Reading) -> None:
    """Take back each setting that our own rules refuse, and say so at its keys."""
    # In rounds: rules on several settings are asked only once each setting is right by itself.
    for _ in range(_ROUNDS):
        try:
            TrainConfig.model_validate(nested(reading.settings))
            return
        except pydantic.ValidationError as error:
            refused = {sentence.split(" ")[0]: sentence for sentence in sentences(error, TrainConfig)}
        known = [setting for setting in reading.settings if setting in refused and setting not in ("family", "base")]
        if not known:
            break
        for setting in known:
            reading.take_back(setting, refused[setting])
            reading.notes.append(f"left out: {refused[setting]}")
    parse(TrainConfig, nested(reading.settings), f"the recipe {reading.document.path.name[:80]}")


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name as tables within tables."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *parents, last = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree
