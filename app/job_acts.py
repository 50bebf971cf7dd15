"""What people do with a job that needs more than the table: it is asked first whether it can work at all."""

from __future__ import annotations

from typing import Any

import tomli_w

from app import forecast
from app.context import Context
from app.job_table import Job
from app.job_work import TRAINING
from app.jobs import LIVE, RESUMABLE, WAITING
from app.texts import say
from trainer import more_steps, preview_request, runs
from trainer.errors import ConfigError


def resume(context: Context, job_id: int) -> Job:
    """A job that goes on. Raises: UserError if it must fail, or is at work or done."""
    job = context.runner.get(job_id)
    if job.kind == TRAINING and job.state in RESUMABLE:
        forecast.check_job(context, job, goes_on=True)
    return context.runner.resume(job_id)


def duplicate(context: Context, job_id: int) -> Job:
    """A new job with a training's settings, at the end of the queue. Raises: UserError if it must fail."""
    job = context.runner.get(job_id)
    if job.kind != TRAINING:
        raise ConfigError(say("job.is_no_training", name=job.name))
    forecast.check_job(context, job)
    again = context.runner.submit(job.name, job.config, job.kind)
    if context.runner.wants_grid(job):
        context.runner.want_grid(again.id)
    return again


def extend(context: Context, job_id: int, steps: Any) -> int:
    """The step to which a training goes on, by so many steps more. Raises: UserError if it can't."""
    job = context.runner.get(job_id)
    if job.kind != TRAINING:
        raise ConfigError(say("job.is_no_training", name=job.name))
    forecast.check_job(context, job, goes_on=True)
    if job.state in (*LIVE, *WAITING):
        raise ConfigError(say("run.still_at_work", name=job.name))
    if isinstance(steps, bool) or not isinstance(steps, int | float) or steps != steps // 1:
        raise ConfigError(say("run.bad_more_steps", steps=str(steps)[:40]))
    config = more_steps.extended(runs.Run(context.runs / job.name), int(steps))
    context.runner.resume(job.id, tomli_w.dumps(config.model_dump(mode="json")))
    return config.max_steps


def preview(context: Context, job_id: int) -> Job:
    """A training that draws its previews after the step that it is at. Raises: UserError if it draws none now."""
    job = context.runner.get(job_id)
    if job.kind != TRAINING:
        raise ConfigError(say("job.is_no_training", name=job.name))
    run = runs.Run(context.runs / job.name)
    if job.state != "running" or not run.config_file.is_file():
        raise ConfigError(say("job.cannot_preview", name=job.name, state=job.state))
    config = run.config()
    if not config.preview.prompts or not config.preview_every_steps:
        raise ConfigError(say("job.no_previews", name=job.name))
    preview_request.ask(run)
    return job
