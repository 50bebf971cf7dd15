"""Colours as the picture's file means them: every profile and tag against numbers worked out another way."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from trainer import data
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import colour, dataset_check, likeness, opening, scanning
from trainer.errors import DataError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# Linear light to linear sRGB, as CSS Color 4 prints them (W3C, section 19).
P3 = [[1.2249401763, -0.2249401763, 0], [-0.0420569547, 1.0420569547, 0], [-0.0196375546, -0.0786360456, 1.0982736001]]
BT2020 = [[1.6604910021, -0.5876411388, -0.0728498633], [-0.1245504745, 1.1328998971, -0.0083494226], [-0.0181507634, -0.1005788980, 1.1187296614]]
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
    found = (numpy.array(matrix) @ light(numpy.array(pixel[:3]) / 255)).clip(0, 1)
    return [round(255 * float(one)) for one in numpy.where(found <= 0.0031308, 12.92 * found, 1.055 * found ** (1 / 2.4) - 0.055)]


def near(found: tuple[int, ...], wanted: list[int] | tuple[int, ...], by: int = 2) -> bool:
    return len(found) == len(wanted) and all(abs(one - other) <= by for one, other in zip(found, wanted, strict=True))


def file_of(kind: str, image: Image.Image | None = None, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    best: dict[str, object] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(
        kind, {}
    )
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


# Profiles.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_profile_is_followed_in_every_format(kind: str) -> None:
    assert near(opened(file_of(kind, icc_profile=profile()))[0], RGB[::-1], 3)
    p3 = colour.profile_of((colour._PRIMARIES[12], colour._SRGB_CURVE))
    assert near(opened(file_of(kind, icc_profile=p3))[0], meant(RGB, P3, srgb_light), 4)


@pytest.mark.parametrize("name, wanted", [("display_p3.png", (218, 0, 26)), ("swapped_profile.png", (40, 40, 200)), ("broken_profile.png", (200, 40, 40))])
def test_the_cases_of_another_program_are_read_as_they_are_meant(name: str, wanted: tuple[int, ...], tmp_path: Path) -> None:
    """Made by hand: the middle of a picture of (200, 40, 40), its profile and what littlecms makes of it."""
    raw = {
        "display_p3.png": colour.profile_of((colour._PRIMARIES[12], colour._SRGB_CURVE)), "swapped_profile.png": profile(),
        "broken_profile.png": b"not a profile",
    }[name]  # fmt: skip
    assert near(opened(file_of("PNG", Image.new("RGB", (40, 40), (200, 40, 40)), icc_profile=raw))[0], wanted, 1)


def test_a_profile_of_our_making_is_what_littlecms_makes_of_srgb() -> None:
    ours = ImageCms.ImageCmsProfile(io.BytesIO(colour.profile_of((colour._SRGB_PRIMARIES, colour._SRGB_CURVE)))).profile
    for one, other in ((ours.red_colorant, SRGB.profile.red_colorant), (ours.blue_colorant, SRGB.profile.blue_colorant)):
        assert numpy.abs(numpy.array(one[0]) - numpy.array(other[0])).max() < 2e-4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("raw", [SRGB.tobytes(), colour.profile_of((colour._SRGB_PRIMARIES, colour._SRGB_CURVE))], ids=["littlecms", "ours"])
def test_an_srgb_profile_changes_no_byte(kind: str, raw: bytes) -> None:
    noise = Image.effect_noise((40, 40), 90).convert("RGB")
    plain, marked = file_of(kind, noise), file_of(kind, noise, icc_profile=raw)
    assert data.open_image(marked).tobytes() == data.open_image(plain).tobytes()


def test_a_profile_in_several_segments_of_a_jpeg_is_whole_and_one_that_lacks_a_part_is_said() -> None:
    raw = profile() + bytes(200_000)
    raw = struct.pack(">I", len(raw)) + raw[4:]
    file = file_of("JPEG", icc_profile=raw)
    assert file.getvalue().count(b"ICC_PROFILE\0") == 4 and near(opened(file)[0], RGB[::-1], 3)
    lacking = file.getvalue().replace(b"ICC_PROFILE\0\x02\x04", b"ICC_PROFIL_\0\x02\x04")
    found, notes = opened(io.BytesIO(lacking))
    assert near(found, RGB, 3) and "can't be read" in notes[0]


def test_a_profile_larger_than_a_megabyte_is_followed_in_a_png() -> None:
    raw = profile() + bytes(3 << 20)
    assert near(opened(file_of("PNG", icc_profile=struct.pack(">I", len(raw)) + raw[4:]))[0], RGB[::-1])


@pytest.mark.parametrize("raw", [b"not a profile", b"\0" * 200, profile()[:200], profile()[:132]])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_broken_profile_leaves_the_colours_and_is_said(kind: str, raw: bytes) -> None:
    found, notes = opened(file_of(kind, icc_profile=raw))
    assert near(found, RGB, 3) and len(notes) == 1 and "colour profile that can't be read: the colours are used as they are" in notes[0]


def test_a_profile_whose_text_does_not_unpack_is_said() -> None:
    found, notes = opened(with_chunk(file_of("PNG"), (b"iCCP", b"x\0\0not zlib")))
    assert found == RGB and "can't be read" in notes[0]


def grey_profile(gamma: float) -> bytes:
    """A grey profile made here by hand (ICC.1:2010): white point and a curve of one gamma."""
    curve = struct.pack(">4sIHH i", b"para", 0, 0, 0, round(gamma * 65536))
    white = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, len(curve))
    head = struct.pack(">I4sI4s4s4s12s4s28s3i", 156 + 20 + len(curve), b"", 0x04300000, b"mntr", b"GRAY", b"XYZ ", b"", b"acsp", b"", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + white + curve


def cmyk_profile() -> bytes:
    """A printer whose cyan ink is sRGB's red and whose other inks are black, by a table of two levels an ink (ICC.1:2010, lut8Type)."""
    red, white, black = (136, 208, 195), (255, 128, 128), (0, 128, 128)  # Lab as bytes: L * 2.55, a + 128, b + 128
    grid = [white if not any(inks) else red if inks == (1, 0, 0, 0) else black for inks in numpy.ndindex(2, 2, 2, 2)]
    ramp = bytes(range(256))
    lut = struct.pack(">4sI4B9i", b"mft1", 0, 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536) + ramp * 4 + bytes(sum(grid, ())) + ramp * 3
    white_point = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"A2B0", 176, len(lut))
    head = struct.pack(">I4sI4s4s4s12s4s28s3i", 176 + len(lut), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ", b"", b"acsp", b"", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + white_point + lut


@pytest.mark.parametrize("mode, pixel", [("L", 100), ("LA", (100, 200))])
def test_a_grey_profile_is_followed(mode: str, pixel: object) -> None:
    found, notes = opened(file_of("PNG", Image.new(mode, (32, 32), pixel), icc_profile=grey_profile(1.0)))
    wanted = meant((100, 100, 100), PLAIN, lambda value: value)
    assert near(found, [*wanted, 200] if mode == "LA" else wanted) and notes == ()


def test_an_rgb_profile_of_a_grey_picture_is_followed_and_a_grey_one_of_an_rgb_picture_is_said() -> None:
    linear = profile(colour._SRGB_PRIMARIES, (1.0,))
    assert near(opened(file_of("PNG", Image.new("L", (32, 32), 100), icc_profile=linear))[0], meant((100, 100, 100), PLAIN, lambda value: value))
    found, notes = opened(file_of("PNG", icc_profile=grey_profile(1.0)))
    assert found == RGB and "for GRAY pictures" in notes[0]


def test_a_cmyk_profile_is_followed_and_one_for_other_inks_is_said() -> None:
    inks = {(255, 0, 0, 0): (255, 0, 0), (0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for pixel, wanted in inks.items():
        assert near(opened(file_of("JPEG", Image.new("CMYK", (32, 32), pixel), icc_profile=cmyk_profile()))[0], wanted, 9)  # Lab in bytes is coarse
    found, notes = opened(file_of("JPEG", Image.new("CMYK", (32, 32), (255, 0, 0, 0)), icc_profile=profile()))
    assert len(found) == 4 and "for RGB pictures" in notes[0]


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_kept_where_a_profile_is_followed(mode: str) -> None:
    image = Image.new("RGBA", (32, 32), (*RGB, 255))
    image.paste((*RGB, 0), (16, 0, 32, 32))
    options: dict[str, object] = {}
    if mode == "P":
        image = Image.new("P", (32, 32), 0)
        image.putpalette([*RGB, 9, 9, 9])
        image.paste(1, (16, 0, 32, 32))
        options = {"transparency": 1}
    found, _ = opening.open_whole(file_of("PNG", image, icc_profile=profile(), **options))
    assert near(found.getpixel((3, 3)), (*RGB[::-1], 255)) and found.getpixel((20, 3))[3] == 0
    assert opening.flat(found, "#00ff00").getpixel((20, 3)) == (0, 255, 0)


def test_exif_still_turns_a_picture_with_a_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert opening.open_whole(file_of(kind, Image.new("RGB", (40, 20), RGB), exif=exif, icc_profile=profile()))[0].size == (20, 40)


# Tags without a profile.


CODES = {
    (12, 13): (P3, srgb_light), (9, 13): (BT2020, srgb_light), (9, 1): (BT2020, bt709_light), (9, 14): (BT2020, bt709_light), (9, 8): (BT2020, lambda x: x),
    (12, 4): (P3, lambda x: x**2.2), (1, 8): (PLAIN, lambda x: x), (1, 5): (PLAIN, lambda x: x**2.8), (1, 13): (PLAIN, srgb_light),
}  # fmt: skip


@pytest.mark.parametrize("codes", CODES, ids=str)
def test_cicp_is_followed(codes: tuple[int, int]) -> None:
    found, notes = opened(with_chunk(file_of("PNG"), (b"cICP", bytes((*codes, 0, 1)))))
    assert near(found, meant(RGB, *CODES[codes])) and notes == ()


@pytest.mark.parametrize(
    "raw, said", [((9, 16, 0, 1), "PQ"), ((9, 18, 0, 1), "HLG"), ((1, 13, 1, 1), "code points"), ((77, 13, 0, 1), "code points"), ((1, 13, 0, 0), "code")]
)
def test_a_cicp_that_cannot_be_followed_is_said(raw: tuple[int, ...], said: str) -> None:
    found, notes = opened(with_chunk(file_of("PNG"), (b"cICP", bytes(raw))))
    assert found == RGB and len(notes) == 1 and said in notes[0] and "used as they are" in notes[0]


def packed(raw: bytes) -> bytes:
    return b"icc\0\0" + zlib.compress(raw)


SWAPPED_CHUNK = (b"cHRM", struct.pack(">8I", *(round(100_000 * one) for one in SWAPPED)))


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
def test_of_several_tags_the_one_that_the_specification_names_first_is_followed(chunks: list[tuple[bytes, bytes]], wanted: tuple[int, ...]) -> None:
    found, notes = opened(with_chunk(file_of("PNG"), *chunks))
    assert near(found, wanted) and notes == ()


@pytest.mark.parametrize(
    "chunk", [(b"gAMA", bytes(4)), (b"gAMA", struct.pack(">I", 2**31)), (b"cHRM", bytes(32)), (b"cHRM", bytes(8)), (b"cHRM", struct.pack(">8I", *[30_000] * 8))]
)
def test_gamma_and_primaries_that_are_none_are_said(chunk: tuple[bytes, bytes]) -> None:
    found, notes = opened(with_chunk(file_of("PNG"), chunk))
    assert found == RGB and "can't be followed" in notes[0]


def test_a_camera_that_says_adobe_rgb_without_a_profile_is_believed() -> None:
    def camera(space: int, interop: str | None) -> io.BytesIO:
        exif = Image.Exif()
        exif[0x8769] = {0xA001: space} | ({0xA005: {1: interop}} if interop else {})
        return file_of("JPEG", exif=exif)

    wanted = meant(RGB, ADOBE, lambda x: x**2.19921875)
    assert near(opened(camera(65535, "R03"))[0], wanted, 3) and near(opened(camera(2, None))[0], wanted, 3)
    assert near(opened(camera(1, "R98"))[0], RGB, 3) and near(opened(camera(65535, None))[0], RGB, 3)


@pytest.mark.parametrize("codes, matrix", [((12, 13), P3), ((9, 13), BT2020), ((1, 13), PLAIN), ((1, 1), PLAIN), ((2, 2), PLAIN)])
def test_an_avif_without_a_profile_follows_its_code_points(codes: tuple[int, int], matrix: list) -> None:
    raw = file_of("AVIF").getvalue()
    at = raw.index(b"colrnclx") + 8
    changed = raw[:at] + struct.pack(">2H", *codes) + raw[at + 4 :]
    found, notes = opened(io.BytesIO(changed))
    assert near(found, meant(RGB, matrix, srgb_light), 3) and notes == ()
    hdr = raw[:at] + struct.pack(">2H", 9, 16) + raw[at + 4 :]
    assert "PQ" in opened(io.BytesIO(hdr))[1][0]


# Transparency by a colour.


def png_of(width: int, rows: list[bytes], depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """A PNG written here by hand."""
    file = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">2I5B", width, len(rows), depth, kind, 0, 0, 0)
    for name, content in ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")):
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
def test_a_colour_that_stands_for_none_is_none_at_every_depth(depth: int, kind: int, key: bytes, clear: bytes, solid: bytes, profiled: bool) -> None:
    per_byte = max(1, 8 // depth) if kind in (0, 3) and depth < 8 else 1
    rows = [clear * (32 // per_byte)] * 16 + [solid * (32 // per_byte)] * 16
    chunks = [(b"iCCP", packed(profile()))] if profiled else []
    chunks += [(b"PLTE", bytes((200, 0, 0, 0, 200, 0, 0, 0, 200)))] if kind == 3 else []
    chunks += [(b"tRNS", key)] if key else []
    file = png_of(32, rows, depth, kind, *chunks)
    alpha = numpy.asarray(opening.opacity(io.BytesIO(file.getvalue())))
    assert alpha[:16].max() == 0 and alpha[16:].min() == 255
    found = numpy.asarray(data.open_image(file, "#00ff00"))
    assert (found[:16] == (0, 255, 0)).all() and not (found[16:] == (0, 255, 0)).all(-1).any()


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
    assert [line for line in dataset_check.check(folder, DataConfig(), CaptionsConfig(), 32, 8).problems if " ha" in line] == wanted


def test_training_likeness_and_thumbnails_see_the_same_colours(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    item = scanning.scan_folder(folder, "data.folder", DataConfig(), CaptionsConfig(), "").items[0]
    pixels = data.load_pixels(item, (32, 32), 0, False, "#ffffff")
    assert near(tuple(round(float(one)) for one in (pixels[:, 4, 4] + 1) * 127.5), RGB[::-1])
    album = likeness.Album([item], "#ffffff")
    assert album.names == ["a.png"]


def test_a_mask_is_not_a_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.mask.png"
    path.write_bytes(file_of("PNG", Image.new("L", (32, 32), 100), icc_profile=grey_profile(1.0)).getvalue())
    assert opening.open_mask(path).getpixel((3, 3)) == 100
    assert data.open_image(path).getpixel((3, 3)) != (100, 100, 100)


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8), st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_damage_to_a_profile_is_followed_or_said(changes: list[tuple[int, int]], kind: str, printer: bool) -> None:
    raw = bytearray(cmyk_profile() if printer else profile())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    opened(file_of(kind, icc_profile=bytes(raw)))


@given(st.lists(st.tuples(st.sampled_from([b"cICP", b"gAMA", b"cHRM", b"sRGB", b"tRNS", b"iCCP"]), st.binary(max_size=40)), max_size=4))
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
    plain = file_of("HEIF", quality=-1, color_primaries=12, transfer_characteristics=13, matrix_coefficients=6, full_range_flag=1)
    assert near(opened(plain)[0], meant(RGB, P3, srgb_light), 5)
