"""What a card, a comparison or a training is made from, by one word: a preset, a card, a LoRA of ours, a run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer import file_names, presets, runs
from trainer.card_file import bundle, reading
from trainer.card_file.reading import Config, Opened
from trainer.cards import places
from trainer.config import BatchConfig, StackConfig, TrainConfig, parse
from trainer.errors import ConfigError
from trainer.runs import Run

SourceKind = Literal["preset", "card", "lora", "run", "file"]


@dataclass(frozen=True)
class Source:
    """A thing with settings in it."""

    kind: SourceKind
    name: str  # for people; of a file its last name
    settings: Config
    path: Path | None = None  # of a card, LoRA, run folder or TOML file
    card: Opened | None = None


def of(word: str, runs_folder: Path = runs.DEFAULT) -> Source:
    """What a word means: a file or folder that is there, else a preset's name, else a run's.

    Raises: ConfigError, AdapterError naming what is allowed.
    """
    path = Path(word)
    if os.path.isdir(path) and (path / file_names.CONFIG).is_file():
        return _of_run(Run(path))
    if os.path.isfile(path):
        return _of_file(path)
    if presets.has(word):
        return Source("preset", word, presets.load(word, {}))
    # A plain name, so that it leads nowhere but into the folder of runs.
    if (
        os.path.basename(word) == word
        and word not in ("", ".", "..")
        and (runs_folder / word / file_names.CONFIG).is_file()
    ):
        return _of_run(Run(runs_folder / word))
    raise ConfigError(
        f"{word[:200]!r} is no preset, card, LoRA of ours or run; allowed: a name from `velatura preset list`, a run "
        f"in {runs_folder}, or a path to a {bundle.SUFFIX}, .safetensors, .toml or run folder."
    )


def _of_run(run: Run) -> Source:
    return Source("run", run.name, run.config(), run.folder)


def _of_file(path: Path) -> Source:
    if bundle.is_card(path):
        card = reading.read(path)
        return Source("card", card.card.title, card.settings, path, card)
    if path.suffix == ".safetensors":
        config = parse(TrainConfig, presets.values(str(path)), f"the recipe in {path.name}")
        return Source("lora", path.stem, places.without(config, with_names=True), path)
    return Source("file", path.stem, _settings_of(path), path)


def _settings_of(path: Path) -> Config:
    """The settings in a TOML file: of a training, of a stack, or of a batch, by their keys. Raises: ConfigError."""
    values = presets.read_toml(path)
    values.pop("title", None)
    # By what only a training, or only a batch, has.
    if "family" in values and "adapter" in values:
        return parse(TrainConfig, values, path.name)
    kind: type[BatchConfig | StackConfig] = (
        BatchConfig if values.keys() & {"prompts", "stacks", "seeds"} else StackConfig
    )
    settings: BatchConfig | StackConfig = parse(kind, values, path.name)
    return settings
