"""A single file laid out once as the diffusers folder that everything else here works on.

Loading the file directly each time was considered and dropped. A base's digest, its parts, its tokenizers, processes
that load it again and memory that is measured by rehearsal all need a folder, and every family loads one. The price is
disk: the folder is as large as the file, which is said when it is made. Its name has the sha256 of what it was made
from; it is made in a folder beside and put in place whole; it keeps the file's precision (float8 is widened to
bfloat16); and it is made again if it was deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from functools import cache
from pathlib import Path

from filelock import FileLock

from trainer import files
from trainer.errors import ModelError
from trainer.single_file import folder_writing
from trainer.single_file.head import Head
from trainer.single_file.planning import Plan, refuse_missing

_VERSION = 1  # of what is written; a new version makes folders anew


def convert(plan: Plan, shelf: Path, digest: str) -> Path:
    """The diffusers folder of a plan whose file has this sha256, from the shelf or written there.

    Raises: ModelError.
    """
    refuse_missing(plan)
    folder = shelf / key(plan, digest)
    if folder.is_dir():
        return folder
    # One process makes it, others wait.
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():  # another process made it while this process waited
            return folder
        needed = written_bytes(plan)
        if (free := shutil.disk_usage(shelf).free) < needed:
            raise ModelError(
                f"{shelf} has {free / 2**30:.1f} GiB free; {plan.head.path.name} needs {needed / 2**30:.1f} GiB "
                f"there, laid out as a folder."
            )
        logging.getLogger(__name__).warning(
            "laying out %s as a diffusers folder, once: %.2f GiB in %s", plan.head.path.name, needed / 2**30, folder
        )
        # On the same disk, so that the rename is whole or not at all.
        with tempfile.TemporaryDirectory(dir=shelf, prefix=".making-") as making:
            folder_writing.write(plan, Path(making) / "folder")
            (Path(making) / "folder").rename(folder)
    return folder


def key(plan: Plan, digest: str) -> str:
    """The folder's name: a hash of everything it is made from."""
    others = {
        name: _fingerprint(source)
        for name, source in plan.sources.items()
        if isinstance(source, Path) or source[0].path != plan.head.path
    }
    configs = {name: (part.kind, part.config) for name, part in plan.parts.items()}
    state = json.dumps([_VERSION, digest, others, configs], sort_keys=True)
    return f"{plan.head.path.stem[:40]}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"


def written_bytes(plan: Plan) -> int:
    """About how many bytes the folder takes on the disk."""
    return sum(_size_bytes(source) for source in plan.sources.values())


def _size_bytes(source: tuple[Head, str] | Path) -> int:
    if isinstance(source, Path):
        return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    head, prefix = source
    bytes_each = {"F64": 8, "F32": 4}  # others have 2, float8 too once it is widened
    return sum(head.num_parameters([name]) * bytes_each.get(head.dtypes[name], 2) for name in head.under(prefix))


def _fingerprint(source: tuple[Head, str] | Path) -> str:
    """sha256 of a part's files, by their names and contents."""
    if isinstance(source, Path):
        paths = sorted(path for path in source.rglob("*") if path.is_file())
    else:
        paths = [source[0].path]
    state = hashlib.sha256()
    for path in paths:
        state.update(path.name.encode() + sha256(path).encode())
    return state.hexdigest()


def sha256(path: Path) -> str:
    """sha256 of a file; read once while the file stays as it is."""
    # Hashing a base of 7 GB takes long; its size and time tell whether that has to be done again.
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size_bytes: int, changed_ns: int) -> str:
    return files.sha256(path)
