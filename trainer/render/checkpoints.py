"""The checkpoints of a training as an axis of a grid: `checkpoint=RUN`, a cell each, then its best and last file.

`trainer.checkpoint_files` writes a checkpoint as the LoRA file it stands for, below the run, so that the pictures'
recipes find it again by its hash. Steps that were saved and removed since (`keep_checkpoints`) are named in the title.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer import checkpoint_files, events, runs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render.axes import Axis

if TYPE_CHECKING:
    from trainer.render.engine import Engine

KEY = "checkpoint"


def spelled_out(engine: Engine, stack: StackConfig, axes: list[Axis]) -> tuple[StackConfig, list[Axis]]:
    """The stack and axes with the run's checkpoints as files of an adapter.

    That is the stack's adapter which is the run's, else one more. Raises: ConfigError, RunError if there is no
    such run, or nothing of it to draw with.
    """
    run_axes = [axis for axis in axes if axis.key == KEY]
    if not run_axes:
        return stack, axes
    if len(run_axes) > 1 or len(run_axes[0].values) != 1:
        names = ", ".join(str(value) for axis in run_axes for value in axis.values)
        raise ConfigError(f"--axis {KEY}= names {names}; allowed: one run.")

    # Its files, and the steps that were saved and removed since.
    run = runs.named(str(run_axes[0].values[0]))
    files = checkpoint_files.files(run, engine.family.name, engine.file_keys)
    kept = {checkpoint_files.step_of(path) for path in files}
    removed = [event.step for event in run.events() if isinstance(event, events.Saved) and event.step not in kept]
    note = f"not kept: step {', '.join(map(str, dict.fromkeys(removed)))}" if removed else ""

    number, stack = _placed(stack, run, files[-1])
    file_axis = Axis(f"adapters.{number}.file", tuple(map(str, files)), note)
    return stack, [file_axis if axis.key == KEY else axis for axis in axes]


def _placed(stack: StackConfig, run: runs.Run, file: Path) -> tuple[int, StackConfig]:
    """The number of the adapter that is the run's, and the stack with it."""
    adapters = list(stack.adapters)
    of_run = (
        number
        for number, adapter in enumerate(adapters)
        if adapter.file and Path(adapter.file).resolve().parent == run.folder
    )
    number = next(of_run, len(adapters))
    before = adapters[number] if number < len(adapters) else AdapterChoice()
    adapters[number : number + 1] = [before.model_copy(update={"file": str(file), "name": "", "sha256": ""})]
    return number, stack.model_copy(update={"adapters": tuple(adapters)})
