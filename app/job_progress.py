"""How far a job of any kind is, as the page, its title and programs say it."""

from __future__ import annotations

from pathlib import Path

from app import batches, captioning, views
from app.context import Context
from app.job_table import Job
from app.job_work import CAPTIONS
from trainer import file_names, phases, runs
from trainer.events import Event, Started


def of(context: Context, job: Job) -> views.Progress:
    """In words and as a share of the whole."""
    if job.kind in batches.KINDS.values():
        return batches.progress(job, batches.last_events(context.runner.log_file(job)))
    if job.kind == CAPTIONS:
        return captioning.progress(context, job)
    events, fold = run_events(context, context.runs / job.name)
    return of_training(context, job, events, fold)


def of_training(context: Context, job: Job, events: list[Event], fold: int) -> views.Progress:
    """The same of a training with the events that `run_events` gives."""
    phase = phases.read(runs.Run(context.runs / job.name)) if job.state == "running" else None
    return views.progress(job, events, fold, phase)


def run_events(context: Context, folder: Path) -> tuple[list[Event], int]:
    """A run's events; before it begins those of its newest fold, and how many folds were begun."""
    events = context.logs.read(folder / file_names.EVENTS)
    # By number, as the tenth comes after the ninth.
    numbered = [path for path in (folder / file_names.FOLDS).glob("[0-9]*") if path.name.isdecimal()]
    folds = sorted(numbered, key=lambda path: int(path.name)) if views.last(events, Started) is None else []
    return (context.logs.read(folds[-1] / file_names.EVENTS), len(folds)) if folds else (events, 0)
