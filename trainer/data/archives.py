"""A zip named as a dataset -> the folder beside it that it is unpacked into, once.

The folder is named after the zip and its content, `mokka.zip` -> `mokka-3fa9c1d2e0b4`, appears whole or not at all and
is never replaced. The zip is as hostile as an upload (`uploads`), but keeps its folders, which say repeats and classes:
only pictures, captions and an imagefolder's metadata are taken, under their own names where every part of the path is
harmless on every system.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from trainer import files, system
from trainer.data import kohya_folders, uploads
from trainer.errors import DataError

_LEFT_OUT = ".left-out"  # a line for each entry that was not taken
_HARMFUL = re.compile(r'[\x00-\x1f\x7f<>:"|?*]|[. ]$|^$')
_MAX_PART_BYTES, _MAX_DEPTH = 200, 16


def is_archive(path: Path) -> bool:
    """Whether a dataset's path names a zip."""
    return path.suffix.lower() == ".zip" and path.is_file()


def name_of(path: Path) -> str:
    """What a dataset is called: its folder's name, or its zip's without suffix."""
    return path.stem if is_archive(path) else path.name


def opened(path: Path) -> tuple[Path, list[str]]:
    """The folder a zip is unpacked into, and what was left out of it; any other path as it is.

    Raises: DataError if the zip can't be trusted or there is no writing beside it.
    """
    if not is_archive(path):
        return path, []
    try:
        folder = path.with_name(f"{path.stem}-{files.sha256(path)[:12]}")
        if not folder.is_dir():
            _unpack(path, folder)
        left_out = folder / _LEFT_OUT
        return folder, left_out.read_text(encoding="utf-8").splitlines() if left_out.is_file() else []
    except OSError as error:
        raise DataError(
            f"{path} can't be unpacked beside itself ({error.strerror}); unpack it where there is room and name the "
            f"folder."
        ) from None


def fill(folder: Path, path: Path) -> uploads.Report:
    """A zip's pictures in a new dataset's folder; in its own folders where those say repeats, as kohya's do.

    Raises: DataError if the zip can't be trusted or there is no writing.
    """
    names = uploads.names_in(path)
    if any(kohya_folders.says_repeats(PurePosixPath(name.replace("\\", "/"))) for name in names):
        return uploads.unpack_zip(folder, path, _place)
    return uploads.add_zip(folder, path)


def _unpack(path: Path, folder: Path) -> None:
    # Beside the target, so that it is put in its place by a single rename.
    with tempfile.TemporaryDirectory(prefix=f".{path.stem[:40]}-", dir=path.parent) as scratch:
        unpacked = Path(scratch) / "whole"
        unpacked.mkdir()
        report = uploads.unpack_zip(unpacked, path, _place)
        if not report.added:
            raise DataError(f"{path} holds no picture that can be used: {report.message}")
        if report.left_out:
            lines = "\n".join(line.replace("\n", " ") for line in report.left_out)
            (unpacked / _LEFT_OUT).write_text(lines, encoding="utf-8")
        try:
            os.replace(unpacked, folder)
        except OSError:  # another process was faster; its folder has the same content
            if not folder.is_dir():
                raise
            shutil.rmtree(unpacked, ignore_errors=True)


def _place(name: str) -> Path | None:
    """Where an entry of this name goes below the folder, or None if its name would do harm somewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in path.parts if part != "."]
    if not parts or path.is_absolute() or len(parts) > _MAX_DEPTH:
        return None
    for part in parts:
        # Windows takes `con.png` for a device too: what stands before the first dot counts.
        stem = part.partition(".")[0].lower()
        if (
            part == ".."
            or part.startswith(".")
            or _HARMFUL.search(part)
            or stem in system.RESERVED
            or len(part.encode("utf-8", "replace")) > _MAX_PART_BYTES
        ):
            return None
    return Path(*parts)
