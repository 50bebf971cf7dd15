"""The bases in the workspace's own folder: what is put there is offered at once, and what is dropped goes there."""

from __future__ import annotations

import os
from pathlib import Path

from trainer import single_file, system, unique_names
from trainer.data.uploads import safe_stem


def found(folder: Path) -> list[str]:
    """Checkpoint files, and folders as diffusers has them, by path; a link is none."""
    paths = sorted(path for path in folder.glob("[!.]*") if not path.is_symlink())
    return [
        str(path) for path in paths
        if (path.is_file() and path.suffix.lower() == ".safetensors") or (path / "model_index.json").is_file()
    ]  # fmt: skip


def add(folder: Path, file: Path, name: str, detected: single_file.Detected) -> tuple[Path, bool]:
    """A checkpoint that was dropped under that name, in the folder of bases; and whether the same was there already.

    Raises: ModelError for one that could not be trained here, or that lacks parts.
    """
    # Refused by its header, before gigabytes are compared or copied.
    single_file.refuse_strangers(detected, name, detected.family)
    single_file.refuse_missing(single_file.plan(file, single_file.Wishes()))
    if same := _same(folder, file):
        return same, True
    with unique_names.temporary(folder) as unnamed:
        system.link_or_copy(file, unnamed)  # an upload: nobody writes into it any more
        return unique_names.put(unnamed, unique_names.numbered(folder, safe_stem(name), ".safetensors")), False


def _same(folder: Path, file: Path) -> Path | None:
    """The file there with the same bytes; only files of the same size are read."""
    size = file.stat().st_size
    alike = [Path(base) for base in found(folder) if os.path.isfile(base) and os.path.getsize(base) == size]
    return next((base for base in alike if single_file.sha256(base) == single_file.sha256(file)), None)
