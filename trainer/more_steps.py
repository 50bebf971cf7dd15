"""A run of more steps than it was started with: the same run goes on, and its settings say where it was extended.

Until the step where it was extended the schedule stays what it was, so that a run started with the extended settings
takes the very same steps. What was saved before stays good: a checkpoint is tied to the settings of the beginning.
"""

from __future__ import annotations

from filelock import Timeout

from trainer import events, file_names, presets
from trainer.config import TrainConfig, parse, starting
from trainer.errors import ConfigError, RunError
from trainer.runs import Run

MOST_STEPS = 1_000_000


def unextended(config: TrainConfig) -> TrainConfig:
    """The settings that the run was started with."""
    if not config.optimizer.extended:
        return config
    optimizer = config.optimizer.model_copy(update={"extended": ()})
    first = starting.lengths(config.optimizer.extended)[0][1]
    return config.model_copy(update={"max_steps": first, "optimizer": optimizer})


def extended(run: Run, steps: int) -> TrainConfig:
    """The run's settings with that many steps more. Raises: ConfigError, RunError if it can't be extended."""
    config, done = run.config(), _saved_step(run)
    if not 1 <= steps <= MOST_STEPS - config.max_steps:
        raise ConfigError(
            f"run {run.name} is to be extended by {steps} steps; allowed: 1 to {MOST_STEPS - config.max_steps:,}."
        )
    if done == 0:
        raise RunError(f"run {run.name} has saved no step yet; start a new one with more steps.")
    if config.validation.folds:
        raise RunError(
            f"run {run.name} has folds, which looked for the best of its {config.max_steps} steps; start a new run "
            f"with more steps."
        )
    log = run.events()
    if log and isinstance(log[-1], events.Finished) and log[-1].step < config.max_steps:
        raise RunError(
            f"run {run.name} ended at step {log[-1].step} of {config.max_steps} since it over-trained "
            f"(validation.stop_when_overtrained); more steps would end there too. Start a new run without that."
        )

    # The line of the last extension gives way to this line where nothing was trained in between.
    before = config.optimizer.extended
    length = config.max_steps
    if before and starting.lengths(before)[-1][0] == done:
        length = starting.lengths(before)[-1][1]
        before = before[:-1]
    values = config.model_dump(mode="json")
    values["max_steps"] = config.max_steps + steps
    values["optimizer"]["extended"] = [*before, f"{done}={length}"]
    return parse(TrainConfig, values, f"run {run.name}, extended")


def extends(before: TrainConfig, after: TrainConfig) -> bool:
    """Whether these are the same run's settings with more steps."""
    return after.max_steps > before.max_steps and unextended(after) == unextended(before)


def apply(run: Run, config: TrainConfig) -> None:
    """Give the run the settings that extend its own. Raises: RunError while another process trains it."""
    try:
        with run.lock().acquire(timeout=2):
            events.rewind(run.events_file, _saved_step(run))  # first, as a finished run would not go on
            presets.save(config, run.config_file)
    except Timeout:
        raise RunError(f"run {run.name} is being trained by another process; stop it, then extend it.") from None


def _saved_step(run: Run) -> int:
    """The newest checkpoint's step, 0 for none."""
    return max(file_names.checkpoints(run.checkpoints), default=0)
