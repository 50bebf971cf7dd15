"""What other programs keep among pictures, known by its name: masks, conditions, samples, thumbnails, waste.

None of it is trained on as a picture. Where a name could be an artist's own (`samples`, `thumbs`), a caption in the
folder says that it is. Names are compared in small letters: a copy from another system changes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from trainer.data.formats import CAPTION_SUFFIXES

EDITS = ".edits"  # our own folder in a set: the history of its edits, and its trash
MASKS = (".mask", "-masklabel")  # a.mask.png is ours, a-masklabel.png is OneTrainer's
MASKS_BESIDE = ("_mask", "-mask")  # only beside the picture itself: they may be words of a name
_CONDITION = "-condlabel"
_TRIES = 10_000  # names of a folder that are looked at

# By the system or program that makes them. Folders that begin with a dot are left out anyway.
_WASTE = {
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@tmp", "@sharesnapshot",
    "$recycle.bin", "$recycle", "recycler", "recycled", "recycle.bin", "system volume information", "lost+found",
    "network trash folder", "temporary items", "trashinfo", "__macosx", "appledouble", "resource.frk", "_gsdata_",
    "__pycache__",
}  # fmt: skip
_WASTE_STARTS = (".trash", "$recycle", "found.0")
_THUMBNAIL_FILES = ("synophoto_thumb", "synofile_thumb", "synoindex_thumb", "ehthumbs")
_LITTER = {
    "thumbs.db", "desktop.ini", "icon\r", ".ds_store", "folder.jpg:zone.identifier", ".directory", ".picasa.ini",
    "albumart.jpg:zone.identifier",
}  # fmt: skip
_REGULAR = {
    f"{name}{tail}"
    for name in ("reg", "regs", "regularization", "regularisation")
    for tail in ("", "_images", "_data", "-images")
}
# Names that may be an artist's own: a folder of them is left out only if nothing in it has a caption.
_MAYBE = {
    "samples": {"sample", "samples", "sample_images", "training_samples"},
    "thumbnails": {"thumb", "thumbs", "thumbnail", "thumbnails", "_thumbs", "_thumb", "preview_thumbs"},
    "masks": {"mask", "masks", "_mask", "_masks"},
    "conditions": {
        "control", "controls", "control_images", "controlnet", "cond", "conds", "condition", "conditions",
        "conditioning", "conditioning_images", "conditioning_data", "depth", "canny", "openpose", "lineart",
    },
    "waste": {"trash", "wastebasket", "papierkorb", "recycle bin", "deleted"},
}  # fmt: skip


def is_litter(name: str) -> bool:
    """Whether a file of this name is a system's own and no word need be lost about it."""
    small = name.lower()
    return small in _LITTER or small.startswith((*_THUMBNAIL_FILES, "._"))


def is_waste(folder: str) -> bool:
    """Whether a folder of this name is a system's own, for thumbnails or waste."""
    small = folder.lower()
    return small in _WASTE or small.startswith(_WASTE_STARTS) or small in (".thumbnails", ".appledouble", ".@__thumb")


def aside(name: str) -> str:
    """What a folder of this name holds instead of pictures to train on, as the end of a sentence; "" if it is plain."""
    small = name.lower()
    if is_waste(name):
        return "is a system's own, for thumbnails or waste"
    if small == "_controls":
        return "holds ai-toolkit's control pictures"
    if small in _REGULAR:
        return "is kohya's regularisation set (name it in data.regularisation to train on it as one)"
    return ""


def aside_without_captions(name: str) -> str:
    """The same for names that may be an artist's own: it holds only if nothing in the folder has a caption."""
    kind = next((kind for kind, names in _MAYBE.items() if name.lower() in names), "")
    if not kind:
        return ""
    use = (
        "name it in data.mask_folder to use them" if kind == "masks" else "rename it, or caption them, to train on them"
    )
    return f"is called like a folder of {kind} and holds no caption; {use}"


def is_mask_folder(path: Path) -> bool:
    """Whether a folder is called like one of masks, and holds no caption."""
    return is_called_masks(path.name) and not holds(path, CAPTION_SUFFIXES)


def is_called_masks(folder: str) -> bool:
    """Whether the name is one of a folder of masks."""
    return folder.lower() in _MAYBE["masks"]


def holds(folder: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a file with one of these endings lies in the folder or below it; links are not followed."""
    tries = 0
    for _, folders, names in os.walk(folder):
        if any(name.lower().endswith(suffixes) and not is_litter(name) for name in names):
            return True
        tries += len(names) + len(folders)
        if tries > _TRIES:
            return True
    return False


def mask_stem(stem: str) -> str | None:
    """Of which picture's stem this is the mask; None if it is none."""
    return next((stem[: -len(end)] for end in MASKS if stem.lower().endswith(end) and len(stem) > len(end)), None)


def is_condition(stem: str) -> bool:
    """Whether a picture of this stem is what OneTrainer conditions another on."""
    return stem.lower().endswith(_CONDITION) and len(stem) > len(_CONDITION)


def masks(pictures: Iterable[Path], captioned: set[Path]) -> dict[Path, Path]:
    """The masks among these files, each with the path, without suffix, of its picture.

    Of the names that may be an artist's own (`MASKS_BESIDE`), what has a caption is no mask.
    """
    paths = list(pictures)
    stems = {path.with_name(path.stem) for path in paths}
    owners = {}
    for path in paths:
        if (stem := mask_stem(path.stem)) is not None:
            owners[path] = path.with_name(stem)
            continue
        stem = next((path.stem[: -len(end)] for end in MASKS_BESIDE if path.stem.lower().endswith(end)), "")
        if stem and path.with_name(stem) in stems and path.with_name(path.stem) not in captioned:
            owners[path] = path.with_name(stem)
    return owners


def best_masks(owners: dict[Path, Path]) -> dict[Path, Path]:
    """The mask of each picture by its path without suffix: of several, a PNG, then our own spelling."""

    def rank(path: Path) -> tuple[bool, bool, str]:
        return path.suffix.lower() == ".png", path.stem.lower().endswith(MASKS[0]), path.name

    return {owners[path]: path for path in sorted(owners, key=rank)}  # of several, the last stays
