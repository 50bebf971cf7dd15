"""Where in the picture an adapter acts: a box or a mask picture -> shares of the latents' cells.

A resolved region travels in the recipe: a mask picture becomes `mask data:...`, the mask at the latents' size as PNG in
base64.
"""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from PIL import Image

from trainer import damaged_pictures
from trainer.config import AdapterChoice
from trainer.data.opening import open_mask
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_DATA = "mask data:"
_MAX_DATA_CHARS = 1 << 17
_BOX = re.compile(r"box" + r"\s+(\d?\.?\d{1,6})" * 4)
_ALLOWED = (
    "'box LEFT TOP RIGHT BOTTOM' with numbers from 0 to 1, LEFT below RIGHT and TOP below BOTTOM, "
    "or 'mask FILE' with a picture, white where it acts; transparent is black"
)


def resolved(adapter: AdapterChoice, size: tuple[int, int]) -> str:
    """The region as it is written in a recipe, for latents of (height, width) `size`.

    Raises: ConfigError if it can't be read.
    """
    text = adapter.region.strip()
    if not text or text.startswith(_DATA):
        _ = mask(adapter, size)  # refuses what can't be read
        return text
    if text.startswith("mask "):
        return _DATA + _packed(_open(adapter, text[5:].strip()), size)
    _ = mask(adapter, size)
    return text


def mask(adapter: AdapterChoice, size: tuple[int, int]) -> Tensor | None:
    """The share of each of the latents' cells that the resolved region covers (h, w), in [0, 1]; None for everywhere.

    Raises: ConfigError.
    """
    text = adapter.region.strip()
    if not text:
        return None
    if text.startswith(_DATA):
        return torch.from_numpy(numpy.asarray(_unpacked(adapter, text[len(_DATA) :], size), dtype="float32") / 255)
    box = _BOX.fullmatch(text)
    left, top, right, bottom = map(float, box.groups()) if box else (1.0, 1.0, 0.0, 0.0)  # else: refused below
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ConfigError(f"region of {adapter.name or adapter.file} is {text[:80]!r}; allowed: {_ALLOWED}.")
    # A cell that the box cuts counts by the share inside it, so that a box moves smoothly over coarse latents.
    rows, columns = _covered(top, bottom, size[0]), _covered(left, right, size[1])
    return torch.tensor(rows)[:, None] * torch.tensor(columns)[None, :]


def _covered(start: float, end: float, num: int) -> list[float]:
    """How much of each of `num` cells lies between two shares of the whole."""
    return [max(0.0, min(end * num, cell + 1) - max(start * num, cell)) for cell in range(num)]


def _open(adapter: AdapterChoice, name: str) -> bytes:
    """The mask file's bytes. Raises: ConfigError if it isn't there, or can't be read."""
    path = Path(name)
    if not os.path.isfile(path):  # pathlib's own raises for a name that is too long
        raise ConfigError(
            f"region of {(adapter.name or adapter.file)[:80]} names the mask {name[:400]!r}: no such file; allowed: "
            f"{_ALLOWED}."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"region of {(adapter.name or adapter.file)[:80]} names the mask {name[:400]!r}, which can't be read: "
            f"{error.strerror or error}."
        ) from None


def _packed(raw: bytes, size: tuple[int, int]) -> str:
    """A mask picture at the latents' size, as PNG in base64."""
    with open_mask(io.BytesIO(raw)) as opened:
        # BOX is the mean over each cell, as for training masks.
        small = opened.resize((size[1], size[0]), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _unpacked(adapter: AdapterChoice, text: str, size: tuple[int, int]) -> Image.Image:
    """The mask that `_packed` wrote. Raises: ConfigError if it is none, or of another size."""
    try:
        if len(text) > _MAX_DATA_CHARS:
            raise ValueError
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as opened:
            if opened.size != (size[1], size[0]):
                raise ConfigError(
                    f"region of {adapter.name or adapter.file} is a mask of {opened.size}; this picture's latents are "
                    f"{(size[1], size[0])}."
                )
            return opened.convert("L")
    except damaged_pictures.errors():
        raise ConfigError(
            f"region of {adapter.name or adapter.file} is a mask that can't be read; allowed: {_ALLOWED}."
        ) from None
