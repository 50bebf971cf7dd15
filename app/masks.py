"""Mask pictures that a browser brought: written anew as grey PNGs, chosen by name, white where a LoRA acts.

They are uploaded as files, or painted on the page (`stack_panel`) and sent as a data URL.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from app.context import Context
from app.texts import say
from trainer import files
from trainer.data.opening import Source, open_mask
from trainer.data.uploads import safe_stem
from trainer.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MOST_BYTES = 2_000_000  # of a painted mask
_LONGEST_PX = 1024  # of a side; what acts is a mask at the latents' size
_PNG = "data:image/png;base64,"


def names(context: Context) -> list[str]:
    """The masks that are here."""
    return sorted(path.name for path in context.masks.glob("*.png") if not path.name.startswith("."))


def add(context: Context, picture: Path) -> str:
    """The name of the mask that an uploaded picture is from now on. Raises: DataError if it can't be read."""
    return _kept(context, picture, safe_stem(picture.name))


def add_painted(context: Context, url: object) -> str:
    """The name of the mask that was painted, as a browser sends it: a PNG as data URL.

    Raises: DataError if it is too large or can't be read.
    """
    try:
        return _kept(context, io.BytesIO(bytes_of(url, MOST_BYTES)), "painted")
    except DataError as error:
        raise DataError(say("region.bad_paint", problem=error)) from None


def bytes_of(url: object, most_bytes: int) -> bytes:
    """The PNG that a browser sends as a data URL. Raises: DataError if it is none, or too large; what it is or has."""
    if not isinstance(url, str) or not url.startswith(_PNG):
        raise DataError(say("region.no_png"))
    if len(url) > most_bytes:
        raise DataError(say("region.too_large", mb=len(url) / 1e6, most=most_bytes / 1e6))
    try:
        return base64.b64decode(url.removeprefix(_PNG), validate=True)
    except (binascii.Error, ValueError):
        raise DataError(say("region.damaged")) from None


def as_url(context: Context, name: object) -> str:
    """A mask as a browser shows it, a PNG as data URL. Raises: DataError if there is none of that name."""
    matches = [mask for mask in names(context) if mask == name]
    if not matches:
        raise DataError(say("region.mask_gone", name=str(name)[:80]))
    return _PNG + base64.b64encode((context.masks / matches[0]).read_bytes()).decode()


def url_of(mask: Image.Image) -> str:
    """A grey picture as a browser shows it, a PNG as data URL."""
    written = io.BytesIO()
    mask.save(written, "PNG", compress_level=1)
    return _PNG + base64.b64encode(written.getvalue()).decode()


def _kept(context: Context, source: Source, stem: str) -> str:
    mask = open_mask(source).convert("L")
    mask.thumbnail((_LONGEST_PX, _LONGEST_PX))
    # By its content, so that the same mask brought twice is one file.
    digest = hashlib.sha256(mask.tobytes()).hexdigest()[:8]
    name = f"{stem}-{digest}.png"
    context.masks.mkdir(exist_ok=True)
    with files.replacing(context.masks / name) as unfinished:
        mask.save(unfinished, "PNG")
    return name
