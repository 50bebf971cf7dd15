"""How much a picture is like a training picture: the check for copies.

Pictures are compared as 16 x 16 grey thumbnails by their correlation (-1..1), which sees composition and shading and
not texture: two drawings of one thing in one style reach 0.8, a copy 0.95 and more. It costs nothing and needs no
model; it says when to look, it proves nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from trainer.data import scanning as data
from trainer.data.scanning import Item

_SIDE_PX = 16
COPY = 0.97  # likeness from which a preview is called a copy


class Album:
    """Thumbnails of the training pictures."""

    def __init__(self, items: list[Item], background: str) -> None:
        self.names = [item.name for item in items]
        pixels = [data.load_pixels(item, (_SIDE_PX, _SIDE_PX), 0, False, background).mean(0) for item in items]
        self.thumbnails = torch.stack([_unit(thumbnail) for thumbnail in pixels])  # (N, 256)

    def nearest(self, picture: Any) -> tuple[float, str]:
        """Likeness to the picture it is most like, mirrored or not, and that picture's name."""
        thumbnail = data_of(picture)
        # A dot product of thumbnails of mean 0 and length 1 is their correlation: light and contrast don't count.
        both = torch.stack([_unit(thumbnail), _unit(thumbnail.flip(1))])
        scores = (self.thumbnails @ both.T).max(1).values  # (N, 256) @ (256, 2) -> (N,)
        best = int(scores.argmax())
        return round(float(scores[best]), 4), self.names[best]


def data_of(picture: Image.Image) -> Tensor:
    """The picture as a grey thumbnail (16, 16) in [-1, 1]."""
    small = ImageOps.fit(picture.convert("RGB"), (_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    raw = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    grey: Tensor = raw.reshape(_SIDE_PX, _SIDE_PX, 3).float().mean(2) / 127.5 - 1
    return grey


def _unit(thumbnail: Tensor) -> Tensor:
    """The thumbnail (256,) with mean 0 and length 1; zeros for a plain picture."""
    flat: Tensor = thumbnail.flatten() - thumbnail.mean()
    unit: Tensor = flat / flat.norm().clamp_min(1e-6)
    return unit
