"""A picture file -> its pixels, decoded whole, turned as its EXIF says, in sRGB: the one way to open a picture.

Every file is hostile: a few formats only, at most 64 megapixels. Training, the dataset's check, likeness and thumbnails
ask here, so that all of them see the same colours. A mask's numbers are amounts, not colours: it is opened without its
profile.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias

from trainer import damaged_pictures
from trainer.data import colour
from trainer.data.formats import FORMATS
from trainer.errors import DataError
from trainer.lazy import Image, ImageOps, numpy

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
    from PIL import Image

MAX_PIXELS = 64_000_000
MIN_SIDE_PX = 16
WHITE = "#ffffff"
_OUTSIDE = "#000000"  # of a mask
ONE_FRAME = "more than one frame: only the first is used"
Source: TypeAlias = "Path | str | IO[bytes]"
_CHUNKS = (b"IHDR", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"tRNS")
_MAX_CHUNKS = 4096  # of a PNG before its pixels
_MAX_PROFILE_TEXT_BYTES = 16 << 20  # a profile in a PNG may be larger than the 1 MiB that Pillow allows


def open_image(source: Source, background: str = WHITE) -> Image.Image:
    """The picture as RGB in sRGB, transparency laid on `background`. Raises: DataError saying what is wrong."""
    return flat(open_whole(source)[0], background)


def open_whole(source: Source) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture in sRGB with its transparency, and what it has that is not used.

    Its mode is that of the file, or RGB or RGBA. Raises: DataError saying what is wrong.
    """
    with _in_words(source):
        image, head = _decoded(source)
        profile, colour_note = colour.space_of(image, head)
        has_more_frames = getattr(image, "n_frames", 1) > 1 and image.format in ("PNG", "WEBP", "AVIF", "HEIF")
        plain = turned(_plain(image, head, source))
        if profile:
            plain, colour_note = colour.to_srgb(plain, profile)
        if plain.mode == "P":
            flat(plain, WHITE)  # a damaged palette shows only here
        return plain, tuple(filter(None, (colour_note, ONE_FRAME if has_more_frames else "")))


def as_stored(source: Source) -> tuple[Image.Image, dict[str, bytes]]:
    """The picture as its file holds it, in its own mode and colours and not turned, and what Pillow leaves out of its
    head. Raises: DataError saying what is wrong.
    """
    with _in_words(source):
        return _decoded(source)


def open_mask(source: Source) -> Image.Image:
    """A mask file as 8-bit grey, transparency as black, which is outside.

    Its numbers are taken as they are, whatever colours a profile calls them. Raises: DataError saying what is wrong.
    """
    with _in_words(source):
        image, head = _decoded(source)
        return flat(turned(_plain(image, head, source)), _OUTSIDE).convert("L")


def opacity(source: Source) -> Image.Image:
    """How opaque the picture is, 8-bit grey; 255 all over without transparency.

    Raises: DataError saying what is wrong.
    """
    with _in_words(source):
        image, head = _decoded(source)
        return turned(_plain(image, head, source)).convert("RGBA").getchannel("A")


def flat(image: Image.Image, background: str) -> Image.Image:
    """The picture as RGB, transparency laid on `background`."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")


def _decoded(source: Source) -> tuple[Image.Image, dict[str, bytes]]:
    """The picture as Pillow decodes it, and of its head what Pillow leaves out."""
    image = Image.open(source, formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"has {image.width} x {image.height} pixels; allowed: up to {MAX_PIXELS // 1_000_000} megapixels"
        )
    if min(image.size) < MIN_SIDE_PX:
        raise DataError(f"is {image.width} x {image.height} pixels; allowed: at least {MIN_SIDE_PX} on each side")
    image.load()
    if image.format not in ("PNG", "AVIF", "HEIF"):
        return image, {}
    with _raw(source) as file:
        return image, _png_head(file) if image.format == "PNG" else _nclx(file)


def _plain(image: Image.Image, head: dict[str, bytes], source: Source) -> Image.Image:
    """The picture in 8 bits, a colour that stands for none as a channel of opacity; its other metadata is kept."""
    alpha = _keyed(image, head, source)
    plain = _eight_bit(image)
    if alpha is not None:
        plain = plain.convert("RGB" if plain.mode == "RGB" else "L")
        plain.putalpha(alpha)
    plain.info = {key: value for key, value in image.info.items() if image.format != "PNG" or key != "transparency"}
    if plain.mode == "P" and "tRNS" in head:
        plain.info["transparency"] = head["tRNS"]
    return plain


def _keyed(image: Image.Image, head: dict[str, bytes], source: Source) -> Image.Image | None:
    """The opacity (8-bit grey) of a PNG in which one colour stands for none (tRNS); None for any other picture.

    Pixels are compared at the file's own depth: after rounding to 8 bits, other colours would be transparent too.
    """
    if "tRNS" not in head or image.mode not in ("1", "L", "I;16", "RGB"):
        return None

    depth = head["IHDR"][8]
    # Grey, or red, green and blue: two bytes each, whatever the depth.
    key = [int.from_bytes(head["tRNS"][at : at + 2], "big") for at in range(0, 6 if image.mode == "RGB" else 2, 2)]
    pixels = numpy.asarray(image).astype(numpy.uint16)
    mask = (1 << depth) - 1  # the other bits of a key mean nothing
    if image.mode == "RGB":
        if depth == 16:
            pixels = (pixels << numpy.uint16(8)) | _low_bytes(source)
        same = (pixels == numpy.array([part & mask for part in key], dtype=numpy.uint16)).all(-1)
    elif image.mode == "1":
        same = pixels == (key[0] & 1)
    else:
        scale = 255 // mask if depth < 8 else 1  # Pillow stretches grey of 2 and 4 bits
        same = pixels == (key[0] & mask) * scale
    return Image.fromarray(numpy.where(same, 0, 255).astype(numpy.uint8))


def _low_bytes(source: Source) -> NDArray[numpy.uint16]:
    """The lower bytes of a PNG of 16 bits a channel, (H, W, 3): Pillow keeps the upper bytes alone."""
    again = Image.open(source, formats=("PNG",))
    # Read the wrong way round, so that Pillow takes the lower byte for the upper one.
    again.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in again.tile]
    return numpy.asarray(again).astype(numpy.uint16)


def _eight_bit(image: Image.Image) -> Image.Image:
    """A 16-bit grey picture as 8-bit; Pillow's own conversion cuts all above 255 to white."""
    if not image.mode.startswith("I"):
        return image.copy()

    return Image.fromarray((numpy.asarray(image).clip(0, 65535) >> 8).astype(numpy.uint8))


def turned(image: Image.Image) -> Image.Image:
    """The picture as its EXIF says; damaged EXIF says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except damaged_pictures.errors():
        return image


# Heads of files.


@contextmanager
def _raw(source: Source) -> Iterator[IO[bytes]]:
    """The file from its beginning; a file that was given open is left where it was."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            yield file
    else:
        position = source.tell()
        source.seek(0)
        yield source
        source.seek(position)


def _png_head(file: IO[bytes]) -> dict[str, bytes]:
    """The chunks before a PNG's pixels that say how to read them, by name.

    Pillow mixes them with the file's texts, one of which may be called `gamma`.
    """
    chunks: dict[str, bytes] = {}
    file.seek(8)
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or name in (b"IDAT", b"IEND"):
            break
        if name in _CHUNKS and length <= 768:
            chunks.setdefault(name.decode(), file.read(length))
            length = 0
        elif name == b"iCCP":
            chunks["iCCP"] = b""
        # The rest of what is in the chunk, and its checksum.
        file.seek(length + 4, os.SEEK_CUR)
    return chunks


def _nclx(file: IO[bytes]) -> dict[str, bytes]:
    """The colours of an AVIF or HEIC by code points: the first `colr` box of kind `nclx` among its properties."""
    # The boxes to go into, from the outermost; `start` is where the present box begins, `end` where its parent ends.
    inside: tuple[bytes, ...] = (b"meta", b"iprp", b"ipco", b"colr")
    end = file.seek(0, os.SEEK_END)
    start = file.seek(0)
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        size, name = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or size < 8 or start + size > end:
            break
        if name == inside[0] and name == b"colr":
            if (raw := file.read(min(size - 8, 11)))[:4] == b"nclx":
                return {"nclx": raw[4:]}
        elif name == inside[0]:
            inside, end = inside[1:], start + size
            start = file.seek(start + (12 if name == b"meta" else 8))  # meta has a version first
            continue
        start = file.seek(start + size)
    return {}


# Damage in words.


@contextmanager
def _in_words(source: Source) -> Iterator[None]:
    """Damage as a DataError."""
    try:
        yield
    except DataError:
        raise
    except damaged_pictures.errors() as error:
        raise DataError(_reason(source, error)) from None


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow may open.

    Pillow is told here, once, not to warn of what this module checks itself: warning filters are not safe in threads.
    """
    from PIL import Image, PngImagePlugin

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)
    warnings.filterwarnings("ignore", message="Invalid APNG", category=UserWarning)
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, _MAX_PROFILE_TEXT_BYTES)
    try:
        import pillow_heif
    except ImportError:
        return ("PNG", "JPEG", "WEBP", "AVIF")
    pillow_heif.register_heif_opener()
    return ("PNG", "JPEG", "WEBP", "AVIF", "HEIF")


def _reason(source: Source, error: BaseException) -> str:
    """What is wrong with a picture that Pillow could not open, as the end of a sentence."""
    if isinstance(source, (str, Path)):
        if not os.access(source, os.R_OK):
            return "can't be read: permission denied" if os.path.lexists(source) else "is not there any more"
        if os.path.getsize(source) == 0:
            return "is empty (0 bytes)"
    if type(error).__name__ == "UnidentifiedImageError":
        if "HEIF" not in _formats() and _is_heic(source):
            return "is a HEIC picture; install velatura[heic] to read it"
        return f"is not a picture, whatever its name says; allowed: {FORMATS}"
    return f"is damaged or cut short ({str(error)[:120]})"


def _is_heic(source: Source) -> bool:
    with _raw(source) as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
