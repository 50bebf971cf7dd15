"""What the Train form becomes when a training is to go on from a LoRA or from a run's saved step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import start_choices
from app.context import Context
from app.texts import say
from trainer import presets, runs
from trainer.config import StartConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.report.advising import advice


def of_run(context: Context, key: str, with_optimizer: bool) -> TrainConfig:
    """The settings of the run that saved this step, RUN/step-000050, to go on from there.

    Raises: ConfigError, RunError.
    """
    if key not in start_choices.checkpoints(context):
        raise ConfigError(say("train.step_gone"))
    config = runs.Run(context.runs / key.partition("/")[0]).config()
    # As the form names it; the gate makes a path of it again.
    start = StartConfig(source=key, optimizer=with_optimizer)
    return config.model_copy(update={"base": context.base(config.base), "start": start})


def next_time(context: Context, job_id: Any) -> TrainConfig:
    """The settings of a run, changed as its own log advises. Raises: UserError for a run that can't be read."""
    run = runs.Run(context.runs / context.runner.get(job_id).name)
    config = run.config()
    settings = [f"{key}={value}" for rule in advice(run.events(), config) for key, value in rule.settings.items()]
    changed = presets.changed(config, presets.parse_overrides(settings))
    return changed.model_copy(update={"base": context.base(config.base), "start": StartConfig()})


def of_lora(context: Context, sha256: str, family: str) -> dict[str, Any]:
    """Settings by dotted path that a LoRA of the library asks for. Raises: UserError if none can go on from it."""
    from trainer import start_weights  # loads torch

    asked = start_weights.changes(str(context.lora(sha256).path), family)
    return {key: value for key, value in asked.items() if key != "start.source"} | {"start.optimizer": False}


def dataset_of(context: Context, folder: str) -> str:
    """The name of the dataset that settings name by its folder; "" for any other folder."""
    path = Path(folder)
    return path.name if path.parent == context.datasets and path.name in context.dataset_names() else ""
