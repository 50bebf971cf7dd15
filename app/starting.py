"""A training on its way: its settings as a job, with what it is to know beside them."""

from __future__ import annotations

from dataclasses import dataclass

import tomli_w

from app import rehearsal_settings, retraining, shared_cards
from app.context import Context
from app.job_table import Job
from trainer.config import TrainConfig


@dataclass(frozen=True)
class Wanted:
    """What a training is started with that is none of its settings."""

    name: str
    card: str = ""  # what the settings are of, as `shared_cards.source_of` gives it
    again: str = ""  # what is trained again and compared with, as `retraining.of` takes it
    grid: bool = False  # whether its saved steps are drawn afterwards


def begin(context: Context, config: TrainConfig, wanted: Wanted) -> Job:
    """The training, at the end of the queue. Raises: UserError."""
    text = tomli_w.dumps(config.model_dump(mode="json"))
    # Read when the child begins.
    shared_cards.go_with(context, text, wanted.card)
    retraining.go_with(context, config, text, wanted.again)
    rehearsal_settings.end(context)  # or the training would wait for it
    job = context.runner.submit(wanted.name, text)
    if wanted.grid:
        context.runner.want_grid(job.id)
    return job
