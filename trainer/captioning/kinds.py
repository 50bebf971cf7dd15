"""Which kind of captioning model a folder holds, by its config.json and the files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.captioning import blip, chat, florence2, wd_tagger
from trainer.captioning.contract import Describe, Kind
from trainer.captioning.opened_model import config_of
from trainer.captioning.rules import Purpose
from trainer.errors import ModelError
from trainer.printing import plain

KINDS: tuple[Kind, ...] = (blip.KIND, florence2.KIND, chat.KIND, wd_tagger.KIND)


def kind_of(folder: Path) -> Kind:
    """The kind of the model in a folder. Raises: ModelError if it is none of these."""
    for kind in KINDS:
        if kind.known(folder):
            return kind
    named = config_of(folder).get("model_type")
    for kind in KINDS:
        if isinstance(named, str) and named in kind.model_types:
            return kind
    types = ", ".join(sorted(name for kind in KINDS for name in kind.model_types))
    raise ModelError(
        f"{folder.name} is a model of type {plain(named, 60)!r} by its config.json, which can't write captions here; "
        f"allowed: {types}, or a WD tagger (with selected_tags.csv)."
    )


def instruction_for(kind: Kind, purpose: Purpose, wanted: str) -> str:
    """What the model is told: what a person wrote, else what the kind is told for this purpose."""
    return wanted.strip() or kind.instructions.get(purpose, "")


def opener(folder: Path, purpose: Purpose, wanted: str) -> Callable[[], Describe]:
    """What opens the model, after all that can be known beforehand was checked. Raises: ConfigError, ModelError."""
    folder = folder.expanduser()
    kind = kind_of(folder)
    instruction = instruction_for(kind, purpose, wanted)
    kind.check(folder, instruction)
    return lambda: kind.open(folder, instruction)
