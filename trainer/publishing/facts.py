"""What there is to tell of a run, read from its folder alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import families, lora_file, schema
from trainer.cards import making
from trainer.cards.sources import Source
from trainer.config import TrainConfig, recipe
from trainer.errors import RunError
from trainer.events import Event, Finished, Sampled, Started, Step, Validated, last
from trainer.lora_file import LoraInfo
from trainer.publishing import licences
from trainer.report import settings_table
from trainer.report.advising import is_copy
from trainer.report.plausible import plausible
from trainer.runs import Run

MAX_SAMPLES = 20  # of Civitai's form


@dataclass(frozen=True)
class Sample:
    """A preview at the step that is published."""

    path: Path
    prompt: str
    step: int


@dataclass(frozen=True)
class Wishes:
    """What whoever publishes says; empty where it is left to the run."""

    title: str = ""
    author: str = ""
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """What is published of a run."""

    run: Run
    name: str
    title: str
    author: str
    note: str
    lora: LoraInfo
    config: TrainConfig
    settings: tuple[tuple[str, str], ...]  # label and value of what differs from the defaults, without any place
    base: str  # a hub id, or a name
    is_on_hub: bool  # whether `base` is a hub id
    licence: licences.Licence
    step: int
    reason: str  # for that step; "" if none was measured
    num_pictures: int
    device: str
    seconds_per_step: float  # 0 if not known
    peak_memory_bytes: int
    measured: Validated | None  # on pictures it never saw, at that step
    samples: tuple[Sample, ...]

    @property
    def trigger(self) -> str:
        return self.lora.trigger

    @property
    def file_name(self) -> str:
        """What its files are called, without an ending: by the title, as a run's name is often its dataset's."""
        words = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60].strip("-")
        return words or "lora"

    @property
    def passes(self) -> int:
        """How often each picture was seen, about."""
        per_step = self.config.batch_size * self.config.accumulation
        return round(self.step * per_step / self.num_pictures) if self.num_pictures else 0


def gather(run: Run, wishes: Wishes) -> Facts:
    """The facts of a run that has a LoRA file. Raises: RunError, ConfigError, AdapterError."""
    config, log = run.config(), plausible(run.events())

    # Which file: that which is recommended, else the last.
    path, best = run.best(log)
    if not path.is_file():
        raise RunError(f"run {run.name} has no LoRA file yet; let it finish, or stop it, which saves one.")
    done, step = last(log, Finished), last(log, Step)
    number = best.step if best else done.step if done else step.step if step else 0

    # What was measured. The first steps are slower: the median is taken.
    started = last(log, Started)
    seconds = sorted(event.seconds for event in log if isinstance(event, Step))
    at_step = [event for event in log if isinstance(event, Validated) and event.step == number]
    base = str(recipe(config)["base"])
    return Facts(
        run=run,
        name=run.name,
        title=wishes.title or making.title(Source("run", run.name, config, run.folder), config),
        author=wishes.author,
        note=wishes.note,
        lora=lora_file.inspect(path),
        config=config,
        settings=_settings(config),
        base=base,
        is_on_hub="/" in base,
        licence=licences.of(base, wishes.licence),
        step=number,
        reason=best.reason if best else "",
        num_pictures=started.num_pictures if started else 0,
        device=started.device if started else "",
        seconds_per_step=seconds[len(seconds) // 2] if seconds else 0.0,
        peak_memory_bytes=done.peak_memory_bytes if done else 0,
        measured=at_step[-1] if at_step else None,
        samples=_samples(run, log, number),
    )


def family_title(facts: Facts) -> str:
    return families.registry()[facts.config.family].title


def _settings(config: TrainConfig) -> tuple[tuple[str, str], ...]:
    places = set(_places(config))
    return tuple(
        (label, value)
        for key, label, value, default in settings_table.rows(config)
        if key not in places and default is not None and value != default
    )


def _places(group: Any, prefix: str = "") -> Iterator[str]:
    """The keys of all settings that name a place on this machine."""
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if hasattr(type(value), "model_fields"):
            yield from _places(value, f"{prefix}{name}.")
        elif schema.path_kind(field):
            yield prefix + name


def _samples(run: Run, log: list[Event], step: int) -> tuple[Sample, ...]:
    """The previews of the latest step up to this that has any; likely copies of training pictures are left out."""
    sampled = [event for event in log if isinstance(event, Sampled) and event.step <= step and not is_copy(event)]
    latest = max((event.step for event in sampled), default=0)
    found: dict[str, Sample] = {}
    for event in sampled:
        path = run.inside(event.file)
        if event.step == latest and path is not None:
            found[event.prompt] = Sample(path, event.prompt, event.step)
    return tuple(found.values())[:MAX_SAMPLES]
