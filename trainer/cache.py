"""Latents and text embeddings on disk, keyed by what they were made from.

That is the picture or caption, the settings and the encoder's weights. A changed caption, crop or model finds nothing
under its new key; nothing is ever stale and nothing needs clearing. Entries are shared by all runs beside each other
and written whole or not at all. Each carries a digest of its numbers, which is compared when a run first reads it:
disks turn bits, and one turned bit trains wrongly without a word. They are made one at a time: in a batch the last bits
of an entry depend on its companions, so a run that was killed here and resumed, or two runs that share some pictures,
would not find the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainer import files, last_used, unique_names

if TYPE_CHECKING:
    from torch import Tensor

    Entry = dict[str, Tensor]

_KEPT_BYTES = 1 << 30


def key(*parts: object) -> str:
    """The name of an entry made from these parts."""
    # A mark between the parts, so that ("ab", "c") and ("a", "bc") are two entries.
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


class Store:
    """Entries on disk, the last used ones in memory up to `kept_bytes`."""

    def __init__(self, folder: Path, kept_bytes: int = _KEPT_BYTES) -> None:
        self.folder = folder
        self.num_computed = 0
        self.num_damaged = 0  # of those computed: their files were there and were not what had been written
        # Why entries can't be written, if they can't; they are then computed again when they have left memory.
        self.problem = ""
        self._kept = last_used.kept(kept_bytes, _size)
        self._proved: set[str] = set()  # names whose files have been compared with their digests
        unique_names.sweep(folder, "*/.new-*")  # of processes that were killed while they wrote

    def get(self, name: str, compute: Callable[[], Entry]) -> Entry:
        """The entry called `name`; where there is none, or a damaged one, it is computed and written."""
        if name in self._kept:
            kept: Entry = self._kept[name]
            return kept

        # From the disk. Its digest is compared once a run: that takes longer than reading.
        path = self.folder / name[:2] / f"{name}.safetensors"
        entry = _read(path, name in self._proved)

        # Made anew.
        if entry is None:
            # A file that was there and was no entry; `lexists`, since a broken link counts too.
            self.num_damaged += os.path.lexists(path)
            entry = _compute(compute)
            try:
                _write(path, entry)
            except OSError as error:
                self.problem = f"the cache in {self.folder} can't be written: {error.strerror}"
            self.num_computed += 1
        self._proved.add(name)
        self._kept[name] = entry
        return entry


def _size(entry: Entry) -> int:
    return sum(tensor.nbytes for tensor in entry.values())


def _compute(compute: Callable[[], Entry]) -> Entry:
    with torch.no_grad():
        return {part: tensor.detach().cpu().contiguous() for part, tensor in compute().items()}


def _digest(entry: Entry) -> str:
    """sha256 over names, dtypes, shapes and numbers."""
    state = hashlib.sha256()
    for part, tensor in sorted(entry.items()):
        state.update(f"{part}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode("utf-8", "surrogatepass"))
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _read(path: Path, is_proved: bool) -> Entry | None:
    """The entry, or None if there is none or its file is damaged (it is then made anew)."""
    try:
        raw = path.read_bytes()
        entry = load(raw)
        return entry if is_proved or _digest(entry) == _promised(raw) else None
    except (OSError, SafetensorError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # a header with turned bits
        return None


def _promised(raw: bytes) -> object:
    """The digest that a file's header carries."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size])["__metadata__"]["sha256"]


def _write(path: Path, entry: Entry) -> None:
    """Write an entry whole; after a power cut it may be damaged, which its digest tells."""
    with files.replacing(path) as temporary:
        temporary.write_bytes(save(entry, {"sha256": _digest(entry)}))
