"""Latents and text embeddings on disk, keyed by what they were made from: picture or caption, settings, encoder weights.

A changed caption, crop or model finds nothing under its new key; nothing is ever stale and nothing needs clearing.
Entries are shared by all runs beside each other and written whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Entry = dict[str, Tensor]


def key(*parts: object) -> str:
    """The name of an entry made from these parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def fetch(folder: Path, keys: list[str], compute: Callable[[int], Entry]) -> tuple[list[Entry], int]:
    """The entries of `keys` and how many had to be computed, each by `compute(index)`.

    One at a time: in a batch the last bits of an entry depend on its companions, so a run that was killed here and
    resumed, or two runs that share some pictures, would not find the same numbers.
    """
    import torch

    entries: dict[str, Entry] = {}
    num_computed = 0
    for index, name in enumerate(keys):
        path = folder / name[:2] / f"{name}.safetensors"
        found = entries.get(name) or _read(path)
        if found is None:
            with torch.no_grad():
                found = {part: tensor.detach().cpu().float().contiguous() for part, tensor in compute(index).items()}
            _write(path, found)
            num_computed += 1
        entries[name] = found
    return [entries[name] for name in keys], num_computed


def _read(path: Path) -> Entry | None:
    """The entry, or None if there is none or its file is damaged (it is then made anew)."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(path.read_bytes())
    except (FileNotFoundError, SafetensorError):
        return None


def _write(path: Path, entry: Entry) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "wb") as file:
        file.write(save(entry))
    os.replace(temporary, path)
