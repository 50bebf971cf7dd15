"""From events and job rows to what is shown: pure functions, so that every page, tab and restart shows the same.

What comes back as HTML is ours, with everything from outside escaped.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.form_words import in_page_words, labels
from app.job_table import Job
from app.texts import say, say_num
from trainer import console, presets
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
from trainer.events import last as last
from trainer.phases import Phase
from trainer.printing import escape, plain
from trainer.report import svg_charts as report_charts
from trainer.report.advising import COPY, advice
from trainer.report.svg_charts import Series

_MAX_BUCKETS = 10
_LONGEST_S = 30 * 86400  # of which an end is named

STATES = {
    "queued": say("job.queued"),
    "running": say("job.training"),
    "stopping": say("job.stopping"),
    "pausing": say("job.pausing_training"),
    "stopped": say("job.stopped"),
    "paused": say("job.paused_training"),
    "finished": say("job.finished"),
    "failed": say("job.failed"),
    "interrupted": say("job.interrupted"),
}

NOTHING_YET = f'<div class="progress"><div class="detail">{say("train.none_yet")}</div></div>'


@dataclass(frozen=True)
class Progress:
    """How far a job is, in words and as a share of the whole."""

    headline: str
    detail: str
    share: float
    state: str


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return say("time.seconds", seconds=seconds)
    minutes = round(seconds / 60)
    return (
        say("time.minutes", minutes=minutes)
        if minutes < 90
        else say("time.hours", hours=minutes // 60, minutes=minutes % 60)
    )


def progress(job: Job, events: list[Event], fold: int = 0, phase: Phase | None = None) -> Progress:
    """Step, seconds a step, time left and what it works with; before the first step what it does instead.

    `fold` counts the folds that were begun, whose newest the events are of; 0 for none. `phase` is what the run says
    while it has no event.
    """
    # Before the run itself begins.
    started, step, done = last(events, Started), last(events, Step), last(events, Finished)
    headline = say("job.fold", fold=fold) if fold and job.state == "running" else STATES[job.state]
    if job.state == "running" and started is None:
        return _before_events(phase)
    if started is None:
        return Progress(headline, "", 0.0, job.state)

    # Step, pace, time left.
    at = step.step if step else started.from_step
    parts = [say("job.step", step=at, all=started.max_steps)]
    recent = [event.seconds for event in events[-200:] if isinstance(event, Step)][-50:]  # as fast as it is now
    if recent:
        pace = statistics.median(recent)
        parts.append(say("job.pace", pace=pace))
        if job.state == "running" and at < started.max_steps:
            parts.append(say("job.time_left", time=duration(pace * (started.max_steps - at))))
    if done:
        parts.append(say("job.took", time=duration(done.seconds)))

    # What it does while no step is made.
    if phase is not None and phase.what == "comparing":
        headline = say("job.comparing")
    elif job.state == "running" and at >= started.max_steps:
        headline = say("job.measuring")
    elif job.state == "running" and last(events, Cached) is None:
        headline = say("job.preparing")
    elif job.state == "running" and step is None:
        headline = _before_first_step(events)
    parts.append(say("job.works_with", num=started.num_pictures, device=started.device, dtype=started.dtype))
    share = 1.0 if job.state == "finished" else at / max(started.max_steps, 1)
    return Progress(headline, " · ".join(parts), share, job.state)


def _before_events(phase: Phase | None) -> Progress:
    """What a run does that has begun and has no event yet."""
    match phase:
        case None:
            return Progress(say("job.starting"), say("job.reading"), 0.0, "running")
        case Phase(what="encoding"):
            share = phase.done / phase.total if phase.total else 0.0
            detail = say("job.encoding_long")
            return Progress(say("job.encoding", done=phase.done, total=phase.total), detail, share, "running")
        case Phase(what="adapting"):
            return Progress(say("job.adapting"), "", 0.0, "running")
        case _:
            return Progress(say("job.loading_the_base"), say("job.loading_long"), 0.0, "running")


def _before_first_step(events: list[Event]) -> str:
    """What a run does between its beginning and its first step."""
    since = max(place for place, event in enumerate(events) if isinstance(event, Started))
    # The untrained base is drawn and measured first; the step after that compiles on CUDA.
    if any(isinstance(event, Sampled | Validated) for event in events[since:]):
        begun = last(events, Started)
        compiles = begun is not None and begun.device.startswith("cuda")
        return say("job.first_step_compiles") if compiles else say("job.first_step")
    return say("job.before_first_step")


def progress_html(name: str, shown: Progress) -> str:
    """The progress as a bar of thin layers with two lines of text."""
    percent = round(100 * min(max(shown.share, 0.0), 1.0), 1)
    return (
        f'<div class="progress {escape(shown.state)}" role="status" aria-live="off"><div '
        f'class="line"><b>{escape(name)}</b>'
        f'<span class="state" data-state="{escape(shown.state)}">{escape(shown.headline)}</span></div>'
        f'<div class="bar" role="progressbar" aria-valuenow="{percent:g}" aria-valuemin="0" aria-valuemax="100"><i '
        f'style="width:{percent:g}%"></i></div>'
        f'<div class="detail">{escape(shown.detail) or "&nbsp;"}</div></div>'
    )


def samples(folder: Path, events: list[Event]) -> list[tuple[Path, str]]:
    """Preview pictures inside the run's folder with their captions, newest step first."""
    pictures = []
    for event in sorted((event for event in events if isinstance(event, Sampled)), key=lambda event: -event.step):
        if path := _inside(folder, event.file):
            caption = f"{say('run.step', step=event.step)} · {event.prompt}"
            if event.nearest is not None and event.nearest >= COPY:
                picture = event.nearest_picture or say("run.a_training_picture")
                caption += f" · {say('run.looks_copied', picture=picture)}"
            pictures.append((path, plain(caption)))
    return pictures


def gain(events: list[Event]) -> str:
    """The held-out result in a sentence, "" without a measurement."""
    measured = last(events, Validated)
    if measured is None:
        return ""
    words = say(
        "measured.loss", step=measured.step, num=measured.num_pictures, change=abs(measured.gain),
        moved=say("measured.fell") if measured.gain >= 0 else say("measured.rose"),
        low=measured.gain_low, high=measured.gain_high, better=measured.share_better,
    )  # fmt: skip
    return words if measured.gain_low > 0 else f"{words} {say('measured.doubt')}"


def best_step(events: list[Event]) -> str:
    """Which measured step was best on the held-out set, if it is not the last."""
    measured = [event for event in events if isinstance(event, Validated)]
    if len(measured) < 2:
        return ""
    best = min(measured, key=lambda event: event.loss)
    return say("measured.best_so_far", step=best.step, gain=best.gain) if best is not measured[-1] else ""


def messages(job: Job, events: list[Event]) -> str:
    """Warnings, failures and milestones, newest first."""
    # Equal lines are shown once, where the newest stands.
    lines = [f"{job.error}"] if job.error else []
    for event in reversed(events):
        match event:
            case Warned():
                lines.append(say("log.look", message=event.message))
            case Adjusted():
                lines.append(say("log.memory", step=event.step, message=event.message))
            case Overtrained():
                lines.append(say("log.overtrained", step=event.step, message=event.message))
            case Recommended():
                lines.append(say("log.use", step=event.step, file=event.file))
            case Folded():
                lines.append(say("log.fold", fold=event.fold, result=console.fold(event)))
            case Failed() if not job.error:
                lines.append(say("log.failed", message=event.message))
            case Stopped():
                lines.append(say("log.stopped", step=event.step))
            case Saved():
                lines.append(say("log.saved", step=event.step))
            case Finished():
                lines.append(say("log.finished", file=event.file))
            case Cached():
                lines.append(say("log.prepared", num=event.num_entries, time=duration(event.seconds)))
    return "\n".join(plain(in_page_words(line)) for line in dict.fromkeys(lines))


def plan_html(events: list[Event]) -> str:
    """The buckets in their shapes, the fullest first, "" before there is a plan."""
    plan = last(events, Planned)
    if plan is None:
        return ""
    # Buckets are (width, height, number of pictures); a log that was edited may hold anything.
    valid = [bucket for bucket in plan.buckets if len(bucket) == 3 and min(bucket) > 0]
    rows = sorted(valid, key=lambda bucket: -bucket[2])

    # Each bucket as a rectangle, the longest side 22 pixels.
    longest = max((max(bucket[:2]) for bucket in rows), default=1)
    shapes = "".join(
        f'<span><i style="width:{width / longest * 22:.1f}px;height:{height / longest * 22:.1f}px"></i>{width} x '
        f"{height}<b>{count}</b></span>"
        for width, height, count in rows[:_MAX_BUCKETS]
    )
    more = f"<span>{say('run.more_sizes', num=len(rows) - _MAX_BUCKETS)}</span>" if len(rows) > _MAX_BUCKETS else ""
    cropped = say_num("run.cropped", plan.num_cropped) if plan.num_cropped else ""
    words = say_num("run.batches", plan.num_batches, cropped=cropped)
    return f'<div class="plan"><p>{words}</p><div class="shapes">{shapes}{more}</div></div>'


def notices_html(events: list[Event]) -> str:
    """What must be seen while it trains: the over-training alarm and what was changed to fit into memory."""
    alarm = last(events, Overtrained)
    boxes = [_box("bad", say("run.overtrains", step=alarm.best_step), [in_page_words(alarm.message)])] if alarm else []
    if adjusted := [
        say("run.adjusted_at", step=event.step, message=event.message)
        for event in events
        if isinstance(event, Adjusted)
    ]:
        boxes.append(_box("plain", say("run.adjusted"), adjusted))
    return "".join(boxes)


def recommendation_html(events: list[Event], config: TrainConfig | None) -> str:
    """Which file to use and why, and what to do another time; "" while it trains."""
    best, boxes = last(events, Recommended), []
    if best:
        boxes.append(_box("good", say("run.use", step=best.step, file=best.file), [best.reason]))
    if last(events, Finished) and (lines := advice(events, config)):
        boxes.append(_box("plain", say("run.next_time"), [in_page_words(line.text) for line in lines]))
        if any(line.settings for line in lines):
            boxes.append(f'<p><button type="button" class="cure">{say("run.fill_next_time")}</button></p>')
    return "".join(boxes)


def notice_html(style: str, title: str, lines: list[str]) -> str:
    """A box with a title and a paragraph for each line; `style` is plain, good or bad."""
    paragraphs = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<div class="notice {style}"><h3>{escape(title)}</h3>{paragraphs}</div>'


def _box(style: str, title: str, lines: list[str]) -> str:
    """The same, each line with a capital."""
    return notice_html(style, title, [line[:1].upper() + line[1:] for line in lines])


def heldout_html(events: list[Event]) -> str:
    """The gain on held-out pictures with its interval, beside that on training pictures and the drift.

    "" without measurements.
    """
    # A step that was measured twice, as after a stop, counts as last measured.
    by_step = {event.step: event for event in events if isinstance(event, Validated)}
    measured = sorted(by_step.values(), key=lambda event: event.step)
    if not measured:
        return ""

    # Gains begin with the base, whose gain is 0.
    lows, highs = [event.gain_low for event in measured], [event.gain_high for event in measured]
    gains = [(0, 0.0), *((event.step, event.gain) for event in measured)]
    held = Series(say("measured.gain_heldout"), "held", gains, [0.0, *lows], [0.0, *highs])
    train_gains = [(event.step, event.train_gain) for event in measured if event.train_gain is not None]
    own = Series(say("measured.gain_training"), "own", train_gains)
    drift = Series(
        say("measured.drift"), "drift", [(event.step, event.drift) for event in measured if event.drift is not None]
    )
    chart = report_charts.lines(
        [held, own, drift], say("measured.chart"), lambda value: f"{value * 100:.3g} %", base=0.0
    )
    return f'<div class="chart-view">{chart}</div>'


def files(folder: Path, events: list[Event]) -> list[Path | None]:
    """The best step's file, the last step's and the report, each None while it isn't there."""
    best, done = last(events, Recommended), last(events, Finished)
    return [
        _inside(folder, best.file if best else ""),
        _inside(folder, done.file if done else ""),
        _inside(folder, "report.html"),
    ]


def _inside(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder; a log may name anything."""
    try:
        # Links are followed first, so that none leads out of the folder.
        path = (folder / name).resolve()
        return path if name and path.is_relative_to(folder.resolve()) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a link to itself
        return None


def rehearsal_html(job: Job, answer: dict[str, Any]) -> str:
    """What a dry run found, in words; where it stands while it is under way."""
    if job.state == "failed":
        return _box("bad", say("try.failed"), [in_page_words(line) for line in job.error.splitlines()])
    if job.state != "finished":
        titles = {"running": say("try.trying"), "queued": say("try.waits")}
        return _box("plain", titles.get(job.state, say("try.stopped")), [])

    # Time and memory, those it knows.
    seconds, eta = _number(answer, "step_s"), _number(answer, "eta_s")
    peak, disk = _number(answer, "peak_bytes"), _number(answer, "disk_bytes")
    facts = [say("try.pace", pace=seconds) if seconds < 10 else say("try.pace_slow", pace=seconds)] if seconds else []
    facts += [say("try.in_all", time=duration(eta))] if eta else []
    facts += [say("try.memory", memory=console.memory(int(peak)))] if peak else []
    facts += [say("try.disk", disk=console.memory(int(disk)))] if disk else []

    # Whether it fits, and with which settings.
    fits, changes = answer.get("fits") is not False, suggested(answer)
    lines = [", ".join(facts) or say("try.went_through")]
    if eta and eta < _LONGEST_S:
        lines.append(say("try.ends", when=time.strftime("%A %H:%M", time.localtime(time.time() + eta))))
    if changes:
        settings = ", ".join(
            f"{say('settings.quoted', label=labels().get(key, key))} {_value(value)}" for key, value in changes.items()
        )
        lines.append(say("try.with", settings=settings) if fits else say("try.even_with", settings=settings))
    if not fits:
        lines.append(say("try.needs_less"))
    budget = _number(answer, "budget_bytes")
    if budget:
        memory = console.memory(int(budget))
        title = say("try.fits", memory=memory) if fits else say("try.does_not_fit", memory=memory)
    else:
        title = say("try.goes_through") if fits else say("try.does_not_fit_memory")
    return _box("good" if fits else "bad", title, lines)


def suggested(answer: dict[str, Any]) -> dict[str, Any]:
    """The settings a rehearsal would change, by dotted key; it names them as `--set` takes them."""
    pairs = answer.get("settings")
    if not isinstance(pairs, list):
        return {}
    try:
        return presets.parse_overrides([pair for pair in pairs if isinstance(pair, str)])
    except UserError:
        return {}


def _number(answer: dict[str, Any], key: str) -> float:
    """A positive figure of a rehearsal, 0 for none."""
    value = answer.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e18 else 0.0


def _value(value: Any) -> str:
    return {True: say("word.on"), False: say("word.off")}[value] if isinstance(value, bool) else str(value)


def job_label(job: Job) -> str:
    """A job as the picker shows it."""
    return f"{job.name} · {job.state}"
