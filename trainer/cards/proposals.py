"""An import as it would be, to be shown before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainer import presets
from trainer.cards import comparing
from trainer.cards.comparing import Difference
from trainer.config import TrainConfig
from trainer.errors import UserError


@dataclass(frozen=True)
class Proposal:
    """What a file holds and what keeping it would change."""

    lines: list[str]
    facts: dict[str, Any]  # the same for programs
    what: str  # what would be kept, as "the preset soft-lines"
    keep: Callable[[], dict[str, str]]  # writes it; what was written, as facts, first the name or place


def beside(name: str, config: TrainConfig) -> tuple[list[str], dict[str, Any]]:
    """How settings differ from the preset that has their name already, as lines and as facts; nothing for a free name.

    Raises: ConfigError for what can't be a name.
    """
    free = presets.free_name(name)
    if free == name:
        return [], {}
    try:
        found: list[Difference] | None = comparing.differences(presets.load(name, {}), config)
    except UserError:  # a file of that name which is no preset any more
        found = None
    head = f"there is a preset {name} already, which stays as it is; this one becomes {free}."
    if found is None:
        said = [f"{name} itself can't be read."]
    elif not found:
        said = [f"its settings and those of {name} are the same."]
    else:
        said = [f"{one.key} = {comparing.spelled(one.after)}, in {name} {comparing.spelled(one.before)}   ({one.title})"
                for one in found]  # fmt: skip
    settings = None if found is None else [dataclasses.asdict(one) for one in found]
    return [head, *said], {"existing": {"name": name, "settings": settings}}
