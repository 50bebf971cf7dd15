"""Colours as the picture's file means them: every profile against numbers worked out another way."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.colours import (
    P3,
    PLAIN,
    RGB,
    SRGB,
    cmyk_profile,
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
from trainer.data import colour, opening

# Profiles.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_profile_is_followed_in_every_format(kind: str) -> None:
    assert near(opened(file_of(kind, icc_profile=profile()))[0], RGB[::-1], 3)
    p3 = colour.profile_of((colour._PRIMARIES[12], colour._SRGB_CURVE))
    assert near(opened(file_of(kind, icc_profile=p3))[0], meant(RGB, P3, srgb_light), 4)


@pytest.mark.parametrize(
    "name, wanted",
    [("display_p3.png", (218, 0, 26)), ("swapped_profile.png", (40, 40, 200)), ("broken_profile.png", (200, 40, 40))],
)
def test_the_cases_of_another_program_are_read_as_they_are_meant(
    name: str, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    """Made by hand: the middle of a picture of (200, 40, 40), its profile and what littlecms makes of it."""
    raw = {
        "display_p3.png": colour.profile_of((colour._PRIMARIES[12], colour._SRGB_CURVE)),
        "swapped_profile.png": profile(),
        "broken_profile.png": b"not a profile",
    }[name]  # fmt: skip
    assert near(opened(file_of("PNG", Image.new("RGB", (40, 40), (200, 40, 40)), icc_profile=raw))[0], wanted, 1)


def test_a_profile_of_our_making_is_what_littlecms_makes_of_srgb() -> None:
    ours = ImageCms.ImageCmsProfile(io.BytesIO(colour.profile_of((colour._SRGB_PRIMARIES, colour._SRGB_CURVE)))).profile
    for primaries, other in (
        (ours.red_colorant, SRGB.profile.red_colorant),
        (ours.blue_colorant, SRGB.profile.blue_colorant),
    ):
        assert numpy.abs(numpy.array(primaries[0]) - numpy.array(other[0])).max() < 2e-4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "raw", [SRGB.tobytes(), colour.profile_of((colour._SRGB_PRIMARIES, colour._SRGB_CURVE))], ids=["littlecms", "ours"]
)
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
    pixel, notes = opened(io.BytesIO(lacking))
    assert near(pixel, RGB, 3) and "can't be read" in notes[0]


def test_a_profile_larger_than_a_megabyte_is_followed_in_a_png() -> None:
    raw = profile() + bytes(3 << 20)
    assert near(opened(file_of("PNG", icc_profile=struct.pack(">I", len(raw)) + raw[4:]))[0], RGB[::-1])


@pytest.mark.parametrize("raw", [b"not a profile", b"\0" * 200, profile()[:200], profile()[:132]])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_a_broken_profile_leaves_the_colours_and_is_said(kind: str, raw: bytes) -> None:
    pixel, notes = opened(file_of(kind, icc_profile=raw))
    assert (
        near(pixel, RGB, 3)
        and len(notes) == 1
        and "colour profile that can't be read: the colours are used as they are" in notes[0]
    )


def test_a_profile_whose_text_does_not_unpack_is_said() -> None:
    pixel, notes = opened(with_chunk(file_of("PNG"), (b"iCCP", b"x\0\0not zlib")))
    assert pixel == RGB and "can't be read" in notes[0]


@pytest.mark.parametrize("mode, pixel", [("L", 100), ("LA", (100, 200))])
def test_a_grey_profile_is_followed(mode: str, pixel: object) -> None:
    colour, notes = opened(file_of("PNG", Image.new(mode, (32, 32), pixel), icc_profile=grey_profile(1.0)))
    wanted = meant((100, 100, 100), PLAIN, lambda value: value)
    assert near(colour, [*wanted, 200] if mode == "LA" else wanted) and notes == ()


def test_an_rgb_profile_of_a_grey_picture_is_followed_and_a_grey_one_of_an_rgb_picture_is_said() -> None:
    linear = profile(colour._SRGB_PRIMARIES, (1.0,))
    assert near(
        opened(file_of("PNG", Image.new("L", (32, 32), 100), icc_profile=linear))[0],
        meant((100, 100, 100), PLAIN, lambda value: value),
    )
    pixel, notes = opened(file_of("PNG", icc_profile=grey_profile(1.0)))
    assert pixel == RGB and "for GRAY pictures" in notes[0]


def test_a_cmyk_profile_is_followed_and_one_for_other_inks_is_said() -> None:
    inks = {(255, 0, 0, 0): (255, 0, 0), (0, 0, 0, 0): (255, 255, 255), (0, 0, 0, 255): (0, 0, 0)}
    for pixel, wanted in inks.items():
        assert near(
            opened(file_of("JPEG", Image.new("CMYK", (32, 32), pixel), icc_profile=cmyk_profile()))[0], wanted, 9
        )  # Lab in bytes is coarse
    colour, notes = opened(file_of("JPEG", Image.new("CMYK", (32, 32), (255, 0, 0, 0)), icc_profile=profile()))
    assert len(colour) == 4 and "for RGB pictures" in notes[0]


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
    opened_image, _ = opening.open_whole(file_of("PNG", image, icc_profile=profile(), **options))
    assert near(opened_image.getpixel((3, 3)), (*RGB[::-1], 255)) and opened_image.getpixel((20, 3))[3] == 0
    assert opening.flat(opened_image, "#00ff00").getpixel((20, 3)) == (0, 255, 0)


def test_exif_still_turns_a_picture_with_a_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        assert opening.open_whole(file_of(kind, Image.new("RGB", (40, 20), RGB), exif=exif, icc_profile=profile()))[
            0
        ].size == (20, 40)


@given(
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=8),
    st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_damage_to_a_profile_is_followed_or_said(changes: list[tuple[int, int]], kind: str, printer: bool) -> None:
    raw = bytearray(cmyk_profile() if printer else profile())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    opened(file_of(kind, icc_profile=bytes(raw)))
