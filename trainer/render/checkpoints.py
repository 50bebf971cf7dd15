"""The checkpoints of a training as an axis of a grid: `checkpoint=RUN`, one cell for each that is there, then its best and its last file.

A checkpoint is no LoRA file: each is put on the run's own base and written as `export` would have, under the run's name and the step, in a
temporary folder that is gone after the grid. Pictures know their LoRA by its hash and that name, never by where it lay; a hash that is
the best's or the last's is found again in the run. Steps that were saved and removed since (`keep_checkpoints`) are named in the title.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import checkpoint, events, lora_file, methods, runs
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render.axes import Axis
from trainer.studio import Studio
from trainer.watching import BEST

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

KEY = "checkpoint"


@contextmanager
def spelled_out(stack: StackConfig, axes: list[Axis]) -> Iterator[tuple[StackConfig, list[Axis]]]:
    """The stack and axes with the run's checkpoints as files of an adapter, for the body: that of the stack which is the run's, else one more.

    Raises: ConfigError if there is no such run, or nothing of it to draw with.
    """
    asked = [one for one in axes if one.key == KEY]
    if not asked:
        yield stack, axes
        return
    if len(asked) > 1 or len(asked[0].values) != 1:
        raise ConfigError(f"--axis {KEY}= names {', '.join(str(value) for one in asked for value in one.values)}; allowed: one run.")
    run = _run(str(asked[0].values[0]))
    with tempfile.TemporaryDirectory(prefix="velatura-") as folder:
        files, steps = _files(run, Path(folder))
        if not files:
            raise ConfigError(f"run {run.name} has no checkpoint that can be read and no LoRA yet; train it further.")
        number, stack = _placed(stack, run, files[-1])
        gone = [event.step for event in run.events() if isinstance(event, events.Saved) and event.step not in steps]
        note = f"not kept: step {', '.join(map(str, dict.fromkeys(gone)))}" if gone else ""
        axis = Axis(f"adapters.{number}.file", tuple(map(str, files)), note)
        yield stack, [axis if one.key == KEY else one for one in axes]


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


def _files(run: runs.Run, folder: Path) -> tuple[list[Path], set[int]]:
    """A LoRA file for each checkpoint, by step, the best and the last; and the steps of the checkpoints."""
    files: list[Path] = []
    steps: set[int] = set()
    studio: Studio | None = None
    for saved in checkpoint.every(run.checkpoints):
        if studio is None:
            studio = Studio.open(run.config())
            studio.attach(saved)
        path = folder / f"{run.name}-step-{saved.step:06d}.safetensors"
        _write(studio, saved, path)
        files.append(path)
        steps.add(saved.step)
    for name, path in (("best", run.folder / BEST), ("last", run.lora_file)):
        if path.is_file():
            step = int(lora_file.read_header(path).metadata.get("ss_steps", "0"))
            copy = folder / f"{run.name}-{name}-step-{step:06d}.safetensors"
            shutil.copyfile(path, copy)
            files.append(copy)
    return files, steps


def _write(studio: Studio, saved: Checkpoint, path: Path) -> None:
    """The LoRA of a checkpoint; the running mean where one was kept, as the run's own file has it."""
    values = saved.tensors["adapter"] | saved.tensors.get("mean", {})
    with torch.no_grad():
        for name, parameter in studio.trained.items():
            parameter.copy_(values[name])
    config = studio.config
    method = methods.registry()[config.adapter.method]
    modules = {
        studio.file_keys[f"{component}.{name}"]: method.to_file(tensors, config.adapter)
        for component, attached in studio.attachments.items()
        for name, tensors in attached.modules().items()
    }
    words = {studio.word.name: studio.word.vectors.detach()} if studio.word else {}
    said = {"modelspec.trigger_phrase": config.data.trigger, "ss_base_model_version": studio.family.base_version, "ss_steps": str(saved.step)}
    lora_file.save(path, modules, said | method.header(config.adapter), getattr(torch, config.save_dtype), words)
