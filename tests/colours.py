"""Pictures of one colour with a profile or tags, and the colour in sRGB that they mean."""

from __future__ import annotations

import io
import struct
import zlib

import numpy
from PIL import Image, ImageCms

from trainer import data
from trainer.data import colour, opening

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# Linear light to linear sRGB, as CSS Color 4 prints them (W3C, section 19).
P3 = [[1.2249401763, -0.2249401763, 0], [-0.0420569547, 1.0420569547, 0], [-0.0196375546, -0.0786360456, 1.0982736001]]
BT2020 = [
    [1.6604910021, -0.5876411388, -0.0728498633],
    [-0.1245504745, 1.1328998971, -0.0083494226],
    [-0.0181507634, -0.1005788980, 1.1187296614],
]
ADOBE = [[1.3983557440, -0.3983557440, 0], [0, 1, 0], [0, -0.0429289893, 1.0429289893]]
PLAIN = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
SWAPPED = (0.3127, 0.3290, 0.15, 0.06, 0.30, 0.60, 0.64, 0.33)
RGB = (200, 120, 60)


def srgb_light(value: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def bt709_light(value: numpy.ndarray) -> numpy.ndarray:
    return numpy.where(value < 0.081, value / 4.5, ((value + 0.099) / 1.099) ** (1 / 0.45))


def meant(pixel: tuple[int, ...], matrix: list, light) -> list[int]:
    """The pixel in sRGB: its light, the matrix, the curve of IEC 61966-2-1 back."""
    light_out = (numpy.array(matrix) @ light(numpy.array(pixel[:3]) / 255)).clip(0, 1)
    return [
        round(255 * float(value))
        for value in numpy.where(light_out <= 0.0031308, 12.92 * light_out, 1.055 * light_out ** (1 / 2.4) - 0.055)
    ]


def near(pixel: tuple[int, ...], wanted: list[int] | tuple[int, ...], by: int = 2) -> bool:
    return len(pixel) == len(wanted) and all(
        abs(value - other) <= by for value, other in zip(pixel, wanted, strict=True)
    )


def file_of(kind: str, image: Image.Image | None = None, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    best: dict[str, object] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }.get(kind, {})
    (image or Image.new("RGB", (32, 32), RGB)).save(file, kind, **{**best, **options})
    file.seek(0)
    return file


def with_chunk(png: io.BytesIO, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """The PNG with these chunks before all others but its header."""
    raw, body = png.getvalue(), b""
    for name, content in chunks:
        body += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return io.BytesIO(raw[:33] + body + raw[33:])


def profile(primaries: tuple[float, ...] = SWAPPED, curve: tuple[float, ...] = colour._SRGB_CURVE) -> bytes:
    return colour.profile_of((primaries, curve))


def opened(file: io.BytesIO) -> tuple[tuple[int, ...], tuple[str, ...]]:
    image, notes = opening.open_whole(file)
    assert data.open_image(io.BytesIO(file.getvalue())).mode == "RGB"
    return image.getpixel((5, 5)), notes


def grey_profile(gamma: float) -> bytes:
    """A grey profile made here by hand (ICC.1:2010): white point and a curve of one gamma."""
    curve = struct.pack(">4sIHH i", b"para", 0, 0, 0, round(gamma * 65536))
    white = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, len(curve))
    head = struct.pack(
        ">I4sI4s4s4s12s4s28s3i",
        156 + 20 + len(curve),
        b"",
        0x04300000,
        b"mntr",
        b"GRAY",
        b"XYZ ",
        b"",
        b"acsp",
        b"",
        63190,
        65536,
        54061,
    )
    return head.ljust(128, b"\0") + table + white + curve


def cmyk_profile() -> bytes:
    """A printer whose cyan ink is sRGB's red and whose other inks are black, by a table of two levels an ink
    (ICC.1:2010, lut8Type).
    """
    red, white, black = (136, 208, 195), (255, 128, 128), (0, 128, 128)  # Lab as bytes: L * 2.55, a + 128, b + 128
    grid = [white if not any(inks) else red if inks == (1, 0, 0, 0) else black for inks in numpy.ndindex(2, 2, 2, 2)]
    ramp = bytes(range(256))
    lut = (
        struct.pack(">4sI4B9i", b"mft1", 0, 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
        + ramp * 4
        + bytes(sum(grid, ()))
        + ramp * 3
    )
    white_point = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"A2B0", 176, len(lut))
    head = struct.pack(
        ">I4sI4s4s4s12s4s28s3i",
        176 + len(lut),
        b"",
        0x02400000,
        b"prtr",
        b"CMYK",
        b"Lab ",
        b"",
        b"acsp",
        b"",
        63190,
        65536,
        54061,
    )
    return head.ljust(128, b"\0") + table + white_point + lut
