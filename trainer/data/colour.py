"""What a picture's numbers mean, by its profile or tags -> the same picture in sRGB, which every base was trained on.

A profile is followed with littlecms, whatever the format: PNG's iCCP, JPEG's APP2, WebP, AVIF and HEIC. What is told
without one - PNG's cICP, gAMA and cHRM, the nclx of AVIF and HEIC, a camera's Adobe RGB - is made into a profile first,
so that one piece of mathematics does it all. In a PNG, cICP comes before iCCP, sRGB, and gAMA with cHRM (PNG, third
edition, 4.3). A profile that means sRGB leaves every byte as it is.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from trainer.lazy import Image, numpy

if TYPE_CHECKING:
    from PIL import Image, ImageCms

AS_THEY_ARE = "the colours are used as they are"
_BROKEN = f"a colour profile that can't be read: {AS_THEY_ARE}"
_MAX_PROFILE_BYTES = 16 << 20
_SAME = 1  # of 255: a profile that moves no colour further means sRGB

Space = tuple[tuple[float, ...], tuple[float, ...]]  # x and y of white, red, green, blue; parameters of the curve
_D65, _DCI, _C = (0.3127, 0.3290), (0.314, 0.351), (0.310, 0.316)
_SRGB_PRIMARIES = (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060)
# ITU-T H.273, table 2.
_PRIMARIES = {
    1: _SRGB_PRIMARIES, 4: (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08), 5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070), 7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049), 9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*_DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060), 12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}  # fmt: skip
# Curves as ICC's parametric curves: (g,) is X^g; (g, a, b, c, d) is (a X + b)^g from d on, c X below. H.273, table 3.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_VIDEO_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
_CURVES: dict[int, tuple[float, ...]] = {
    1: _VIDEO_CURVE, 4: (2.2,), 5: (2.8,), 6: _VIDEO_CURVE, 7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4, 0.0912),
    8: (1.0,), 11: _VIDEO_CURVE,
    13: _SRGB_CURVE, 14: _VIDEO_CURVE, 15: _VIDEO_CURVE, 17: (2.6,),
}  # fmt: skip
_HDR = {16: "PQ", 18: "HLG"}
_UNSPECIFIED = 2
_ADOBE: Space = ((*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (2 + 51 / 256,))


def space_of(image: Image.Image, head: dict[str, bytes]) -> tuple[bytes | None, str]:
    """The profile that an opened file's colours follow (None: sRGB), and what of it can't be followed, "" if nothing.

    `head` has what Pillow leaves out: the chunks of a PNG, the `nclx` of an AVIF.
    """
    # In the order in which a PNG's chunks override each other.
    info, is_png = image.info, image.format == "PNG"
    if cicp := head.get("cICP"):
        return _of_code_points(cicp, "cICP")
    if "iCCP" in head if is_png else "icc_profile" in info:
        profile = info.get("icc_profile")
        if isinstance(profile, bytes) and 0 < len(profile) <= _MAX_PROFILE_BYTES:
            return profile, ""
        return None, _BROKEN
    if nclx := head.get("nclx"):
        return _of_code_points(nclx, "nclx")
    if "sRGB" not in head and ("gAMA" in head or "cHRM" in head):
        return _of_gamma(head.get("gAMA"), head.get("cHRM"))
    if image.format in ("JPEG", "MPO") and _is_adobe(image):
        return profile_of(_ADOBE), ""
    return None, ""


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """The picture as RGB or RGBA in sRGB, and what is wrong with the profile: the picture is then as it was."""
    grey = image.mode in ("1", "L", "LA")
    transform = _transform(profile, "CMYK" if image.mode == "CMYK" else "grey" if grey else "RGB")
    if transform is None or isinstance(transform, str):
        return image, transform or ""
    has_alpha = image.has_transparency_data
    if transform.input_mode == "CMYK":
        return transform.apply(image), ""

    # littlecms sees the colours only; the opacity is put back afterwards.
    opaque_mode = "RGB" if transform.input_mode == "RGB" else "L"
    whole = image.convert(f"{opaque_mode}A" if has_alpha else opaque_mode)
    rgb = transform.apply(whole.convert(transform.input_mode))
    return Image.merge("RGBA", (*rgb.split(), whole.getchannel("A"))) if has_alpha else rgb, ""


@lru_cache(maxsize=32)
def _transform(profile: bytes, kind: str) -> ImageCms.ImageCmsTransform | str | None:
    """How pixels of this kind become sRGB; None if they are, words if it can't be told."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = opened.profile.xcolor_space.strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space, "")
        if not mode or mode not in {"RGB": ("RGB",), "grey": ("RGB", "L"), "CMYK": ("CMYK",)}[kind]:
            return f"a colour profile for {space or 'nothing'} pictures, which it is not: {AS_THEY_ARE}"
        transform = ImageCms.ImageCmsTransform(
            opened, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB"
        )
        return None if _changes_nothing(transform) else transform
    except (OSError, ValueError, TypeError, RuntimeError, SyntaxError, ImageCms.PyCMSError):
        return _BROKEN


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether it leaves 16 levels of each channel, or all 256 of grey, where they are."""
    from PIL import Image, ImageChops

    if transform.input_mode == "CMYK":
        return False
    if transform.input_mode == "L":
        probe = Image.frombytes("L", (16, 16), bytes(range(256)))
    else:
        levels = range(0, 256, 17)
        colours = bytes(level for red in levels for green in levels for blue in levels for level in (red, green, blue))
        probe = Image.frombytes("RGB", (64, 64), colours)
    moved = ImageChops.difference(transform.apply(probe), probe.convert("RGB")).getextrema()
    return all(band[1] <= _SAME for band in moved)  # type: ignore[index]


# What is told without a profile.


def _of_code_points(raw: bytes, kind: str) -> tuple[bytes | None, str]:
    """The profile that H.273's code points mean, and what of them can't be followed: as `space_of`.

    They are primaries, transfer, matrix, full range: a byte each in `cICP`, two for the first three in `nclx`.
    """
    try:
        primaries, transfer, matrix, is_full = struct.unpack(">4B" if kind == "cICP" else ">3HB", raw)
    except struct.error:
        return None, _BROKEN
    if kind == "nclx":
        # The decoder has done the matrix and the range; and encoders say 1 or 6 of pictures whose curve is sRGB's.
        matrix, is_full = 0, 1
        primaries = 1 if primaries == _UNSPECIFIED else primaries
        transfer = 13 if transfer in (1, 6, 14, 15, _UNSPECIFIED) else transfer

    # What no profile made here can say.
    if transfer in _HDR:
        kind_of_hdr = f"colours for a display of high range ({_HDR[transfer]})"
        return None, f"{kind_of_hdr}, which can't be brought down to sRGB here: {AS_THEY_ARE}"
    if matrix or not is_full or primaries not in _PRIMARIES or transfer not in _CURVES:
        points = f"{primaries}, {transfer}, {matrix}, {int(bool(is_full))}"
        return None, f"colours by the code points {points}, which can't be followed here: {AS_THEY_ARE}"
    if (primaries, transfer) == (1, 13):
        return None, ""
    return profile_of((_PRIMARIES[primaries], _CURVES[transfer])), ""


def _of_gamma(gamma: bytes | None, chromaticity: bytes | None) -> tuple[bytes | None, str]:
    """The profile that a PNG's gAMA and cHRM mean, and what of them can't be followed: as `space_of`.

    A gamma of 1/2.2 with sRGB's primaries is how writers tell old readers of sRGB, and is taken for sRGB.
    """
    try:
        primaries: tuple[float, ...] = _SRGB_PRIMARIES
        if chromaticity is not None:
            primaries = tuple(part / 100_000 for part in struct.unpack(">8I", chromaticity))
        power = 0.0 if gamma is None else 100_000 / struct.unpack(">I", gamma)[0]
        if gamma is not None and not 0.1 <= power <= 10:
            raise ValueError("no gamma of a picture")
        is_srgb = max(abs(one - other) for one, other in zip(primaries, _SRGB_PRIMARIES, strict=True)) < 0.002
        if is_srgb and (gamma is None or abs(power - 2.2) < 0.005):
            return None, ""
        return profile_of((_SRGB_PRIMARIES if is_srgb else primaries, _SRGB_CURVE if gamma is None else (power,))), ""
    except (ValueError, ZeroDivisionError, struct.error):
        return None, f"gAMA or cHRM that can't be followed: {AS_THEY_ARE}"


def _is_adobe(image: Image.Image) -> bool:
    """Whether a camera's JPEG says Adobe RGB as the Design rule for Camera File system does, without a profile."""
    try:
        exif = image.getexif()
        return bool(exif.get_ifd(0x8769).get(0xA001) == 2 or str(exif.get_ifd(0xA005).get(1, "")).strip("\0 ") == "R03")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, TypeError, LookupError, ArithmeticError):
        return False


@lru_cache(maxsize=64)
def profile_of(space: Space) -> bytes:
    """An ICC profile (version 4, matrix and curves) of these primaries and this curve.

    Raises: ValueError if they are no colours.
    """
    # XYZ of white and of full red, green and blue.
    (white_x, white_y, *corners), curve = space
    if white_y <= 0 or min(corners[1::2]) <= 0:
        raise ValueError("a chromaticity has no height")
    white = [white_x / white_y, 1.0, (1 - white_x - white_y) / white_y]
    primaries = [[x / y, 1.0, (1 - x - y) / y] for x, y in zip(corners[::2], corners[1::2], strict=True)]
    rows = _adapted(white, _solved(primaries, white))

    # The values of the tags, in fixed point of 16 bits behind the point.
    fixed = [[round(65536 * value) for value in row] for row in [[0.9642, 1.0, 0.8249], *rows]]
    values = [struct.pack(">4sI3i", b"XYZ ", 0, *row) for row in fixed]
    shape = struct.pack(
        f">4sIHH{len(curve)}i", b"para", 0, 3 if len(curve) > 1 else 0, 0, *(round(65536 * value) for value in curve)
    )

    # The table of tags, and behind it the values; the three curves are the same bytes.
    start = 128 + 4 + 12 * 7  # header, number of tags, their entries
    tags, body = [], b""
    for name, value in zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), values, strict=True):
        tags.append((name, start + len(body), len(value)))
        body += value
    tags += [(name, start + len(body), len(shape)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table = struct.pack(">I", len(tags)) + b"".join(struct.pack(">4sII", *tag) for tag in tags)
    whole = table + body + shape

    # Size, version 4.3, a display's profile from RGB to XYZ, the signature, and D50 as every profile names it.
    kinds = (b"mntr", b"RGB ", b"XYZ ", b"", b"acsp", b"")
    header = struct.pack(">I4sI4s4s4s12s4s28s3i", 128 + len(whole), b"", 0x04300000, *kinds, 63190, 65536, 54061)
    return header.ljust(128, b"\0") + whole


def _solved(corners: Sequence[Sequence[float]], white: Sequence[float]) -> list[list[float]]:
    """XYZ of full red, green and blue, whose sum is white. Raises: ValueError if they lie on a line."""
    columns = numpy.array(corners).T
    if abs(float(numpy.linalg.det(columns))) < 1e-6:
        raise ValueError("the primaries lie on a line")
    return [list(row) for row in (columns * numpy.linalg.solve(columns, numpy.array(white))).T.tolist()]


def _adapted(white: Sequence[float], rows: list[list[float]]) -> list[list[float]]:
    """The same under the profiles' white D50, by Bradford's matrix."""
    cone = numpy.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = cone @ numpy.array([0.9642, 1.0, 0.8249]) / (cone @ numpy.array(white))
    return [list(row) for row in (numpy.array(rows) @ (numpy.linalg.inv(cone) @ numpy.diag(scale) @ cone).T).tolist()]
