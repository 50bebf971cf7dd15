"""What a kind of captioning model is: by what it is known, what it can be told, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trainer.captioning.rules import Purpose

if TYPE_CHECKING:
    from PIL import Image

# A picture (RGB) -> what the model says of it, as it says it.
Describe: TypeAlias = "Callable[[Image.Image], str]"


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    `model_types` are those of its config.json; `known` is asked of the folder's files first. `instructions` is what it
    is told for each purpose, empty for a kind that takes no instruction. `check` raises ConfigError for an instruction
    it can't take, and ModelError for a folder that lacks something, before anything large is read.
    """

    name: str
    model_types: frozenset[str]
    instructions: Mapping[Purpose, str]
    check: Callable[[Path, str], None]
    open: Callable[[Path, str], Describe]  # the folder, and the instruction
    known: Callable[[Path], bool] = lambda _: False
    help: str = ""  # how its instruction is to be written
