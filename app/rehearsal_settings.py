"""Which settings a rehearsal is of: they lie beside its job, so that its answer is offered for these and no others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from app import views
from app.context import Context
from app.forecast import Wish
from app.job_table import Job
from app.job_work import REHEARSAL
from app.jobs import LIVE, WAITING
from app.texts import say
from trainer import files
from trainer.errors import ConfigError

Asked = dict[str, Any]  # what a form asks for: its settings, its sets and its trigger


def asked(wish: Wish) -> Asked:
    """What the form asks for, as it is kept and compared."""
    own = {"dataset": wish.dataset, "heldout": wish.heldout, "trigger": wish.trigger}
    # Through JSON, as it is compared with what was read from a file: a tuple becomes a list.
    made: Asked = json.loads(json.dumps({"values": wish.values, **own}, default=str))
    return made


def begin(context: Context, config: str, wish: Wish) -> Job:
    """A rehearsal of these settings, on its way. Raises: RunError."""
    end(context)
    job = context.runner.submit("rehearsal", config, REHEARSAL)
    files.write(_file(context, job), json.dumps(asked(wish)).encode())
    return job


def end(context: Context) -> None:
    """Have every rehearsal end that is at work or waits."""
    for job in context.runner.every():
        if job.kind == REHEARSAL and job.state in (*LIVE, *WAITING):
            context.runner.stop(job.id)


def is_of(context: Context, job: Job, form: Asked) -> bool:
    """Whether the rehearsal is of what the form asks for, with the settings it found or without them."""
    try:
        then: Asked = json.loads(_file(context, job).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return form in (then, _with(then, views.suggested(_answer(context, job))))


def html(context: Context, job: Job, form: Asked) -> str:
    """What the rehearsal says, or said of other settings."""
    shown = views.rehearsal_html(job, _answer(context, job))
    if job.state not in ("finished", "failed") or is_of(context, job, form):
        return shown
    return f'<div class="earlier"><p>{say("try.earlier")}</p>{shown}</div>'


def changes(context: Context, job: Job | None, form: Asked) -> dict[str, Any]:
    """The settings with which it fits, by dotted key: none of other settings, nor where the form has them already."""
    if job is None or not is_of(context, job, form):
        return {}
    suggested = views.suggested(_answer(context, job))
    return {} if _with(form, suggested) == form else suggested


def to_adopt(context: Context, form: Asked) -> dict[str, Any]:
    """The same of the newest rehearsal. Raises: ConfigError where there is nothing for these settings."""
    newest = next((job for job in context.runner.shown() if job.kind == REHEARSAL), None)
    settings = changes(context, newest, form)
    if not settings:
        raise ConfigError(say("try.not_of_these"))
    return settings


def _answer(context: Context, job: Job) -> dict[str, Any]:
    return context.runner.answer(job) if job.state == "finished" else {}


def _file(context: Context, job: Job) -> Path:
    return context.workspace / "configs" / f"tried-{job.id}.json"


def _with(form: Asked, found: dict[str, Any]) -> Asked:
    """The same with these settings in it."""
    made = copy.deepcopy(form)
    for key, value in found.items():
        *parents, last = key.split(".")
        place = made.get("values")
        for part in parents:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = value
    return made
