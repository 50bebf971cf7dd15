"""A preset in the words of another trainer, and what can't be said there.

What can't be said is not a list kept by hand: the text is read back by our own importer, and every setting that comes
out otherwise is named with what it would be there.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import (
    ai_toolkit_out,
    diffusers_out,
    diffusion_pipe_out,
    documents,
    importing,
    kohya_out,
    learning,
    musubi_out,
    onetrainer_out,
    simpletuner_out,
)
from trainer.other_trainers.contract import Imported
from trainer.other_trainers.reading import shown
from trainer.schema import Settings

WRITERS: dict[str, Callable[[TrainConfig], str]] = {
    "kohya": kohya_out.text,
    "onetrainer": onetrainer_out.text,
    "ai-toolkit": ai_toolkit_out.text,
    "diffusers": diffusers_out.text,
}
# Tools with a file for the dataset beside the other, which names it: its writer, and what the two are called.
PAIRS: dict[str, tuple[Callable[[TrainConfig, str], tuple[str, str]], str, str]] = {
    "musubi-tuner": (musubi_out.texts, ".toml", "-dataset.toml"),
    "simpletuner": (simpletuner_out.texts, ".json", "-dataloader.json"),
    "diffusion-pipe": (diffusion_pipe_out.texts, ".toml", "-dataset.toml"),
}
TOOLS = (*WRITERS, *PAIRS)
_NEAR = {"data.max_aspect_ratio": 0.02, "optimizer.ema_decay": 1e-6}  # as a share; the other is made of whole pixels


@dataclass(frozen=True)
class Written:
    """A recipe for another trainer."""

    text: str
    unsaid: dict[str, str]  # our setting -> what it would be there
    beside: dict[str, str]  # name of a file that lies beside it -> its text


def write(config: TrainConfig, tool: str, name: str = "recipe") -> Written:
    """The settings in a tool's words, for a file of this name without its ending.

    Raises: ConfigError for a tool or a family that can't be written.
    """
    if tool not in TOOLS:
        raise ConfigError(f"--to is {tool[:40]!r}; allowed: {', '.join(TOOLS)}.")
    beside: dict[str, str] = {}
    if tool in PAIRS:
        writer, ending, second = PAIRS[tool]
        text, dataset = writer(config, f"{name}{second}")
        beside = {f"{name}{second}": dataset}
        main = f"{name}{ending}"
    else:
        text, main = WRITERS[tool](config), "recipe"

    # Read back: what comes out otherwise can't be said there.
    imported = _read_back(text, main, beside, config.family)
    back = dict(leaves(parse(TrainConfig, imported.settings, f"the recipe for {tool}")))
    unsaid = {
        name: f"{shown(value)} here, {shown(back[name]) if name in back else 'nothing'} there"
        for name, value in leaves(config)
        if not _same(name, value, back, config)
    }

    # The family was given above; here the files alone are asked.
    if (told := _family_told(text, main, beside)) != config.family:
        unsaid["family"] = f"{config.family} here, {told} there"
    return Written(text, unsaid, beside)


def _read_back(text: str, name: str, beside: dict[str, str], family: str) -> Imported:
    """What our importer makes of files that lie in one folder."""
    # The importer reads a file, and others only in the same folder.
    with tempfile.TemporaryDirectory(prefix="velatura-recipe-") as folder:
        for file, content in {name: text, **beside}.items():
            (Path(folder) / file).write_text(content, encoding="utf-8")
        return importing.read_document(documents.read(Path(folder) / name), family=family)


def _family_told(text: str, name: str, beside: dict[str, str]) -> str:
    """The family that the files themselves speak of, when nobody says it."""
    try:
        return str(_read_back(text, name, beside, "").settings["family"])
    except ConfigError:
        return "nothing"


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
    if name == "optimizer.options":  # what a class here has by itself may be said
        return _arguments(ours) == _arguments(theirs or ())
    if name in _NEAR and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=_NEAR[name])
    if name == "data.bucket_step_px" and 0 in (ours, theirs):  # 0 is 64, at these sizes
        return config.resolution_px >= 512 and {ours, theirs} <= {0, 64}
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9)
    return bool(ours == theirs)


def _arguments(lines: Sequence[str]) -> dict[str, str]:
    """An optimizer's arguments but for those that torch's AdamW and its kin have by themselves."""
    told = dict(learning.arguments([line.replace(" ", "") for line in lines]))
    return {key: value for key, value in told.items() if f"{key}={value}" not in ("eps=1e-08", "betas=(0.9,0.999)")}
