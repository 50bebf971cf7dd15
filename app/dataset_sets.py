"""Whole datasets: made, copied from a sample, and filled with uploads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from app.context import EXAMPLES, Context
from app.texts import say
from trainer import unique_names
from trainer.data import archives, caption_files, uploads
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


def filled(context: Context, name: str, fill: Callable[[Path], uploads.Report]) -> tuple[Path | None, uploads.Report]:
    """The folder of a new dataset with what `fill` adds, numbered if the name is taken; none if that is nothing."""
    with caption_files.writable(say("where.dataset")):
        folder = _claimed(context, name)
        try:
            report = fill(folder)
        finally:
            # A folder that got nothing goes again, whatever went wrong.
            left = [path for path in folder.iterdir() if not path.name.startswith(".")]
            if not left:
                (folder / ".uploads.lock").unlink(missing_ok=True)
                folder.rmdir()
    return (folder if left else None), report


def _claimed(context: Context, name: str) -> Path:
    """The empty folder of a new dataset, called so or with a number behind it."""
    for folder in unique_names.numbered(context.datasets, slug(uploads.safe_stem(name)), ""):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise DataError(say("dropped.no_free_name"))  # never: numbers don't end


def heldout_of(context: Context, chosen: str | None, other: str) -> str:
    """The held-out set of a dataset: its own if there is one, else what was chosen unless it is another's."""
    names, own = context.dataset_names(), f"{chosen}-heldout"
    if own in names:
        return own
    return other if other in names and not other.endswith("-heldout") else ""


def add(context: Context, name: str | None, paths: list[Path]) -> tuple[str | None, uploads.Report]:
    """The dataset that was chosen or, if none was, a new one; what was added to it of the uploaded pictures, captions
    and zips, and what was left out.

    Raises: DataError.
    """
    if name:
        return name, _added(context.dataset(name), paths)
    if len(paths) == 1 and archives.is_archive(paths[0]):
        folder, report = filled(context, paths[0].stem, lambda folder: archives.fill(folder, paths[0]))
    else:
        folder, report = filled(context, say("dataset.first_name"), lambda folder: _added(folder, paths))
    return (folder.name if folder else None), report


def _added(folder: Path, paths: list[Path]) -> uploads.Report:
    """What came of all these; a zip that can't be trusted keeps none of the others out."""
    report = uploads.add_pictures(folder, [path for path in paths if path.suffix.lower() != ".zip"])
    for path in paths:
        if path.suffix.lower() == ".zip":
            try:
                of_zip = uploads.add_zip(folder, path)
            except DataError as error:
                of_zip = uploads.Report([], [str(error)])
            report.added += of_zip.added
            report.left_out += of_zip.left_out
    return report
