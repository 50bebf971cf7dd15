"""A run's saved steps as LoRA files, so that they can be drawn beside one another.

Checkpoints hold what training goes on from, not what other tools read. Each one is written once as a file of its own below the run's
`steps/`, where it stays when the checkpoint is pruned and is found again by its hash. It is what the run would have exported there: the running
mean where there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import adapter, base_match, checkpoint, families, lora_file, methods, new_word
from trainer.config import TrainConfig
from trainer.config.parsing import recipe
from trainer.errors import ConfigError
from trainer.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

_BEST = "best.safetensors"


def step_of(path: Path) -> int:
    """The step that a LoRA file of ours says it is of, 0 if it says none."""
    said = lora_file.read_header(path).metadata.get("ss_steps", "")
    return int(said) if said.isdecimal() else 0


def files(run: Run, family: str, file_keys: dict[str, str]) -> list[Path]:
    """A LoRA file for each saved step, oldest first, then the best and the last one's as the run wrote them.

    `family` and `file_keys` are those of the base they are for. Raises: ConfigError if the run is for another base or has saved nothing.
    """
    config, folder = run.config(), run.folder / "steps"
    if config.family != family:
        raise ConfigError(f"run {run.name} is for {config.family}; allowed for this base: {family}.")
    for saved in checkpoint.every(run.checkpoints):
        path = folder / f"{run.name}-step-{saved.step:06d}.safetensors"
        if not path.is_file():
            folder.mkdir(exist_ok=True)
            _write(run, config, saved, path, file_keys)
    found = [*sorted(folder.glob("*-step-*.safetensors")), *(path for path in (run.folder / _BEST, run.lora_file) if path.is_file())]
    if not found:
        raise ConfigError(f"run {run.name} has saved no step yet; wait for its first checkpoint.")
    return found


def _write(run: Run, config: TrainConfig, saved: checkpoint.Checkpoint, path: Path, file_keys: dict[str, str]) -> None:
    import torch

    method = methods.registry()[config.adapter.method]
    tensors = saved.tensors["adapter"] | saved.tensors.get("mean", {})
    modules: dict[str, dict[str, Tensor]] = {}
    words: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        component, slash, rest = name.partition("/")
        if name.startswith(new_word.PREFIX):
            word, key = new_word.of_parameter(name, families.registry()[config.family].words)
            words.setdefault(word, {})[key] = tensor
        elif slash:
            module = _module(f"{component}.{rest}", file_keys)
            modules.setdefault(module, {})[f"{component}.{rest}"[len(module) + 1 :]] = tensor
    spelled = {file_keys[module]: method.to_file(adapter.combined(parts), config.adapter) for module, parts in modules.items()}
    metadata = _metadata(run, config) | method.header(config.adapter) | {"ss_steps": str(saved.step)}
    lora_file.save(path, spelled, metadata, getattr(torch, config.save_dtype), words)


def _module(name: str, file_keys: dict[str, str]) -> str:
    """The module that a parameter belongs to."""
    module = name
    while module and module not in file_keys:
        module = module.rpartition(".")[0]
    if not module:
        raise ConfigError(f"the run has trained {name}, which this base hasn't.")
    return module


def _metadata(run: Run, config: TrainConfig) -> dict[str, str]:
    """The header of a file that the run has written, or what is known of one that it will write."""
    for path in (run.lora_file, run.folder / _BEST):
        if path.is_file():
            return {key: value for key, value in lora_file.read_header(path).metadata.items() if not key.startswith("sshs_")}
    own = {"config": recipe(config)}
    of_base = {base_match.NAME_KEY: own["config"]["base"], **base_match.header_of(config.base, config.family)}
    return of_base | {lora_file.RECIPE_KEY: json.dumps(own, sort_keys=True, ensure_ascii=False), "modelspec.trigger_phrase": config.data.trigger}
