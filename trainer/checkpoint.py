"""A run's saved state: written whole or not at all, verified when read, never pickled.

`checkpoints/step-000123/` holds a safetensors file for each group of tensors (adapter, optimizer, mean, best),
`state.json` and, written last, `manifest.json` with the sha256 of each. All is made in a temporary folder, synced, and
put in place with one rename; a kill at any moment leaves the previous checkpoints as they were. Reading checks every
hash and falls back. Data order, noise, timesteps and dropout are drawn from (seed, stream, index): there is no
generator to save.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import file_names, printing, system
from trainer.errors import RunError
from trainer.files import write_synced

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

SCHEMA = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified state after `step` steps."""

    folder: Path
    step: int
    tensors: dict[str, Tensors]  # by group: adapter, optimizer, mean, best
    state: dict[str, Any]


# Writing.


def save(parent: Path, step: int, tensors: dict[str, Tensors], state: dict[str, Any], keep: int) -> Path:
    """The new checkpoint's folder; older checkpoints beyond `keep` are removed after it is in place.

    Empty groups are not written. Raises: OSError, and nothing of the new checkpoint stays.
    """
    from safetensors.torch import save as serialize

    # Under a hidden name first.
    parent.mkdir(exist_ok=True)
    temporary = parent / f".new-{file_names.checkpoint(step)}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()

    # The content of every file. Copies, since tensors that share memory can't be written.
    files = {
        f"{group}.safetensors": serialize(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in parts.items()}
        )
        for group, parts in tensors.items()
        if parts
    }
    files["state.json"] = json.dumps({"step": step, **state}, sort_keys=True).encode()
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "sha256": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
    }
    files["manifest.json"] = json.dumps(manifest, sort_keys=True, indent=1).encode()

    # To the disk, the manifest last; only then does it get its name.
    try:
        for file, content in files.items():
            write_synced(temporary / file, content)
    except OSError:  # a full disk is not to be made fuller
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    system.sync_folder(temporary)
    final = parent / file_names.checkpoint(step)
    if final.exists():  # only a damaged checkpoint can be here: a good checkpoint would have been gone on from
        shutil.rmtree(final)
    system.replace(temporary, final)
    system.sync_folder(parent)

    # Later checkpoints were damaged and passed over when this run was resumed; older ones are not needed any more.
    for other, damaged in file_names.checkpoints(parent).items():
        if other > step:
            shutil.rmtree(damaged)
    tidy(parent, step, keep)
    return final


def tidy(parent: Path, step: int, keep: int) -> None:
    """Remove what is older than the `keep` newest up to `step`, and what a killed process left half written."""
    for old in [folder for other, folder in file_names.checkpoints(parent).items() if other <= step][:-keep]:
        shutil.rmtree(old)
    for unfinished in parent.glob(".new-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


# Reading.


# What to say of a run whose pictures, settings or base have changed; the keys are those of its identity.
_CHANGED = {
    "config": "the settings in its config.toml are not those it was started with; start a new run with them.",
    "dataset": "the pictures or captions have changed since it was started; start a new run, or put them back.",
    "heldout": (
        "the held-out pictures or captions have changed since it was started; start a new run, or put them back."
    ),
    "against": "a LoRA of against.adapters is another file than when it was started; start a new run, or put it back.",
    "base": "the base is another one than when it was started; start a new run, or put it back.",
}


def expect(saved: Checkpoint | None, identity: dict[str, Any], run_name: str) -> int:
    """The step to go on from, 0 without a checkpoint.

    Raises: RunError if it was made from something else than `identity`.
    """
    if saved is None:
        return 0
    if differing := [text for key, text in _CHANGED.items() if saved.state.get(key) != identity[key]]:
        raise RunError(f"run {run_name} can't go on: {' '.join(differing)}")
    return saved.step


def load_latest(parent: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each damaged one passed over.

    Raises: RunError if there are checkpoints and none verifies.
    """
    problems: list[str] = []
    folders = list(file_names.checkpoints(parent).values())
    for folder in reversed(folders):
        try:
            return load(folder), problems
        except (OSError, ValueError) as error:
            problems.append(f"checkpoint {folder.name} is damaged ({error}); the one before it is used.")
    if folders:
        newest = [folder.name for folder in folders[-printing.MOST_NAMED :]]
        damaged = printing.some(newest + [folder.name for folder in folders[: -len(newest)]])
        raise RunError(
            f"no checkpoint in {parent} can be used: {damaged} {'is' if len(folders) == 1 else 'are'} damaged. Remove "
            f"the folder to start the run anew."
        )
    return None, problems


def every(parent: Path) -> Iterator[Checkpoint]:
    """The checkpoints that verify, oldest first, one in memory at a time; damaged checkpoints are passed over."""
    for folder in file_names.checkpoints(parent).values():
        try:
            yield load(folder)
        except (OSError, ValueError):
            continue


def load(folder: Path) -> Checkpoint:
    """One checkpoint. Raises: OSError or ValueError if it isn't whole, or its files hold what was never written."""
    from safetensors import SafetensorError
    from safetensors.torch import load as read_tensors

    # The manifest: of this version, and of this folder.
    manifest = _object((folder / "manifest.json").read_bytes(), "manifest.json")
    if manifest.get("schema") != SCHEMA:
        raise ValueError(f"schema {str(manifest.get('schema'))[:20]}, this version reads {SCHEMA}")
    hashes, step = manifest.get("sha256"), manifest.get("step")
    own_step = file_names.step_of_checkpoint(folder.name)
    if not isinstance(hashes, dict) or "state.json" not in hashes or type(step) is not int or step != own_step:
        raise ValueError("manifest.json does not say which files and which step it is of")

    # The files, each as it was written. Names with a folder in them are none of ours.
    content = {file: (folder / file).read_bytes() for file in hashes if file == Path(file).name}
    for file, data in content.items():
        if hashlib.sha256(data).hexdigest() != hashes[file]:
            raise ValueError(f"{file} is not what was written")

    # What they hold.
    state = _object(content["state.json"], "state.json")
    try:
        tensors = {
            file.removesuffix(".safetensors"): read_tensors(data)
            for file, data in content.items()
            if file.endswith(".safetensors")
        }
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return Checkpoint(folder, step, tensors, state)


def _object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object in a file. Raises: ValueError for anything else."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no JSON object")
    return value


# Folders.


def standing(parent: Path) -> str:
    """What is left to go on from, in words."""
    steps = list(file_names.checkpoints(parent))
    return f"that of step {steps[-1]} stays" if steps else "there is none before it"
