"""What a job is done by: the command of its child process, and how far its result is.

A batch's work is `app.batches.Drawing`, that of captions `app.captioning.Captioning`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.job_table import Job
from app.texts import say
from trainer import runs
from trainer.cards import to_compare
from trainer.config.parsing import from_toml
from trainer.errors import RunError
from trainer.events import Saved
from trainer.report.plausible import plausible

TRAINING, REHEARSAL, CAPTIONS = "train", "rehearse", "captions"  # a job's kind


class Work(Protocol):
    """What a job is done by; a fake in the tests."""

    def command(self, job: Job) -> list[str]:
        """The child's command; the same to start and to go on."""
        ...

    def finished(self, job: Job) -> bool:
        """Whether its result is there, asked when no child works on it."""
        ...

    def saved_step(self, job: Job) -> int:
        """How far its result is: the newest checkpoint's step, 0 for none."""
        ...


class Training:
    """`python -m trainer train` with `--resume`: starts anew where there is no such run, and goes on otherwise.

    A job of kind "rehearse" is the same command's dry run, which leaves no run behind; its result is what it prints.
    """

    def __init__(self, runs_folder: Path, configs_folder: Path) -> None:
        self.runs_folder = runs_folder
        self.configs_folder = configs_folder

    def command(self, job: Job) -> list[str]:
        self.configs_folder.mkdir(parents=True, exist_ok=True)
        # Written at each start: the row is what was wanted, the file only hands it over.
        config = self.configs_folder / f"job-{job.id}.toml"
        config.write_text(job.config, encoding="utf-8")
        train = [sys.executable, "-m", "trainer", "train", str(config)]
        card = card_of(self.configs_folder, job.config)
        train += ["--card", str(card)] if card.is_file() and job.kind != REHEARSAL else []
        kind = kind_of(card)
        if kind.is_file() and job.kind != REHEARSAL:
            train += ["--kind", kind.read_text(encoding="utf-8", errors="replace")[:20]]
        old = to_compare.kept(old_of(card)) if job.kind != REHEARSAL else None
        train += ["--compare-with", str(old)] if old else []
        if job.kind == REHEARSAL:
            return [*train, "--out", str(self.runs_folder), "--rehearse", "--json"]
        return [*train, "--name", job.name, "--out", str(self.runs_folder), "--json", "--resume"]

    def finished(self, job: Job) -> bool:
        run = runs.Run(self.runs_folder / job.name)
        if not run.folder.is_dir() or run.state() != "finished" or to_compare.is_to_do(run):
            return False
        # One that is to be extended was finished before: its child was killed before it began.
        wanted = from_toml(job.config, say("where.job")).get("max_steps")
        return wanted is None or wanted == run.config().max_steps

    def saved_step(self, job: Job) -> int:
        events = plausible(runs.Run(self.runs_folder / job.name).events())
        return max((event.step for event in events if isinstance(event, Saved)), default=0)


def card_of(configs_folder: Path, config: str) -> Path:
    """Where the card lies that a job with these settings was started from, if it was."""
    return configs_folder / "cards" / f"{hashlib.sha256(config.encode()).hexdigest()}.velatura"


def old_of(card: Path) -> Path:
    """The folder of the LoRA that such a job is compared with at its end, beside its card, if it is."""
    return card.with_suffix(".old")


def kind_of(card: Path) -> Path:
    """Where it lies what such a job's pictures teach, beside its card, if its preset says."""
    return card.with_suffix(".kind")


@dataclass(frozen=True)
class ByKind:
    """Each kind of job by its own work."""

    works: Mapping[str, Work]

    def _work(self, job: Job) -> Work:
        if job.kind not in self.works:
            raise RunError(say("job.strange_kind", name=job.name, kind=job.kind[:40], allowed=", ".join(self.works)))
        return self.works[job.kind]

    def command(self, job: Job) -> list[str]:
        return self._work(job).command(job)

    def finished(self, job: Job) -> bool:
        return self._work(job).finished(job)

    def saved_step(self, job: Job) -> int:
        return self._work(job).saved_step(job)
