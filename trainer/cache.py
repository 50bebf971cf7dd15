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


def fetch(folder: Path, keys: list[str], compute: Callable[[list[int]], list[Entry]], batch_size: int = 8) -> tuple[list[Entry], int]:
    """The entries of `keys` and how many had to be computed; `compute(indices)` makes a batch of them."""
    import torch

    entries: dict[str, Entry] = {}
    missing: dict[str, int] = {}
    for index, name in enumerate(keys):
        found = _read(folder / name[:2] / f"{name}.safetensors")
        if found is None:
            missing.setdefault(name, index)
        else:
            entries[name] = found
    wanted = list(missing.items())
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        with torch.no_grad():
            made = compute([index for _, index in batch])
        for (name, _), entry in zip(batch, made, strict=True):
            entries[name] = {part: tensor.detach().cpu().float().contiguous() for part, tensor in entry.items()}
            _write(folder / name[:2] / f"{name}.safetensors", entries[name])
    return [entries[name] for name in keys], len(wanted)


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
