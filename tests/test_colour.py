"""Colours as a picture's tags mean them, and one transparent colour, against numbers worked out another way."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.colours import (
    ADOBE,
    BT2020,
    P3,
    PLAIN,
    RGB,
    SRGB,
    SWAPPED,
    bt709_light,
    file_of,
    grey_profile,
    meant,
    near,
    opened,
    profile,
    srgb_light,
    with_chunk,
)
from trainer import data
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import dataset_check, likeness, opening, scanning
from trainer.errors import DataError

# Tags without a profile.


CODES = {
    (12, 13): (P3, srgb_light), (9, 13): (BT2020, srgb_light), (9, 1): (BT2020, bt709_light),
    (9, 14): (BT2020, bt709_light), (9, 8): (BT2020, lambda x: x),
    (12, 4): (P3, lambda x: x**2.2), (1, 8): (PLAIN, lambda x: x), (1, 5): (PLAIN, lambda x: x**2.8),
    (1, 13): (PLAIN, srgb_light),
}  # fmt: skip


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_cicp_is_followed(codes: tuple[int, int]) -> None:
    pixel, notes = opened(with_chunk(file_of("PNG"), (b"cICP", bytes((*codes, 0, 1)))))
    assert near(pixel, meant(RGB, *CODES[codes])) and notes == ()


@pytest.mark.parametrize(
    "raw, problem",
    [
        ((9, 16, 0, 1), "PQ"),
        ((9, 18, 0, 1), "HLG"),
        ((1, 13, 1, 1), "code points"),
        ((77, 13, 0, 1), "code points"),
        ((1, 13, 0, 0), "code"),
    ],
)
def test_a_cicp_that_cannot_be_followed_is_said(raw: tuple[int, ...], problem: str) -> None:
    pixel, notes = opened(with_chunk(file_of("PNG"), (b"cICP", bytes(raw))))
    assert pixel == RGB and len(notes) == 1 and problem in notes[0] and "used as they are" in notes[0]


def packed(raw: bytes) -> bytes:
    return b"icc\0\0" + zlib.compress(raw)


SWAPPED_CHUNK = (b"cHRM", struct.pack(">8I", *(round(100_000 * number) for number in SWAPPED)))


@pytest.mark.parametrize(
    "chunks, wanted",
    [
        ([(b"cICP", bytes((1, 13, 0, 1))), (b"iCCP", packed(profile()))], RGB),
        ([(b"iCCP", packed(profile())), (b"sRGB", b"\0")], RGB[::-1]),
        ([(b"iCCP", packed(SRGB.tobytes())), SWAPPED_CHUNK, (b"gAMA", struct.pack(">I", 100_000))], RGB),
        ([(b"sRGB", b"\0"), SWAPPED_CHUNK, (b"gAMA", struct.pack(">I", 100_000))], RGB),
        ([SWAPPED_CHUNK], RGB[::-1]),
        ([SWAPPED_CHUNK, (b"gAMA", struct.pack(">I", 100_000))], meant(RGB, PLAIN, lambda x: x)[::-1]),
        ([(b"gAMA", struct.pack(">I", 100_000))], meant(RGB, PLAIN, lambda x: x)),
        ([(b"gAMA", struct.pack(">I", 55_556))], meant(RGB, PLAIN, lambda x: x**1.8)),
        ([(b"gAMA", struct.pack(">I", 45_455))], RGB),
        ([(b"cICP", bytes((12, 13, 0, 1))), (b"sRGB", b"\0")], meant(RGB, P3, srgb_light)),
    ],
)
def test_of_several_tags_the_one_that_the_specification_names_first_is_followed(
    chunks: list[tuple[bytes, bytes]], wanted: tuple[int, ...]
) -> None:
    pixel, notes = opened(with_chunk(file_of("PNG"), *chunks))
    assert near(pixel, wanted) and notes == ()


@pytest.mark.parametrize(
    "chunk",
    [
        (b"gAMA", bytes(4)),
        (b"gAMA", struct.pack(">I", 2**31)),
        (b"cHRM", bytes(32)),
        (b"cHRM", bytes(8)),
        (b"cHRM", struct.pack(">8I", *[30_000] * 8)),
    ],
)
def test_gamma_and_primaries_that_are_none_are_said(chunk: tuple[bytes, bytes]) -> None:
    pixel, notes = opened(with_chunk(file_of("PNG"), chunk))
    assert pixel == RGB and "can't be followed" in notes[0]


def test_a_camera_that_says_adobe_rgb_without_a_profile_is_believed() -> None:
    def camera(space: int, interop: str | None) -> io.BytesIO:
        exif = Image.Exif()
        exif[0x8769] = {0xA001: space} | ({0xA005: {1: interop}} if interop else {})
        return file_of("JPEG", exif=exif)

    wanted = meant(RGB, ADOBE, lambda x: x**2.19921875)
    assert near(opened(camera(65535, "R03"))[0], wanted, 3) and near(opened(camera(2, None))[0], wanted, 3)
    assert near(opened(camera(1, "R98"))[0], RGB, 3) and near(opened(camera(65535, None))[0], RGB, 3)


@pytest.mark.parametrize(
    "codes, matrix", [((12, 13), P3), ((9, 13), BT2020), ((1, 13), PLAIN), ((1, 1), PLAIN), ((2, 2), PLAIN)]
)
def test_an_avif_without_a_profile_follows_its_code_points(codes: tuple[int, int], matrix: list) -> None:
    raw = file_of("AVIF").getvalue()
    at = raw.index(b"colrnclx") + 8
    changed = raw[:at] + struct.pack(">2H", *codes) + raw[at + 4 :]
    pixel, notes = opened(io.BytesIO(changed))
    assert near(pixel, meant(RGB, matrix, srgb_light), 3) and notes == ()
    hdr = raw[:at] + struct.pack(">2H", 9, 16) + raw[at + 4 :]
    assert "PQ" in opened(io.BytesIO(hdr))[1][0]


# Transparency by a colour.


def png_of(width: int, rows: list[bytes], depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG written here by hand."""
    file = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">2I5B", width, len(rows), depth, kind, 0, 0, 0)
    for name, content in (
        (b"IHDR", head),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ):
        file += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return io.BytesIO(file)


@pytest.mark.parametrize(
    "depth, kind, key, clear, solid",
    [
        (16, 0, b"\x12\x34", b"\x12\x34", b"\x12\x35"),
        (16, 2, b"\x12\x34\0\1\xff\xfe", b"\x12\x34\0\1\xff\xfe", b"\x12\x34\0\1\xff\xff"),
        (8, 0, b"\0\x12", b"\x12", b"\x13"),
        (8, 0, b"\7\x12", b"\x12", b"\x13"),
        (8, 2, b"\0\1\0\2\0\3", b"\1\2\3", b"\1\2\4"),
        (8, 3, b"\xff\0", b"\1", b"\0"),
        (8, 3, b"\xff\0\x80", b"\1", b"\0"),
        (16, 4, b"", b"\x12\x34\0\0", b"\x12\x34\xff\xff"),
        (16, 6, b"", b"\x12\x34" * 3 + b"\0\0", b"\x12\x34" * 3 + b"\xff\xff"),
        (4, 0, b"\0\3", b"\x33", b"\x44"),
        (2, 0, b"\0\1", b"\x55", b"\xaa"),
        (1, 0, b"\0\1", b"\xff", b"\x00"),
    ],
)
@pytest.mark.parametrize("profiled", [False, True])
def test_a_colour_that_stands_for_none_is_none_at_every_depth(
    depth: int, kind: int, key: bytes, clear: bytes, solid: bytes, profiled: bool
) -> None:
    per_byte = max(1, 8 // depth) if kind in (0, 3) and depth < 8 else 1
    rows = [clear * (32 // per_byte)] * 16 + [solid * (32 // per_byte)] * 16
    chunks = [(b"iCCP", packed(profile()))] if profiled else []
    chunks += [(b"PLTE", bytes((200, 0, 0, 0, 200, 0, 0, 0, 200)))] if kind == 3 else []
    chunks += [(b"tRNS", key)] if key else []
    file = png_of(32, rows, depth, kind, *chunks)
    alpha = numpy.asarray(opening.opacity(io.BytesIO(file.getvalue())))
    assert alpha[:16].max() == 0 and alpha[16:].min() == 255
    pixels = numpy.asarray(data.open_image(file, "#00ff00"))
    assert (pixels[:16] == (0, 255, 0)).all() and not (pixels[16:] == (0, 255, 0)).all(-1).any()


# Everywhere.


def folder_with(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(file_of("PNG", icc_profile=profile()).getvalue())
    (tmp_path / "b.png").write_bytes(file_of("PNG", icc_profile=b"broken").getvalue())
    frames = [Image.new("RGB", (32, 32), each) for each in ("red", "blue")]
    frames[0].save(tmp_path / "c.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "d.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "e.avif", save_all=True, append_images=frames[1:])
    for name in "abcde":
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    return tmp_path


def test_scan_and_check_name_each_picture_whose_profile_is_broken_or_that_moves(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    wanted = [
        "b.png has a colour profile that can't be read: the colours are used as they are.",
        "c.png, d.webp, e.avif have more than one frame: only the first is used.",
    ]
    assert scanning.scan_folder(folder, "data.folder", DataConfig(), CaptionsConfig(), "").problems == wanted
    assert [
        line for line in dataset_check.check(folder, DataConfig(), CaptionsConfig(), 32, 8).problems if " ha" in line
    ] == wanted


def test_training_likeness_and_thumbnails_see_the_same_colours(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    item = scanning.scan_folder(folder, "data.folder", DataConfig(), CaptionsConfig(), "").items[0]
    pixels = data.load_pixels(item, (32, 32), 0, False, "#ffffff")
    assert near(tuple(round(float(value)) for value in (pixels[:, 4, 4] + 1) * 127.5), RGB[::-1])
    album = likeness.Album([item], "#ffffff")
    assert album.names == ["a.png"]


def test_a_mask_is_not_a_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.mask.png"
    path.write_bytes(file_of("PNG", Image.new("L", (32, 32), 100), icc_profile=grey_profile(1.0)).getvalue())
    assert opening.open_mask(path).getpixel((3, 3)) == 100
    assert data.open_image(path).getpixel((3, 3)) != (100, 100, 100)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"cICP", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"iCCP"]), st.binary(max_size=40)),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None)
def test_any_tags_are_followed_or_said(chunks: list[tuple[bytes, bytes]]) -> None:
    try:
        opened(with_chunk(file_of("PNG"), *chunks))
    except DataError as error:
        assert "damaged" in str(error) or "is not a picture" in str(error)


def test_text_beside_the_pixels_says_nothing_of_colours() -> None:
    info = PngInfo()
    info.add_text("gamma", "1.0")
    assert opened(file_of("PNG", pnginfo=info))[0] == RGB


def test_a_heic_follows_its_profile_and_its_code_points() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    assert near(opened(file_of("HEIF", icc_profile=profile(), quality=-1))[0], RGB[::-1], 4)
    plain = file_of(
        "HEIF", quality=-1, color_primaries=12, transfer_characteristics=13, matrix_coefficients=6, full_range_flag=1
    )
    assert near(opened(plain)[0], meant(RGB, P3, srgb_light), 5)
