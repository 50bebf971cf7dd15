"""From events and job rows to what is shown: pure functions, so that every page, tab and restart shows the same.

What comes back as HTML is ours, with everything from outside escaped.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from app.jobs import Job
from trainer import console, presets, report
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.events import (
    Adjusted,
    Cached,
    Event,
    Failed,
    Finished,
    Folded,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from trainer.printing import escape, plain
from trainer.report import charts as report_charts
from trainer.report.advising import COPY, advice
from trainer.report.charts import Series

_MAX_BUCKETS = 10
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


def progress(job: Job, events: list[Event], fold: int = 0) -> Progress:
    """Step, seconds a step, time left and what it works with; `fold` counts the folds begun, whose newest said `events`."""
    started, step, done = last(events, Started), last(events, Step), last(events, Finished)
    headline = f"Training fold {fold} to find the best step" if fold and job.state == "running" else STATES[job.state]
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


def loss_html(events: list[Event]) -> str:
    """Loss by step with its running mean, and the held-out loss; "" before there are two steps."""
    chart = report.training_loss(events)
    return f'<div class="drawn">{chart}</div>' if chart else ""


def samples(folder: Path, events: list[Event]) -> list[tuple[Path, str]]:
    """Preview pictures inside the run's folder with their captions, newest step first."""
    found = []
    for event in sorted((event for event in events if isinstance(event, Sampled)), key=lambda event: -event.step):
        if path := _inside(folder, event.file):
            copy = f" · looks like a copy of {event.nearest_picture or 'a training picture'}" if event.nearest is not None and event.nearest >= COPY else ""
            found.append((path, plain(f"step {event.step} · {event.prompt}{copy}")))
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
            case Adjusted():
                lines.append(f"memory ran out at step {event.step}; from there on {event.message}")
            case Overtrained():
                lines.append(f"over-training, seen at step {event.step}: {event.message}")
            case Recommended():
                lines.append(f"use step {event.step}, {event.file}")
            case Folded():
                lines.append(f"fold {event.fold}: {console.fold(event)}")
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
    return "\n".join(map(plain, dict.fromkeys(lines)))


def plan_html(events: list[Event]) -> str:
    """The buckets in their shapes, the fullest first, "" before there is a plan."""
    plan = last(events, Planned)
    if plan is None:
        return ""
    rows = sorted((bucket for bucket in plan.buckets if len(bucket) == 3 and min(bucket) > 0), key=lambda bucket: -bucket[2])
    longest = max((max(bucket[:2]) for bucket in rows), default=1)
    shapes = "".join(
        f'<span><i style="width:{width / longest * 22:.1f}px;height:{height / longest * 22:.1f}px"></i>{width} x {height}<b>{count}</b></span>'
        for width, height, count in rows[:_MAX_BUCKETS]
    )
    more = f"<span>and {len(rows) - _MAX_BUCKETS} more sizes</span>" if len(rows) > _MAX_BUCKETS else ""
    cropped = f"; {plan.num_cropped} {'lose' if plan.num_cropped > 1 else 'loses'} more than a tenth to the crop" if plan.num_cropped else ""
    return f'<div class="plan"><p>{plan.num_batches} batches an epoch{cropped}</p><div class="shapes">{shapes}{more}</div></div>'


def notices_html(events: list[Event]) -> str:
    """What must be seen while it trains: the over-training alarm and what was changed to fit into memory."""
    alarm = last(events, Overtrained)
    boxes = [_box("bad", f"It over-trains from step {alarm.best_step} on", [alarm.message])] if alarm else []
    if adjusted := [f"At step {event.step}: {event.message}." for event in events if isinstance(event, Adjusted)]:
        boxes.append(_box("plain", "Memory ran out, so this was changed; nothing was lost", adjusted))
    return "".join(boxes)


def recommendation_html(events: list[Event], config: TrainConfig | None) -> str:
    """Which file to use and why, and what to do another time; "" while it trains."""
    found, boxes = last(events, Recommended), []
    if found:
        boxes.append(_box("good", f"Use step {found.step}: {found.file}", [found.reason]))
    if last(events, Finished) and (lines := advice(events, config)):
        boxes.append(_box("plain", "Next time", lines))
    return "".join(boxes)


def _box(style: str, title: str, lines: list[str]) -> str:
    said = "".join(f"<p>{escape(line[:1].upper() + line[1:])}</p>" for line in lines)
    return f'<div class="notice {style}"><h3>{escape(title)}</h3>{said}</div>'


def heldout_html(events: list[Event]) -> str:
    """The gain on held-out pictures with its interval, beside that on training pictures and the drift; "" without measurements."""
    measured = sorted({event.step: event for event in events if isinstance(event, Validated)}.values(), key=lambda event: event.step)
    if not measured:
        return ""
    lows, highs = [event.gain_low for event in measured], [event.gain_high for event in measured]
    held = Series("gain, held-out", "held", [(0, 0.0), *((event.step, event.gain) for event in measured)], [0.0, *lows], [0.0, *highs])
    own = Series("gain, training", "own", [(event.step, event.train_gain) for event in measured if event.train_gain is not None])
    drift = Series("drift", "drift", [(event.step, event.drift) for event in measured if event.drift is not None])
    chart = report_charts.lines([held, own, drift], "Gain against the base by step", lambda value: f"{value * 100:.3g} %", base=0.0)
    return f'<div class="drawn">{chart}</div>'


def files(folder: Path, events: list[Event]) -> list[Path | None]:
    """The best step's file, the last step's and the report, each None while it isn't there."""
    best, done = last(events, Recommended), last(events, Finished)
    return [_inside(folder, best.file if best else ""), _inside(folder, done.file if done else ""), _inside(folder, "report.html")]


def _inside(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder; a log may name anything."""
    try:
        path = (folder / name).resolve()
        return path if name and path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a link to itself
        return None


def rehearsal_html(job: Job, answer: dict[str, Any]) -> str:
    """What a dry run found, in words; where it stands while it is under way."""
    if job.state == "failed":
        return _box("bad", "The rehearsal failed", [job.error])
    if job.state != "finished":
        return _box("plain", {"running": "Rehearsing", "queued": "The rehearsal waits its turn"}.get(job.state, "Rehearsal stopped"), [])
    seconds, eta = _number(answer, "step_s"), _number(answer, "eta_s")
    peak, disk = _number(answer, "peak_bytes"), _number(answer, "disk_bytes")
    facts = [f"{seconds:.2f} s a step" if seconds < 10 else f"{seconds:.0f} s a step"] if seconds else []
    facts += [f"about {duration(eta)} in all"] if eta else []
    facts += [f"at most {console.memory(int(peak))} of memory"] if peak else []
    facts += [f"{console.memory(int(disk))} on disk"] if disk else []
    fits, changes = answer.get("fits") is not False, suggested(answer)
    lines = [", ".join(facts) or "It went through."]
    if changes:
        lines.append(("With " if fits else "Even with ") + ", ".join(f"{key} = {_value(value)}" for key, value in changes.items()) + ".")
    if not fits:
        lines.append("A lower resolution or a smaller base needs less.")
    budget = _number(answer, "budget_bytes")
    into = f"into {console.memory(int(budget))}" if budget else "into memory"
    title = f"Rehearsed: it does not fit {into}" if not fits else f"Rehearsed: it fits {into}" if budget else "Rehearsed"
    return _box("good" if fits else "bad", title, lines)


def suggested(answer: dict[str, Any]) -> dict[str, Any]:
    """The settings a rehearsal would change, by dotted key; it names them as `--set` takes them."""
    found = answer.get("settings")
    try:
        return presets.parse_overrides([one for one in found if isinstance(one, str)]) if isinstance(found, list) else {}
    except UserError:
        return {}


def _number(answer: dict[str, Any], key: str) -> float:
    """A positive figure of a rehearsal, 0 for none."""
    value = answer.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18 else 0.0


def _value(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def job_label(job: Job) -> str:
    """A job as the picker shows it."""
    return f"{job.name} · {job.state}"
