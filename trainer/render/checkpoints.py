"""The checkpoints of a training as an axis of a grid: `checkpoint=RUN`, one cell for each, then its best and its last file.

`trainer.checkpoint_files` writes a checkpoint as the LoRA file it stands for, below the run, so that the pictures' recipes find it again by its hash.
Steps that were saved and removed since (`keep_checkpoints`) are named in the title.
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
    """The stack and axes with the run's checkpoints as files of an adapter: that of the stack which is the run's, else one more.

    Raises: ConfigError if there is no such run, or nothing of it to draw with.
    """
    asked = [one for one in axes if one.key == KEY]
    if not asked:
        return stack, axes
    if len(asked) > 1 or len(asked[0].values) != 1:
        raise ConfigError(f"--axis {KEY}= names {', '.join(str(value) for one in asked for value in one.values)}; allowed: one run.")
    run = _run(str(asked[0].values[0]))
    files = checkpoint_files.files(run, engine.family.name, engine.file_keys)
    kept = {checkpoint_files.step_of(path) for path in files}
    gone = [event.step for event in run.events() if isinstance(event, events.Saved) and event.step not in kept]
    number, stack = _placed(stack, run, files[-1])
    axis = Axis(f"adapters.{number}.file", tuple(map(str, files)), f"not kept: step {', '.join(map(str, dict.fromkeys(gone)))}" if gone else "")
    return stack, [axis if one.key == KEY else one for one in axes]


def _run(name: str) -> runs.Run:
    for folder in (Path(name), runs.DEFAULT / name):
        if (folder / "config.toml").is_file():
            return runs.Run(folder.resolve())
    known = ", ".join(run.name for run in runs.every(runs.DEFAULT)[:20])
    raise ConfigError(f"--axis {KEY}={name}: there is no such run; allowed: a run's folder, or one of {known or '(none)'}.")


def _placed(stack: StackConfig, run: runs.Run, file: Path) -> tuple[int, StackConfig]:
    """The number of the adapter that is the run's, and the stack with it."""
    adapters = list(stack.adapters)
    number = next((number for number, one in enumerate(adapters) if one.file and Path(one.file).resolve().parent == run.folder), len(adapters))
    before = adapters[number] if number < len(adapters) else AdapterChoice()
    adapters[number : number + 1] = [before.model_copy(update={"file": str(file), "name": "", "sha256": ""})]
    return number, stack.model_copy(update={"adapters": tuple(adapters)})
