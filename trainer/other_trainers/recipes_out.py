"""A preset in the words of another trainer, and what can't be said there.

What can't be said is not a list kept by hand: the text is read back by our own importer, and every setting that comes
out otherwise is named with what it would be there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import ai_toolkit_out, diffusers_out, documents, importing, kohya_out, onetrainer_out
from trainer.other_trainers.reading import shown
from trainer.schema import Settings

WRITERS: dict[str, Callable[[TrainConfig], str]] = {
    "kohya": kohya_out.text,
    "onetrainer": onetrainer_out.text,
    "ai-toolkit": ai_toolkit_out.text,
    "diffusers": diffusers_out.text,
}
_NEAR = {"data.max_aspect_ratio": 0.02, "optimizer.ema_decay": 1e-6}  # as a share; the other is made of whole pixels


@dataclass(frozen=True)
class Written:
    """A recipe for another trainer."""

    text: str
    unsaid: dict[str, str]  # our setting -> what it would be there


def write(config: TrainConfig, tool: str) -> Written:
    """The settings in a tool's words. Raises: ConfigError for a tool or a family that can't be written."""
    if tool not in WRITERS:
        raise ConfigError(f"--to is {tool[:40]!r}; allowed: {', '.join(WRITERS)}.")
    text = WRITERS[tool](config)
    imported = importing.read_document(documents.parsed(Path("recipe"), text.encode()), family=config.family)
    back = dict(leaves(parse(TrainConfig, imported.settings, f"the recipe for {tool}")))
    unsaid = {
        name: f"{shown(value)} here, {shown(back[name]) if name in back else 'nothing'} there"
        for name, value in leaves(config)
        if not _same(name, value, back, config)
    }
    return Written(text, unsaid)


def leaves(config: Settings, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by dotted name."""
    for key in type(config).model_fields:
        value = getattr(config, key)
        if isinstance(value, Settings):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _same(name: str, ours: Any, back: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a setting says the same there; `back` is what was read back."""
    theirs = back.get(name)
    if name == "objective.timesteps" and {ours, theirs} == {"sigmoid", "logit-normal"}:
        normal = dict(leaves(config)) if ours == "logit-normal" else back  # of mean 0 and deviation 1 it is sigmoid
        return bool(normal["objective.timesteps_mean"] == 0 and normal["objective.timesteps_std"] == 1)
    if name in _NEAR and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=_NEAR[name])
    if name == "data.bucket_step_px" and 0 in (ours, theirs):  # 0 is 64, at these sizes
        return config.resolution_px >= 512 and {ours, theirs} <= {0, 64}
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)
