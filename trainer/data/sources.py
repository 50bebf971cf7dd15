"""Where the pictures of a folder are, and what the folder says about each: caption, repeats, weight, mask.

Nothing is opened here but text. Every file that is dropped is dropped by a rule, and the rule is reported: people
search for hours for why "no images" were found. Layouts, in a folder or in a zip (`archives`): plain folders with
captions beside the pictures, an imagefolder's `metadata.jsonl`/`metadata.csv` (`imagefolder`), and kohya's
`10_mokka cat` folders (`kohya_folders`), which can be switched off since a number before a name may also be just that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import DataConfig
from trainer.data import archives, folder_rules, imagefolder, kohya_folders, other_tools_files
from trainer.data.caption_files import caption_in_json, read_caption
from trainer.data.formats import CAPTION_SUFFIXES, FORMATS, IMAGE_SUFFIXES
from trainer.data.listing import list_files
from trainer.data.picture_file import PictureFile, first_names
from trainer.errors import DataError
from trainer.printing import printable

FOREIGN_SUFFIXES = {
    ".gif", ".tif", ".tiff", ".bmp", ".tga", ".jxl", ".jp2", ".psd", ".psb", ".xcf", ".kra", ".clip", ".exr", ".hdr",
    ".ico", ".svg", ".qoi", ".ppm", ".pgm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".heics",
    ".avifs", ".apng", ".jxr", ".dds",
}  # fmt: skip
_BESIDE = (".json", ".jsonl", ".csv", ".md", ".npz")  # what tools keep beside pictures


@dataclass(frozen=True)
class Survey:
    """The pictures of a folder sorted by path, and a line for each thing that was left out or read in a special way."""

    pictures: list[PictureFile]
    problems: list[str]
    num_foreign: int = 0  # pictures in formats that are not read


def survey(folder: Path, data: DataConfig, field: str) -> Survey:
    """Every picture below `folder`, by its name alone.

    Raises: DataError if the folder can't be looked into, ConfigError for rules that can't be read or that fit no
    folder.
    """
    # The files of the folder, by what their names say they are.
    folder, problems = archives.opened(folder)
    check_folder(folder, field)
    repeats = folder_rules.parse_rules(data.repeats, "data.repeats", True)
    weights = folder_rules.parse_rules(data.weights, "data.weights", False)
    files = list_files(folder, _elsewhere(folder, data), problems)
    paths, masks, conditions = _sort_out(files)

    # Captions: the file beside the picture, then a metadata row, then a .json, then kohya's folder name.
    rows = _metadata(files, set(paths), problems)
    pictures = [
        _captioned(PictureFile(path, path.relative_to(folder).as_posix(), ""), rows.get(path, "")) for path in paths
    ]
    _report_double_captions(pictures, rows, problems)
    pictures = _with_json_captions(pictures, problems)
    if data.kohya_folders:
        pictures = kohya_folders.apply_names(folder, pictures, problems)

    # Repeats and weights (the settings' own come before kohya's), and masks.
    pictures = folder_rules.apply_rules(pictures, repeats, weights)
    if data.mask == "file":
        pictures = _masked(pictures, _mask_folder(data), other_tools_files.best_masks(masks))

    # What was not used.
    if conditions:
        names = first_names([path.name for path in conditions])
        problems.append(f"{names}: OneTrainer's conditions, not trained on.")
    _report_masks(masks, paths, data, problems)
    _report_others(folder, files, paths, problems)
    num_foreign = sum(path.suffix.lower() in FOREIGN_SUFFIXES for path in files)
    return Survey(pictures, [printable(line) for line in problems], num_foreign)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder as a survey finds them, sorted: no masks, conditions, thumbnails or waste."""
    return with_foreign_below(folder)[0]


def with_foreign_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The same, and the pictures in formats that are not read."""
    files = list_files(folder, {}, [])
    return _sort_out(files)[0], [path for path in files if path.suffix.lower() in FOREIGN_SUFFIXES]


def mask_beside(picture: Path) -> Path | None:
    """The mask that lies beside a picture: that which training would take."""
    return masks_beside([picture]).get(picture)


def masks_beside(pictures: Iterable[Path]) -> dict[Path, Path]:
    """The masks that lie beside these pictures, by picture; those that training would take.

    The pictures are a dataset's, or lie in its trash: each folder is listed once.
    """
    by_folder: dict[Path, list[Path]] = {}
    for picture in pictures:
        by_folder.setdefault(picture.parent, []).append(picture)
    beside: dict[Path, Path] = {}
    for folder, ours in by_folder.items():
        paths = [folder / entry.name for entry in os.scandir(folder) if entry.is_file()] if folder.is_dir() else []
        best = other_tools_files.best_masks(_sort_out(list({*paths, *ours}))[1])
        beside |= {picture: best[owner] for picture in ours if (owner := picture.with_name(picture.stem)) in best}
    return beside


def _sort_out(files: list[Path]) -> tuple[list[Path], dict[Path, Path], list[Path]]:
    """Pictures, masks and OneTrainer's conditions among all files."""
    paths = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    conditions = [path for path in paths if other_tools_files.is_condition(path.stem)]
    captioned = {path.with_name(path.stem) for path in files if path.suffix.lower() in CAPTION_SUFFIXES}
    masks = other_tools_files.masks(paths, captioned)
    return (
        [path for path in paths if path not in masks and not other_tools_files.is_condition(path.stem)],
        masks,
        conditions,
    )


def check_folder(folder: Path, field: str) -> None:
    """Raises: DataError if `folder` is none that can be read."""
    if not os.path.isdir(folder):  # pathlib's own raises for a name that is too long
        what = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"{field} is {str(folder)[:400]!r}, which {what}; it must be a folder or a .zip of pictures.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{field} is {str(folder)!r}, which can't be read: permission denied.")


def _elsewhere(folder: Path, data: DataConfig) -> dict[Path, str]:
    """Folders below this that another setting names: their pictures are not of this set."""
    named = {
        "data.folder": data.folder,
        "data.heldout": data.heldout,
        "data.regularisation": data.regularisation,
        "data.mask_folder": data.mask_folder,
    }
    here = folder.resolve()
    resolved = {Path(value).resolve(): field for field, value in named.items() if value}
    return {path: field for path, field in resolved.items() if here in path.parents}


# Captions.


def _metadata(files: list[Path], pictures: set[Path], problems: list[str]) -> dict[Path, str]:
    """Captions by picture, of every metadata file; the first to name a picture is believed."""
    captions: dict[Path, str] = {}
    for path in files:
        if path.name not in imagefolder.NAMES:
            continue
        rows, row_problems = imagefolder.read(path, pictures)
        problems += row_problems
        if twice := [picture.name for picture in rows if picture in captions]:
            problems.append(
                f"{path.name} names {first_names(twice)}, which another metadata file names too: that one is believed."
            )
        captions = rows | captions
    return captions


def _captioned(picture: PictureFile, row: str) -> PictureFile:
    """The picture with the caption beside it, or else the caption of a metadata row."""
    try:
        return replace(picture, text=read_caption(picture.path) or row)
    except DataError as error:
        return replace(picture, refusal=str(error))


def _with_json_captions(pictures: list[PictureFile], problems: list[str]) -> list[PictureFile]:
    """The pictures, those without caption with ai-toolkit's: `caption` of a .json beside the picture."""
    texts = {
        picture.path: caption_in_json(picture.path) for picture in pictures if not picture.text and not picture.refusal
    }
    if names := [picture.name for picture in pictures if texts.get(picture.path)]:
        problems.append(f"{first_names(names)}: the caption is read from the .json beside the picture.")
    return [replace(picture, text=picture.text or texts.get(picture.path, "")) for picture in pictures]


def _report_double_captions(pictures: list[PictureFile], rows: dict[Path, str], problems: list[str]) -> None:
    """Adds a line for pictures with two captions, which says which of them is not read."""
    overruled = [
        picture.name for picture in pictures if picture.text and rows.get(picture.path, picture.text) != picture.text
    ]
    if overruled:
        problems.append(f"{first_names(overruled)}: the caption file beside the picture is read, not the metadata row.")
    both = [
        picture.name
        for picture in pictures
        if all(os.path.isfile(picture.path.with_suffix(suffix)) for suffix in CAPTION_SUFFIXES)
    ]
    if both:
        problems.append(f"{first_names(both)}: the .txt is read, not the .caption beside it.")


# Masks.


def masks_of(folder: Path) -> dict[Path, list[Path]]:
    """Every mask file of a set by its picture, in whatever layout: beside the picture, the one that training takes
    first, then in a folder of masks inside the set, as `data.mask_folder` may name it.
    """
    pictures, owners, _ = _sort_out(list_files(folder, {}, []))
    best = set(other_tools_files.best_masks(owners).values())
    beside: dict[Path, list[Path]] = {}
    for mask in sorted(owners, key=lambda mask: mask not in best):
        beside.setdefault(owners[mask], []).append(mask)
    masks = {picture: list(beside.get(picture.with_name(picture.stem), ())) for picture in pictures}
    for place, names, _ in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        for inner in filter(other_tools_files.is_mask_folder, [Path(place, name) for name in names]):
            inside = _masks_in(inner)
            for picture in [path for path in pictures if path.is_relative_to(place)]:
                stem = os.path.splitext(picture.relative_to(place).as_posix())[0]
                if lying := inside.get(stem) or inside.get(picture.stem):
                    masks[picture].append(lying)
    return masks


def _mask_folder(data: DataConfig) -> dict[str, Path]:
    """Mask files of the mask folder by their path in it without suffix. Raises: DataError if it is none."""
    if not data.mask_folder:
        return {}
    folder = Path(data.mask_folder)
    check_folder(folder, "data.mask_folder")
    return _masks_in(folder)


def _masks_in(folder: Path) -> dict[str, Path]:
    return {
        _picture_stem(path.relative_to(folder).as_posix()): path
        for path in list_files(folder, {}, [])
        if path.suffix.lower() in IMAGE_SUFFIXES
    }


def _picture_stem(mask: str) -> str:
    """The path, without suffix, of the picture that a mask of this name is for."""
    folder, stem = os.path.split(os.path.splitext(mask)[0])
    return os.path.join(folder, other_tools_files.mask_stem(stem) or stem)


def _masked(pictures: list[PictureFile], masks: dict[str, Path], beside: dict[Path, Path]) -> list[PictureFile]:
    """The pictures with their masks: from the mask folder, or else beside the picture.

    A mask of the folder is found by the picture's path there, or its bare name.
    """
    result = []
    for picture in pictures:
        stem, path = os.path.splitext(picture.name)[0], picture.path
        mask = masks.get(stem) or masks.get(stem.rpartition("/")[2]) or beside.get(path.with_name(path.stem))
        result.append(replace(picture, mask=mask))
    return result


# What was not used.


def _report_masks(masks: dict[Path, Path], pictures: list[Path], data: DataConfig, problems: list[str]) -> None:
    """Adds a line for masks that nothing reads."""
    stems = {path.with_name(path.stem) for path in pictures}
    if masks and data.mask != "file":
        names = first_names([path.name for path in masks])
        problems.append(f"{names}: masks, and data.mask is {data.mask}: not used.")
    elif lost := [path.name for path, stem in masks.items() if stem not in stems]:
        problems.append(
            f"{first_names(lost)}: masks without a picture of that name (the mask of a.jpg is a.mask.png): not used."
        )


def _report_others(folder: Path, files: list[Path], pictures: list[Path], problems: list[str]) -> None:
    """Adds a line for every file that is neither a picture nor read for one."""
    stems = {path.with_suffix("") for path in pictures}
    others = [path for path in files if path.suffix.lower() not in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, *_BESIDE)]
    problems += [f"{path.relative_to(folder).as_posix()} is no {FORMATS}: left out." for path in others]
    reported = {path.with_suffix("") for path in others}  # the caption of a picture in a foreign format needs no line
    for path in files:
        if path.suffix.lower() in CAPTION_SUFFIXES and (problem := _caption_problem(path, stems, stems | reported)):
            problems.append(f"{path.relative_to(folder).as_posix()} {problem}")


def _caption_problem(path: Path, pictures: set[Path], owners: set[Path]) -> str | None:
    """Why a caption file is not read; None if it is, or if the file it belongs to was reported.

    `pictures` and `owners` are paths without suffix: of pictures, and of all files that a caption may belong to.
    """
    stem = path.with_suffix("")
    if stem in pictures and not os.path.isfile(path.with_suffix(path.suffix.lower())):
        return f"is not read: a caption's name ends in {path.suffix.lower()}, in small letters; rename it."
    if stem in owners:
        return None
    if stem.suffix.lower() in IMAGE_SUFFIXES:
        return (
            f"is a caption without a picture: not used; a caption is called {stem.stem}{path.suffix.lower()}, "
            f"without {stem.suffix}."
        )
    return "is a caption without a picture: not used."
