"""Whole datasets: made, copied from a sample, filled with uploads, and packed into a zip."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path

from app.context import EXAMPLES, Context
from app.texts import say
from trainer import files, unique_names
from trainer.data import CAPTION_SUFFIXES, IMAGE_SUFFIXES, imagefolder, uploads
from trainer.errors import DataError
from trainer.runs import slug


def sample_sets() -> list[str]:
    """Names of the sample sets that ship."""
    return sorted(path.parent.name for path in EXAMPLES.glob("*/train"))


def make(context: Context, name: str) -> str:
    """A new empty dataset's name. Raises: DataError if it is taken, RunError for a name without letters."""
    wanted = slug(name or "")
    try:
        (context.datasets / wanted).mkdir(parents=True)
    except FileExistsError:
        raise DataError(say("dataset.exists", name=wanted)) from None
    return wanted


def copy_sample(context: Context, sample: str) -> str:
    """The name of a new copy of a sample set, `-2` if it is there already; its held-out part is `<name>-heldout`."""
    if sample not in sample_sets():
        raise DataError(say("dataset.no_sample", sample=sample, allowed=", ".join(sample_sets())))
    context.datasets.mkdir(parents=True, exist_ok=True)
    # The first name that is free for both parts; the folder itself claims it, as two may ask at once.
    for path in unique_names.numbered(context.datasets, sample, ""):
        heldout = path.with_name(f"{path.name}-heldout")
        if heldout.exists():
            continue
        try:
            path.mkdir()
        except FileExistsError:
            continue
        break
    for part, target in (("heldout", heldout), ("train", path)):
        if (EXAMPLES / sample / part).is_dir():  # not every set has a held-out part
            shutil.copytree(EXAMPLES / sample / part, target, dirs_exist_ok=target == path)
    return path.name


def add(context: Context, name: str | None, paths: list[Path]) -> uploads.Report:
    """What was added to a dataset of the uploaded pictures, captions and zips, and what was left out."""
    folder = context.dataset(name)
    report = uploads.add_pictures(folder, [path for path in paths if path.suffix.lower() != ".zip"])
    for path in paths:
        if path.suffix.lower() == ".zip":
            of_zip = uploads.add_zip(folder, path)
            report.added += of_zip.added
            report.left_out += of_zip.left_out
    return report


def packed(context: Context, name: str | None) -> Path:
    """A zip of a dataset's pictures, captions, masks and metadata where the browser can fetch it.

    Raises: DataError if there is nothing to pack.
    """
    folder = context.dataset(name)
    endings = (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, ".json")
    inside = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(other for other in folders if not other.startswith("."))
        paths = [Path(place, other) for other in sorted(names) if not other.startswith(".")]
        inside += [
            path for path in paths
            if (path.suffix.lower() in endings or path.name in imagefolder.NAMES) and path.is_file()
            and not path.is_symlink()
        ]  # fmt: skip
    if not inside:
        raise DataError(say("dataset.nothing_in_it"))
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    target = context.cache / "files" / f"zip-{digest}" / f"{folder.name}.zip"
    with files.replacing(target) as unnamed, zipfile.ZipFile(unnamed, "w") as archive:  # pictures don't pack smaller
        for path in inside:
            archive.write(path, path.relative_to(folder).as_posix())
    return target
