"""What the pictures and runs here were made from, read once a file: prompts, LoRAs by hash, datasets by folder."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from app.context import Context, newest_first
from trainer import presets, runs
from trainer.errors import UserError

_MOST = 20_000  # files that are remembered; the eldest are forgotten first
_MOST_PICTURES = 5_000  # that are looked through
_MOST_RECENT = 500  # by which is told what is used of late
_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")
_T = TypeVar("_T")


@dataclass(frozen=True)
class PictureFacts:
    """What a picture's recipe says; empty for a sheet and for a picture without one."""

    prompt: str = ""
    seed: int | None = None
    base: str = ""
    loras: tuple[tuple[str, str, float], ...] = ()  # hash, name, weight
    scene: str = ""  # equal for pictures that differ in their LoRAs alone


@dataclass(frozen=True)
class RunFacts:
    """What a run's settings say."""

    dataset: str = ""  # the folder, as it stands in the settings
    heldout: str = ""
    trigger: str = ""
    base: str = ""
    family: str = ""
    max_steps: int = 0
    source: str = ""  # what it goes on from


@dataclass
class RecipeIndex:
    """Facts by file, time and size; one a server."""

    context: Context
    _facts: dict[tuple[Path, int, int], Any] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def picture(self, path: Path) -> PictureFacts:
        """What a picture says of itself."""
        return self._once(path, _picture_facts, PictureFacts())

    def run(self, run: runs.Run) -> RunFacts:
        """What a run was started with."""
        return self._once(run.config_file, _run_facts, RunFacts())

    def pictures(self) -> list[Path]:
        """Pictures that were drawn here, by hand and in batches, the newest first."""
        folders = [self.context.renders, *self.context.batches.glob("[!.]*")]
        paths = [path for folder in folders for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES]
        return newest_first([path for path in paths if not path.name.startswith(".")])[:_MOST_PICTURES]

    def drawn_with(self) -> dict[str, list[Path]]:
        """The pictures that each LoRA was used in, by its hash, the newest first."""
        by_hash: dict[str, list[Path]] = {}
        for path in self.pictures():
            for sha256, _, _ in self.picture(path).loras:
                by_hash.setdefault(sha256, []).append(path)
        return by_hash

    def uses(self) -> Counter[str]:
        """In how many of the newest pictures each LoRA was used, by its hash."""
        newest = self.pictures()[:_MOST_RECENT]
        return Counter(sha256 for path in newest for sha256 in {lora[0] for lora in self.picture(path).loras})

    def trained_on(self, dataset: Path) -> list[str]:
        """The names of the runs that train on a dataset or measure on it."""
        wanted = str(dataset)
        return [
            run.name
            for run in runs.every(self.context.runs)
            if wanted in (self.run(run).dataset, self.run(run).heldout)
        ]

    def _once(self, path: Path, read: Callable[[Path], _T], nothing: _T) -> _T:
        """What is read of a file as it is now; `nothing` for a file that can't be read."""
        try:
            status = path.stat()
            key = (path, status.st_mtime_ns, status.st_size)
            if key not in self._facts:
                # Read without the lock: two requests that read a file at once find the same.
                facts = read(path)
                with self._lock:
                    while len(self._facts) >= _MOST:
                        self._facts.pop(next(iter(self._facts)))
                    self._facts[key] = facts
            remembered: _T = self._facts.get(key, nothing)
            return remembered
        except (OSError, ValueError, UserError):
            return nothing


def _picture_facts(path: Path) -> PictureFacts:
    from trainer.render import picture_metadata  # takes a second to import, which the page's start must not

    try:
        recipe = picture_metadata.read(path).recipe
    except UserError:
        recipe = None
    if recipe is None:
        return PictureFacts()
    adapters, seed = recipe.get("adapters"), recipe.get("seed")
    loras = [
        (_text(adapter.get("sha256")), _text(adapter.get("name")), _number(adapter.get("weight")))
        for adapter in (adapters if isinstance(adapters, list) else ())
        if isinstance(adapter, dict)
    ]
    # All but the LoRAs, so that votes can tell which pictures may be compared.
    rest = json.dumps({key: value for key, value in recipe.items() if key != "adapters"}, sort_keys=True)
    return PictureFacts(
        _text(recipe.get("prompt")),
        seed if isinstance(seed, int) else None,
        _text(recipe.get("base")),
        tuple(loras),
        hashlib.sha256(rest.encode("utf-8", "replace")).hexdigest()[:16],
    )


def _run_facts(path: Path) -> RunFacts:
    values = presets.read_toml(path)
    data, start, steps = values.get("data"), values.get("start"), values.get("max_steps")
    data_settings = data if isinstance(data, dict) else {}
    return RunFacts(
        dataset=_text(data_settings.get("folder")),
        heldout=_text(data_settings.get("heldout")),
        trigger=_text(data_settings.get("trigger")),
        base=_text(values.get("base")),
        family=_text(values.get("family")),
        max_steps=steps if isinstance(steps, int) else 0,
        source=_text(start.get("source")) if isinstance(start, dict) else "",
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 1.0
