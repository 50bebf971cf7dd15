"""A run's saved steps as LoRA files, so that they can be drawn beside one another.

Checkpoints hold what training goes on from, not what other tools read. Each one is written once as a file of its own
below the run's `steps/`, where it stays when the checkpoint is pruned and is found again by its hash. It is what the
run would have exported there: the running mean where there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import adapter, base_match, checkpoint, families, file_names, lora_file, methods, new_word
from trainer.config import TrainConfig
from trainer.config.parsing import recipe
from trainer.errors import ConfigError
from trainer.runs import Run

if TYPE_CHECKING:
    from torch import Tensor


def step_of(path: Path) -> int:
    """The step that a LoRA file of ours says it is of, 0 if it says none."""
    steps = lora_file.read_header(path).metadata.get("ss_steps", "")
    return int(steps) if steps.isdecimal() else 0


def unwritten(run: Run) -> bool:
    """Whether a saved step is no LoRA file yet, for which `files` needs the names of the base's layers."""
    return any(not file_names.lora_at(run.folder, step).is_file() for step in file_names.checkpoints(run.checkpoints))


def files(run: Run, family: str, file_keys: dict[str, str]) -> list[Path]:
    """A LoRA file for each saved step, oldest first, then the best and the last step's as the run wrote them.

    `family` and `file_keys` are those of the base they are for. Raises: ConfigError if the run is for another base or
    has saved nothing.
    """
    config = run.config()
    if config.family != family:
        raise ConfigError(f"run {run.name} is for {config.family}; allowed for this base: {family}.")

    # Write those that are not there yet.
    for saved in checkpoint.every(run.checkpoints):
        path = file_names.lora_at(run.folder, saved.step)
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            _write(run, config, saved, path, file_keys)

    # All of them, also of steps whose checkpoints have been pruned.
    steps = list(file_names.loras_by_step(run.folder).values())
    files = [*steps, *(path for path in (run.folder / file_names.BEST, run.lora_file) if path.is_file())]
    if not files:
        raise ConfigError(f"run {run.name} has saved no step yet; wait for its first checkpoint.")
    return files


def _write(run: Run, config: TrainConfig, saved: checkpoint.Checkpoint, path: Path, file_keys: dict[str, str]) -> None:
    """Write the LoRA file of one checkpoint."""
    # Its tensors by module, and those of a new word by their key in the file.
    method = methods.registry()[config.adapter.method]
    tensors = saved.tensors["adapter"] | saved.tensors.get("mean", {})
    modules: dict[str, dict[str, Tensor]] = {}
    words: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        component, slash, path_below = name.partition("/")
        if name.startswith(new_word.PREFIX):
            word, key = new_word.of_parameter(name, families.registry()[config.family].words)
            words.setdefault(word, {})[key] = tensor
        elif slash:
            parameter = f"{component}.{path_below}"
            module = _module(parameter, file_keys)
            modules.setdefault(module, {})[parameter[len(module) + 1 :]] = tensor

    # In the names and the form of a file.
    spelled = {
        file_keys[module]: method.to_file(adapter.combined(parts), config.adapter) for module, parts in modules.items()
    }
    metadata = _metadata(run, config) | method.header(config.adapter) | {"ss_steps": str(saved.step)}
    lora_file.save(path, spelled, metadata, getattr(torch, config.save_dtype), words)


def _module(name: str, file_keys: dict[str, str]) -> str:
    """The module that a parameter belongs to. Raises: ConfigError."""
    # The longest beginning of its path that is a module: a parameter's own name may have dots.
    module = name
    while module and module not in file_keys:
        module = module.rpartition(".")[0]
    if not module:
        raise ConfigError(f"the run has trained {name}, which this base hasn't.")
    return module


def _metadata(run: Run, config: TrainConfig) -> dict[str, str]:
    """The header of a file that the run has written, or what is known of a file that it will write."""
    for path in (run.lora_file, run.folder / file_names.BEST):
        if path.is_file():
            metadata = lora_file.read_header(path).metadata
            return {key: value for key, value in metadata.items() if not key.startswith("sshs_")}  # its own hashes
    own = {"config": recipe(config)}
    of_base = {base_match.NAME_KEY: own["config"]["base"], **base_match.header_of(config.base, config.family)}
    return of_base | {
        lora_file.RECIPE_KEY: json.dumps(own, sort_keys=True, ensure_ascii=False),
        "modelspec.trigger_phrase": config.data.trigger,
    }
