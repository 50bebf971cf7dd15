"""A picture cropped or flipped -> the bytes of a file like the old file: its format, mode, colours and transparency.

The picture is turned as its EXIF says and then says so no more. JPEG keeps its own tables, so that little is lost; a
lossless WebP stays lossless. What can't be kept is refused: the picture then stays as it is.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, JpegImagePlugin
from PIL.PngImagePlugin import PngInfo

from trainer.data import colour, opening
from trainer.errors import DataError

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the turned picture
_QUALITY = 95  # where a format loses something and can't be told how much it lost before
_COLOUR_CHUNKS = ("cICP", "gAMA", "cHRM", "sRGB")
_SAVED_AS = {"MPO": "JPEG"}  # a camera's JPEG with a second picture in it, which nothing here reads


def cropped(path: Path, box: Box) -> bytes:
    """The picture file cut to the box. Raises: DataError, its message beginning with what the picture is or has."""
    return _edited(path, lambda image: image.crop(box))


def flipped(path: Path) -> bytes:
    """The picture file as a mirror shows it. Raises: as `cropped`."""
    return _edited(path, ImageOps.mirror)


def _edited(path: Path, edit: Callable[[Image.Image], Image.Image]) -> bytes:
    stored, head = opening.as_stored(path)
    if stored.format not in _SAVED_AS and getattr(stored, "n_frames", 1) > 1:
        raise DataError("has more than one frame, which an edit here would lose; save the one you want by itself")
    if head.get("IHDR", b"")[8:9] == b"\x10" and stored.mode != "I;16":
        raise DataError("has 16 bits a channel, which an edit here would halve; save it with 8 first")
    turned = opening.turned(stored)
    options = _options(path, stored, turned, head)
    written = io.BytesIO()
    try:
        edited = edit(turned)
        edited.info = {}
        edited.save(written, _SAVED_AS.get(str(stored.format), stored.format), **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"can't be written as it was ({str(error)[:120]})") from None
    return written.getvalue()


def _options(path: Path, stored: Image.Image, turned: Image.Image, head: dict[str, bytes]) -> dict[str, Any]:
    """What the format's writer has to be told to keep what the file says beside its pixels."""
    options = {name: turned.info.get(key) for name, key in (("icc_profile", "icc_profile"), ("exif", "exif"))}
    options = {name: value for name, value in options.items() if isinstance(value, bytes) and value}
    if isinstance(stored, JpegImagePlugin.JpegImageFile):
        tables = {"qtables": stored.quantization, "subsampling": JpegImagePlugin.get_sampling(stored)}
        return options | tables | {"progressive": bool(stored.info.get("progressive"))}
    match stored.format:
        case "PNG":
            return options | _png_options(stored, head)
        case "WEBP":
            return options | ({"lossless": True, "exact": True} if _is_lossless(path) else {"quality": _QUALITY})
        case _:
            # AVIF and HEIC may say their colours in a box that no writer here knows: a profile says the same.
            profile, problem = colour.space_of(stored, head)
            if problem:
                raise DataError(f"has {problem.partition(':')[0]}, which an edit here would lose")
            return options | {"quality": _QUALITY} | ({"icc_profile": profile} if profile else {})


def _png_options(stored: Image.Image, head: dict[str, bytes]) -> dict[str, Any]:
    chunks = PngInfo()
    for name in _COLOUR_CHUNKS:
        if name in head and not (name == "sRGB" and "iCCP" in head):
            chunks.add(name.encode(), head[name])
    options: dict[str, Any] = {"pnginfo": chunks}

    # The colour that stands for none, at the depth that is written.
    key = head.get("tRNS")
    if key is not None and stored.mode == "P":
        options["transparency"] = key
    elif key is not None and stored.mode in ("1", "L", "I;16", "RGB"):
        depth = head["IHDR"][8]
        scale = 255 // ((1 << depth) - 1) if stored.mode == "L" else 1  # Pillow stretches grey of 2 and 4 bits
        parts = [int.from_bytes(key[at : at + 2], "big") & (1 << depth) - 1 for at in range(0, len(key), 2)]
        options["transparency"] = tuple(parts) if stored.mode == "RGB" else parts[0] * scale
    return options


def _is_lossless(path: Path) -> bool:
    """Whether a WebP holds its pixels losslessly, by the name of its chunk."""
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            if head[:4] in (b"VP8L", b"VP8 "):
                return head[:4] == b"VP8L"
            size = int.from_bytes(head[4:], "little")
            file.seek(size + size % 2, io.SEEK_CUR)
    return False
