"""Captions that the page has written: a job of a model that lies in the workspace, and how far it is.

The browser names a dataset and a model by what the server offers; `velatura dataset caption` then does the work in a
child process. The set's own history says what it did, so that a killed job goes on without a picture looked at twice.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app import batches
from app.context import Context
from app.job_table import Job
from app.job_work import CAPTIONS
from app.jobs import LIVE, WAITING
from app.texts import say
from app.views import Progress, duration
from trainer.captioning import kinds, rules
from trainer.captioning.contract import Kind
from trainer.data import edits
from trainer.errors import ConfigError, UserError
from trainer.printing import plain, some

MAX_INSTRUCTION_CHARS, MAX_TRIGGER_CHARS = 4000, 80
_FIGURES = ("done", "total", "left_s")
_STATES = {
    "queued": say("job.queued"), "running": say("captions.writing"), "stopping": say("captions.stopping"),
    "pausing": say("job.pausing"), "paused": say("job.paused"),
    "stopped": say("job.stopped"), "finished": say("job.finished"), "failed": say("job.failed"),
    "interrupted": say("job.interrupted"),
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What a person asked for. `dataset` and `model` are names of folders that the server has."""

    dataset: str
    model: str
    purpose: str
    trigger: str
    leave_out: str
    instruction: str
    every: bool


# The models.


def models(context: Context) -> dict[str, Path]:
    """The folders with a model that writes captions, by name."""
    by_name = {}
    folders = [*context.captioners.glob("*")] if context.captioners.is_dir() else []
    for path in sorted(folders):
        if path.is_dir() and not path.name.startswith(".") and (path / "config.json").is_file():
            by_name[path.name] = path
    return by_name


def model(context: Context, name: str) -> Path:
    """The folder of that model. Raises: ConfigError if it is not offered."""
    here = models(context)
    if name not in here:
        what = say("problems.is_not_here", name=plain(name, 80)) if name else say("problems.none_chosen")
        allowed = some(list(here)) or say("captions.no_models")
        raise ConfigError(say("captions.model", what=what, allowed=allowed))
    return here[name]


def kind(context: Context, name: str) -> Kind | None:
    """The kind of an offered model; None if it is none that can be used."""
    try:
        return kinds.kind_of(model(context, name))
    except UserError:
        return None


# The job.


def begin(context: Context, order: Order) -> Job:
    """A job for the order, all of it checked but what only opening the model shows. Raises: DataError,
    ModelError, and ConfigError, also if the set is being captioned already.
    """
    context.dataset(order.dataset)
    _check_lengths(order)
    asked = rules.rules(order.purpose, order.trigger, order.leave_out)
    kinds.opener(model(context, order.model), asked.purpose, order.instruction)
    for job in context.runner.shown():
        if job.state in (*LIVE, *WAITING) and _is_of(job, order.dataset):
            raise ConfigError(say("captions.is_writing", name=job.name))
    return context.runner.submit(f"captions-{order.dataset}", json.dumps(asdict(order)), CAPTIONS)


def _check_lengths(order: Order) -> None:
    for what, text, most in (
        (say("captions.the_instruction"), order.instruction, MAX_INSTRUCTION_CHARS),
        (say("captions.the_trigger"), order.trigger, MAX_TRIGGER_CHARS),
    ):
        if len(text) > most:
            raise ConfigError(say("problems.too_long", what=what, num=len(text), most=most))


def _order(job: Job) -> Order:
    """What a job was asked for. Raises: ConfigError if no version of ours wrote it."""
    try:
        return Order(**json.loads(job.config))
    except (ValueError, TypeError, RecursionError):
        raise ConfigError(say("captions.no_order", name=job.name)) from None


@dataclass(frozen=True)
class Captioning:
    """`python -m trainer dataset caption`: the same command goes on where it was. A `job_work.Work`."""

    datasets: Path
    captioners: Path

    def command(self, job: Job) -> list[str]:
        order = _order(job)
        options = {
            "--model": str(self.captioners / Path(order.model).name), "--for": order.purpose,
            "--trigger": order.trigger, "--leave-out": order.leave_out, "--instruction": order.instruction,
            "--visit": _visit(job),
        }  # fmt: skip
        # With an equals sign, so that a text that begins with a dash is no option of its own.
        told = [f"{name}={_sendable(text)}" for name, text in options.items()]
        caption = [sys.executable, "-m", "trainer", "dataset", "caption", str(self._folder(order)), "--json"]
        return [*caption, *told, *(["--all"] if order.every else [])]

    def finished(self, job: Job) -> bool:
        """Never by itself: a child that ends well says so, and after any other end a new start does no harm."""
        return False

    def saved_step(self, job: Job) -> int:
        order = _order(job)
        past = edits.history(self._folder(order))
        return sum(len(edit.changes) for edit in past if edit.visit == f"captions {_visit(job)}")

    def _folder(self, order: Order) -> Path:
        return self.datasets / Path(order.dataset).name


def _visit(job: Job) -> str:
    return f"{job.id}-{job.created!r}"


def _sendable(text: str) -> str:
    """The text as a process can be given it."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


# What is shown.


def newest(context: Context, dataset: str | None) -> Job | None:
    """The newest job that captions this dataset."""
    return next((job for job in context.runner.shown() if _is_of(job, dataset)), None)


def _is_of(job: Job, dataset: str | None) -> bool:
    """Whether a job captions this dataset; one whose order can't be read captions none."""
    try:
        return job.kind == CAPTIONS and _order(job).dataset == dataset
    except ConfigError:
        return False


def progress(context: Context, job: Job) -> Progress:
    """Pictures done, time left, and why some got no caption."""
    events = [event for event in batches.last_events(context.runner.log_file(job)) if _is_sound(event)]
    kinds_ = [event["event"] for event in events]
    # Of the newest start alone, as a batch's.
    begun = len(kinds_) - kinds_[::-1].index("planned") if "planned" in kinds_ else 0
    here = [event for event in events[begun:] if event["event"] in ("captioned", "skipped")]
    newest_event = next((event for event in reversed(events) if event["event"] in ("captioned", "skipped")), None)
    if job.state == "running" and not here:
        return Progress(say("captions.opening"), say("captions.opening_long"), 0.0, job.state)

    # How far it is.
    parts, share = [], 1.0 if job.state == "finished" else 0.0
    if newest_event:
        parts.append(say("job.pictures_done", done=newest_event["done"], total=newest_event["total"]))
        share = min(newest_event["done"] / max(newest_event["total"], 1), 1.0)
        if job.state == "running":
            parts.append(say("job.time_left", time=duration(newest_event["left_s"])))
    elif job.state == "finished":
        parts.append(say("captions.none_bare"))

    # Why some pictures got none.
    skipped = [event for event in events if event["event"] == "skipped" and isinstance(event.get("why"), str)]
    if skipped:
        last = skipped[-1]
        parts.append(
            say("captions.skipped", num=len(skipped), name=plain(last.get("name", ""), 60), why=plain(last["why"], 160))
        )
    if job.state == "failed":
        parts.append(plain(job.error, 600))
    return Progress(_STATES[job.state], " · ".join(parts), share, job.state)


def _is_sound(event: dict[str, Any]) -> bool:
    """Whether its figures are figures: a log may hold anything."""
    if event["event"] not in ("captioned", "skipped"):
        return bool(event["event"] == "planned")
    figures = [event.get(key) for key in _FIGURES]
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15 for value in figures
    )
