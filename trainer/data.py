"""A folder of pictures and captions -> what can be trained on, and one message that names every file that can't.

Every file is hostile: four formats only, at most 64 megapixels, decoded whole here, before any model is loaded. What
is wrong with one file never stops the others; what was done about it is said.
"""

from __future__ import annotations

import hashlib
import os
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trainer.captions import read_caption
from trainer.config import DataConfig
from trainer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif")
CAPTION_SUFFIXES = (".txt", ".caption")
_BESIDE = (".json", ".jsonl", ".csv", ".md", ".npz")  # what tools keep beside pictures
MAX_PIXELS = 64_000_000
MIN_SIDE_PX = 16
# What Pillow raises for damaged files, found by fuzzing its four formats; RuntimeError is the AVIF codec's.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error, TypeError, LookupError, ArithmeticError, RuntimeError)
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")


@dataclass(frozen=True)
class Item:
    """One picture that opens, and the caption it is trained with."""

    path: Path
    caption: str
    sha256: str  # of the picture file


@dataclass(frozen=True)
class Dataset:
    """What a folder holds: usable items sorted by name, and a line for each file that was left out or mended."""

    folder: Path
    items: list[Item]
    problems: list[str]

    @property
    def digest(self) -> str:
        """sha256 over names, pictures and captions: changes with any of them."""
        lines = [f"{item.path.name}\0{item.sha256}\0{item.caption}" for item in self.items]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    @property
    def message(self) -> str:
        """All problems as one message."""
        return f"{len(self.problems)} of the files in {self.folder} need a look:\n" + "\n".join(f"  {line}" for line in self.problems)


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """The picture as RGB, turned as its EXIF says, transparency laid on white. Raises: DataError saying what is wrong."""
    from PIL import Image

    try:
        _quiet_pillow()
        image = Image.open(source, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"has {image.width} x {image.height} pixels; allowed: up to {MAX_PIXELS // 1_000_000} megapixels")
        if min(image.size) < MIN_SIDE_PX:
            raise DataError(f"is {image.width} x {image.height} pixels; allowed: at least {MIN_SIDE_PX} on each side")
        turned = _turned(image)
        if turned.has_transparency_data:
            rgba = turned.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return turned.convert("RGB")
    except DataError:
        raise
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(_reason(source, error)) from None


@cache
def _quiet_pillow() -> None:
    """No warnings for what is checked here anyway; once, since warning filters are not safe in threads."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


def _turned(image: Image.Image) -> Image.Image:
    """The picture as its EXIF says; damaged EXIF says nothing."""
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        return image


def _reason(source: Path | str | IO[bytes], error: BaseException) -> str:
    if isinstance(source, (str, Path)):
        if not os.access(source, os.R_OK):
            return "can't be read: permission denied"
        if os.path.getsize(source) == 0:
            return "is empty (0 bytes)"
    if type(error).__name__ == "UnidentifiedImageError":
        return "is not a picture, whatever its name says; allowed: PNG, JPEG, WebP, AVIF"
    return f"is damaged or cut short ({str(error)[:120]})"


def scan(data: DataConfig) -> Dataset:
    """The training set of a config. Raises: DataError if the folder is missing or nothing in it can be used."""
    if not data.folder:
        raise DataError("data.folder is not set; name a folder of pictures with --data DIR.")
    return scan_folder(Path(data.folder), data.trigger, "data.folder")


def scan_heldout(data: DataConfig) -> Dataset | None:
    """The held-out set of a config, or None if it names none."""
    return scan_folder(Path(data.heldout), data.trigger, "data.heldout") if data.heldout else None


def scan_folder(folder: Path, trigger: str, field: str) -> Dataset:
    """Every picture below `folder` (not hidden ones), decoded once, with its caption."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{field} is {str(folder)!r}, which {what}; it must be a folder of pictures.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"{field} is {str(folder)!r}, which can't be read: permission denied.")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    problems: list[str] = []
    items: list[Item] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checked = list(pool.map(_check, pictures))
    for path, problem in zip(pictures, checked, strict=True):
        name = path.relative_to(folder).as_posix()
        if problem:
            problems.append(f"{name} {problem}: left out.")
            continue
        item = _captioned(path, name, trigger, problems)
        if item:
            items.append(item)
    stems = {path.with_suffix("") for path in pictures}
    for path in files:
        if path.suffix.lower() not in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES, *_BESIDE):
            problems.append(f"{path.relative_to(folder).as_posix()} is no PNG, JPEG, WebP or AVIF: left out.")
            stems.add(path.with_suffix(""))
    for path in files:
        if path.suffix.lower() in CAPTION_SUFFIXES and path.with_suffix("") not in stems:
            problems.append(f"{path.relative_to(folder).as_posix()} is a caption without a picture: not used.")
    dataset = Dataset(folder, items, problems)
    if not items:
        reason = dataset.message if problems else f"it has no {', '.join(IMAGE_SUFFIXES)} files."
        raise DataError(f"{field} is {str(folder)!r}, where nothing can be used: {reason}")
    return dataset


def _check(path: Path) -> str | None:
    try:
        open_image(path)
    except DataError as error:
        return str(error)
    return None


def _captioned(path: Path, name: str, trigger: str, problems: list[str]) -> Item | None:
    """The item with its caption; a picture without one takes the trigger, or is left out if there is none."""
    try:
        caption = read_caption(path)
    except DataError as error:
        problems.append(f"{name} {error}: left out.")
        return None
    if not caption:
        if not trigger:
            problems.append(f"{name} has no caption: left out (write {path.stem}.txt, or set data.trigger to train it on the trigger alone).")
            return None
        problems.append(f"{name} has no caption: trained with the trigger {trigger!r} alone.")
        caption = trigger
    elif trigger and trigger.lower() not in caption.lower():
        caption = f"{trigger}, {caption}"
    return Item(path, caption, hashlib.sha256(path.read_bytes()).hexdigest())


def load_pixels(path: Path, size_px: int, mirrored: bool) -> Tensor:
    """The picture (3, size, size) in [-1, 1], scaled to cover the square and cropped at the centre."""
    import numpy
    import torch
    from PIL import Image, ImageOps

    square = ImageOps.fit(open_image(path), (size_px, size_px), Image.Resampling.LANCZOS)
    array = numpy.asarray(ImageOps.mirror(square) if mirrored else square)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 127.5 - 1
