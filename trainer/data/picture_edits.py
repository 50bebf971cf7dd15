"""What people do to the pictures of a dataset: crop, flip, paint a mask. Each is one edit of the set, and undoable.

A mask goes with its picture, in whatever layout it lies there (`sources.masks_of`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageChops

from trainer.data import opening, picture_replacing, pixel_edits, sources
from trainer.data.edit_log import Edit
from trainer.data.opening import MIN_SIDE_PX
from trainer.data.other_tools_files import MASKS
from trainer.data.pixel_edits import Box
from trainer.errors import DataError

_SAME = 3  # of 255: a painted mask that differs less was not painted there


@dataclass(frozen=True)
class Opened:
    """A picture to edit, turned as its EXIF says, and its masks, that which training takes first."""

    picture: Path
    masks: tuple[Path, ...]
    size: tuple[int, int]
    version: str  # another when the picture or a mask is


def look(folder: Path, picture: Path) -> Opened:
    """A picture of the set to edit. Raises: DataError if it doesn't open."""
    masks = tuple(sources.masks_of(folder).get(picture, ()))
    digests = [f"{path.name} {picture_replacing.digest(path)}" for path in (picture, *masks)]
    size = opening.open_whole(picture)[0].size
    return Opened(picture, masks, size, hashlib.sha256("\n".join(digests).encode("utf-8", "replace")).hexdigest())


def crop(folder: Path, opened: Opened, box: Box) -> Edit:
    """Cut the picture and its masks to the box. Raises: DataError."""
    _check_box(opened.size, box)

    def of_file(path: Path, is_mask: bool) -> bytes:
        return pixel_edits.cropped(path, _scaled(path, box, opened.size) if is_mask else box)

    return _edit(folder, f"Crop of {opened.picture.name}", [opened.picture], of_file)


def flip(folder: Path, pictures: Sequence[Path], visit: str = "") -> Edit:
    """Mirror the pictures and their masks; of one `visit`, bit by bit, as one edit. Raises: DataError."""
    what = f"Flip of {pictures[0].name}" if len(pictures) == 1 and not visit else "Flip"
    return _edit(folder, what, pictures, lambda path, _: pixel_edits.flipped(path), visit)


def paint(folder: Path, opened: Opened, painted: Image.Image) -> Edit:
    """Make the painted picture (any mode and size; white is learnt in full) the picture's mask; none if it is white.

    It is written where a mask of the picture lies already, else beside it. Raises: DataError.
    """
    mask = painted.convert("L")
    least, most = mask.getextrema()
    if most == 0:
        raise DataError("all of it is painted, so nothing of the picture would count; leave some of it unpainted.")

    # Two pictures mustn't have one mask.
    twins = [path for path in _refuse_shared(folder, [opened.picture]) if path != opened.picture]
    if shared := [path.name for path in twins if path.with_suffix("") == opened.picture.with_suffix("")]:
        raise DataError(
            f"{opened.picture.name} and {shared[0]} would have one mask together; rename one of them first."
        )

    # All white is no mask; any other is written as PNG, wherever a mask of the picture lies.
    contents: dict[Path, bytes | None] = {}
    if least == 255:
        contents = dict.fromkeys(opened.masks)
    else:
        mask = _at_full_size(mask, opened)
        written = io.BytesIO()
        mask.save(written, "PNG")
        wanted = opened.masks or (opened.picture.with_name(f"{opened.picture.stem}{MASKS[0]}.png"),)
        for path in wanted:
            # A mask in another format gives way to the PNG.
            as_png = path if path.suffix.lower() == ".png" else path.with_suffix(".png")
            contents |= {path: None, as_png: written.getvalue()}
    if not contents:
        raise DataError("nothing is painted, and there was no mask; paint what should count less.")

    # What is to be there, against what is there now.
    before = {path: picture_replacing.digest(path) for path in contents}
    contents = {path: content for path, content in contents.items() if before[path] or content is not None}
    return picture_replacing.swap(folder, f"Mask of {opened.picture.name}", contents, before)


def _at_full_size(mask: Image.Image, opened: Opened) -> Image.Image:
    """The mask at the picture's size; where it is as the old mask was, the old mask, which may be finer."""
    full = mask.resize(opened.size)
    if not opened.masks or mask.size == opened.size:
        return full
    old = opening.open_mask(opened.masks[0]).resize(opened.size)
    changed = ImageChops.difference(mask, old.resize(mask.size)).point(lambda level: 255 if level >= _SAME else 0)
    return Image.composite(full, old, changed.resize(opened.size, Image.Resampling.NEAREST))


def _edit(
    folder: Path, what: str, pictures: Sequence[Path], made: Callable[[Path, bool], bytes], visit: str = ""
) -> Edit:
    """Replace pictures and their masks by what is made of each file (path, whether it is a mask)."""
    masks = _refuse_shared(folder, pictures)
    kinds = {path: False for path in pictures} | {mask: True for picture in pictures for mask in masks[picture]}
    before = {path: picture_replacing.digest(path) for path in kinds}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        contents = list(pool.map(partial(_made, made), kinds.items()))
    return picture_replacing.swap(folder, what, dict(zip(kinds, contents, strict=True)), before, visit)


def _made(made: Callable[[Path, bool], bytes], file: tuple[Path, bool]) -> bytes:
    try:
        return made(*file)
    except DataError as error:
        raise DataError(f"{file[0].name} {error}") from None


def _refuse_shared(folder: Path, pictures: Sequence[Path]) -> dict[Path, list[Path]]:
    """Every picture's masks. Raises: DataError if one of these has a mask that another has too."""
    masks = sources.masks_of(folder)
    for picture in pictures:
        if picture not in masks:
            raise DataError(f"{picture.name} is not here any more; reload the page.")
        for other, lying in masks.items():
            if other != picture and set(lying) & set(masks[picture]):
                raise DataError(f"{picture.name} and {other.name} have one mask together; rename one of them first.")
    return masks


def _check_box(size: tuple[int, int], box: Box) -> None:
    left, top, right, bottom = box
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise DataError(f"the crop {box} leaves the picture; allowed: from 0, 0 to {size[0]}, {size[1]}.")
    if min(right - left, bottom - top) < MIN_SIDE_PX:
        raise DataError(
            f"the crop is {right - left} x {bottom - top} pixels; allowed: at least {MIN_SIDE_PX} on each side."
        )
    if (right - left, bottom - top) == size:
        raise DataError("the crop is the whole picture; drag an edge of it first.")


def _scaled(path: Path, box: Box, size: tuple[int, int]) -> Box:
    """The box of a picture of this size on a mask, which may be of another."""
    width, height = opening.open_mask(path).size
    left, top, right, bottom = box
    across, down = width / size[0], height / size[1]
    return round(left * across), round(top * down), round(right * across), round(bottom * down)
