"""From events and job rows to what is shown: pure functions, so that every page, tab and restart shows the same.

What comes back as HTML is ours, with everything from outside escaped.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TypeVar

import pandas as pd

from app.jobs import Job
from trainer.events import Cached, Event, Failed, Finished, Sampled, Saved, Started, Step, Stopped, Validated, Warned

SMOOTHED, RAW, HELDOUT = "training, smoothed", "training", "held-out"
_MAX_POINTS = 300
_SMOOTHING = 0.95
_E = TypeVar("_E")

STATES = {
    "queued": "Waiting its turn",
    "running": "Training",
    "stopping": "Stopping: finishes this step and saves",
    "stopped": "Stopped; it can go on",
    "finished": "Finished",
    "failed": "Failed",
    "interrupted": "Interrupted; goes on by itself",
}

NOTHING_YET = '<div class="progress"><div class="detail">Nothing has been trained here yet. Choose a preset and a dataset, then start.</div></div>'


@dataclass(frozen=True)
class Progress:
    """How far a job is, in words and as a share of the whole."""

    headline: str
    detail: str
    share: float
    state: str


def last(events: list[Event], kind: type[_E]) -> _E | None:
    """The newest event of a kind."""
    return next((event for event in reversed(events) if isinstance(event, kind)), None)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress(job: Job, events: list[Event]) -> Progress:
    """Step, seconds a step, time left and what it works with."""
    started, step, done = last(events, Started), last(events, Step), last(events, Finished)
    headline = STATES[job.state]
    if job.state == "running" and started is None:
        return Progress("Loading the base model", "The first seconds of a run.", 0.0, job.state)
    if started is None:
        return Progress(headline, "", 0.0, job.state)
    at = step.step if step else started.from_step
    parts = [f"step {at} of {started.max_steps}"]
    recent = [event.seconds for event in events[-200:] if isinstance(event, Step)][-50:]
    if recent:
        pace = statistics.median(recent)
        parts.append(f"{pace:.2f} s a step")
        if job.state == "running" and at < started.max_steps:
            parts.append(f"about {duration(pace * (started.max_steps - at))} left")
    if done:
        parts.append(f"took {duration(done.seconds)}")
    if job.state == "running" and at >= started.max_steps:
        headline = "Measuring and writing the file"
    elif job.state == "running" and last(events, Cached) is None:
        headline = "Preparing pictures and captions"
    parts.append(f"{started.num_pictures} pictures, {started.device}, {started.dtype}")
    return Progress(headline, " · ".join(parts), 1.0 if job.state == "finished" else at / max(started.max_steps, 1), job.state)


def progress_html(name: str, shown: Progress) -> str:
    """The progress as a bar of thin layers with two lines of text."""
    percent = round(100 * min(max(shown.share, 0.0), 1.0), 1)
    return (
        f'<div class="progress {escape(shown.state)}" role="status" aria-live="off"><div class="line"><b>{escape(name)}</b>'
        f'<span class="state" data-state="{escape(shown.state)}">{escape(shown.headline)}</span></div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{percent:g}" aria-valuemin="0" aria-valuemax="100"><i style="width:{percent:g}%"></i></div>'
        f'<div class="detail">{escape(shown.detail) or "&nbsp;"}</div></div>'
    )


def legend_html(colors: dict[str, str]) -> str:
    """The names of the curves beside their colours."""
    return (
        '<div class="legend">' + "".join(f'<span><i style="background:{escape(color)}"></i>{escape(name)}</span>' for name, color in colors.items()) + "</div>"
    )


def curve(events: list[Event]) -> pd.DataFrame:
    """Loss by step, raw and smoothed (exponential mean, corrected for its start), and held-out loss: long form."""
    rows: list[tuple[int, float, str]] = []
    steps = [event for event in events if isinstance(event, Step)]
    mean, smoothed = 0.0, []
    for number, event in enumerate(steps, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * event.loss
        smoothed.append(mean / (1 - _SMOOTHING**number))
    for index in _spread(len(steps)):
        rows.append((steps[index].step, steps[index].loss, RAW))
    for index in _spread(len(steps)):
        rows.append((steps[index].step, smoothed[index], SMOOTHED))
    measured = [event for event in events if isinstance(event, Validated)]
    if measured:
        rows.append((0, measured[0].base_loss, HELDOUT))
    rows += [(event.step, event.loss, HELDOUT) for event in measured]
    # Typed also when empty: the plot keeps the axes it was first drawn with, and an untyped column makes them of names.
    return pd.DataFrame(rows, columns=["step", "loss", "of"]).astype({"step": "int64", "loss": "float64", "of": "str"})


def _spread(count: int) -> list[int]:
    """Indices of at most `_MAX_POINTS` points over the whole range, the last one always."""
    if count <= _MAX_POINTS:
        return list(range(count))
    return sorted({round(number * (count - 1) / (_MAX_POINTS - 1)) for number in range(_MAX_POINTS)})


def samples(folder: Path, events: list[Event]) -> list[tuple[Path, str]]:
    """Preview pictures inside the run's folder with their captions, newest step first."""
    found = []
    for event in sorted((event for event in events if isinstance(event, Sampled)), key=lambda event: -event.step):
        path = (folder / event.file).resolve()
        if path.is_relative_to(folder.resolve()) and path.is_file():
            found.append((path, f"step {event.step} · {event.prompt}"))
    return found


def gain(events: list[Event]) -> str:
    """The held-out result in a sentence, "" without one."""
    found = last(events, Validated)
    if found is None:
        return ""
    sure = "" if found.gain_low > 0 else " The interval holds zero: not yet sure that it learned anything that carries over."
    word = "fell" if found.gain >= 0 else "rose"
    return (
        f"At step {found.step} the loss on {found.num_pictures} pictures it never saw {word} by {abs(found.gain):.1%} against the base "
        f"(95 % interval {found.gain_low:.1%} to {found.gain_high:.1%}); {found.share_better:.0%} of them got better.{sure}"
    )


def best_step(events: list[Event]) -> str:
    """Which measured step was best on the held-out set, if it is not the last."""
    measured = [event for event in events if isinstance(event, Validated)]
    if len(measured) < 2:
        return ""
    best = min(measured, key=lambda event: event.loss)
    return f" Best so far: step {best.step}, {best.gain:.1%}." if best is not measured[-1] else ""


def messages(job: Job, events: list[Event]) -> str:
    """Warnings, failures and milestones, newest first."""
    lines = [f"{job.error}"] if job.error else []
    for event in reversed(events):
        match event:
            case Warned():
                lines.append(f"look: {event.message}")
            case Failed() if not job.error:
                lines.append(f"failed: {event.message}")
            case Stopped():
                lines.append(f"stopped after step {event.step}, saved")
            case Saved():
                lines.append(f"checkpoint at step {event.step}")
            case Finished():
                lines.append(f"finished: {event.file}, opened again and complete")
            case Cached():
                lines.append(f"{event.num_entries} pictures and captions prepared in {duration(event.seconds)}")
    return "\n".join(dict.fromkeys(lines))


def job_label(job: Job) -> str:
    """A job as the picker shows it."""
    return f"{job.name} · {job.state}"
