"""Pictures and masks as they are trained on: turned, cut, transparent, masked, of every format, damaged."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.folders import config, item, picture
from trainer import data
from trainer.errors import DataError


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert data.open_image(picture(tmp_path / "turned.jpg", (40, 20), exif=exif)).size == (20, 40)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert data.open_image(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="9000 x 9000"):
        data.open_image(tmp_path / "bomb.png")


def test_pixels_cover_the_bucket_and_are_in_range(tmp_path: Path) -> None:
    pixels = data.load_pixels(item(picture(tmp_path / "a.png", (100, 40))), (64, 48), 0, False, "#ffffff")
    assert pixels.shape == (3, 48, 64) and float(pixels.min()) >= -1 and float(pixels.max()) <= 1
    assert abs(float(pixels[0].mean()) - (200 / 127.5 - 1)) < 0.02


@pytest.mark.parametrize(
    "size, bucket", [((300, 100), (64, 64)), ((100, 300), (64, 64)), ((200, 180), (96, 48)), ((40, 30), (64, 64))]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_is_framed_as_its_picture_is_in_every_cut(
    tmp_path: Path, size: tuple[int, int], bucket: tuple[int, int], mirrored: bool
) -> None:
    grey = Image.effect_noise(size, 200).resize((9, 9)).resize(size, Image.Resampling.BICUBIC)
    grey.convert("RGB").save(tmp_path / "a.png")
    grey.save(tmp_path / "a.mask.png")
    masked = item(tmp_path / "a.png", mask=tmp_path / "a.mask.png")
    views = []
    for cut in range(5):
        pixels, mask = (
            data.load_pixels(masked, bucket, cut, mirrored, "#ffffff"),
            data.load_mask(masked, bucket, cut, mirrored),
        )
        assert mask.shape == (1, bucket[1], bucket[0]) and float(mask.min()) >= 0 and float(mask.max()) <= 1
        assert float((pixels[0] / 2 + 0.5 - mask[0]).abs().max()) < 0.08  # Lanczos against bilinear
        views.append(pixels.numpy().tobytes())
    slack = size[0] * bucket[1] != size[1] * bucket[0]
    assert len(set(views)) == (5 if slack else 1)


def test_the_first_and_last_cut_show_both_ends(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (0, 0, 0))
    image.paste((255, 0, 0), (0, 0, 100, 100))
    image.paste((0, 0, 255), (200, 0, 300, 100))
    image.save(tmp_path / "a.png")
    means = [
        data.load_pixels(item(tmp_path / "a.png"), (64, 64), cut, False, "#ffffff").mean((1, 2)).tolist()
        for cut in (0, 1, 4)
    ]
    assert means == [
        pytest.approx([-1, -1, -1], abs=0.03),
        pytest.approx([1, -1, -1], abs=0.03),
        pytest.approx([-1, -1, 1], abs=0.03),
    ]


def test_transparency_is_laid_on_the_chosen_colour_and_can_be_the_mask(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 40), (200, 30, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 40))
    image.save(tmp_path / "half.png")
    (tmp_path / "half.txt").write_text("a thing")
    picture(tmp_path / "whole.png")
    dataset = data.scan(config(tmp_path, mask="alpha"))
    half, whole = dataset.items
    assert (half.mask, half.mask_sha256, whole.mask) == (half.path, half.sha256, None)
    assert dataset.problems == ["1 of 2 pictures have no mask (whole.png): trained whole."]
    mask = data.load_mask(half, (32, 32), 0, False)
    assert float(mask[0, :, :14].max()) == 0 and float(mask[0, :, 18:].min()) == 1
    assert data.load_pixels(half, (32, 32), 0, False, "#00ff00")[:, 5, 5].tolist() == [-1, 1, -1]
    assert float(data.load_mask(whole, (32, 16), 0, False).min()) == 1


def test_a_sixteen_bit_grey_picture_is_not_white(tmp_path: Path) -> None:
    import numpy

    ramp = numpy.linspace(0, 65535, 32 * 32).astype(numpy.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels = numpy.asarray(data.open_image(tmp_path / "deep.png"))
    assert numpy.abs(pixels[..., 0].astype(int) - ramp // 256).max() == 0


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


KINDS = ["PNG", "JPEG", "WEBP", "AVIF"]
if importlib.util.find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    KINDS.append("HEIF")
WHOLE = {kind: encoded(kind) for kind in KINDS}


@given(
    st.sampled_from(sorted(WHOLE)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.integers(0, 10_000),
)
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_picture_is_read_or_refused_in_words(
    kind: str, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(WHOLE[kind])
    for at, byte in changes:
        content[at % len(content)] = byte
    try:
        assert data.open_image(io.BytesIO(bytes(content[: 1 + cut % len(content)]))).mode == "RGB"
    except DataError as error:
        assert str(error)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@given(st.binary(max_size=120), st.sampled_from(["JPEG", "WEBP", "PNG"]))
@settings(max_examples=150, deadline=None)
def test_any_exif_is_read_or_passed_over(exif: bytes, kind: str) -> None:
    buffer = io.BytesIO()
    whole = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00\x12\x01" + exif
    Image.new("RGB", (20, 20)).save(buffer, kind, exif=whole)
    assert data.open_image(io.BytesIO(buffer.getvalue())).size == (20, 20)


# Masks.


def test_masks_lie_beside_the_picture_or_in_the_mask_folder_and_are_no_pictures(tmp_path: Path) -> None:
    own, masks = tmp_path / "own", tmp_path / "masks"
    (own / "sub").mkdir(parents=True)
    (masks / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.png", "sub/c.png", "whole.png"):
        picture(own / name)
    Image.new("L", (40, 30), 255).save(own / "a.mask.png")
    dataset = data.scan(config(own, mask="file"))
    assert [(item.path.name, item.mask and item.mask.name) for item in dataset.items] == [
        ("a.jpg", "a.mask.png"), ("b.png", None), ("c.png", None), ("whole.png", None),
    ]  # fmt: skip
    assert dataset.problems == ["3 of 4 pictures have no mask (b.png, sub/c.png, whole.png): trained whole."]
    Image.new("1", (40, 30), 1).save(masks / "b.jpg")
    Image.new("RGBA", (40, 30), (255, 255, 255, 128)).save(masks / "sub" / "c.webp")
    items = {item.path.name: item for item in data.scan(config(own, mask="file", mask_folder=str(masks))).items}
    assert {name: scanned.mask and scanned.mask.name for name, scanned in items.items()} == {
        "a.jpg": "a.mask.png",
        "b.png": "b.jpg",
        "c.png": "c.webp",
        "whole.png": None,
    }
    assert float(data.load_mask(items["c.png"], (32, 32), 0, False).mean()) == pytest.approx(128 / 255, abs=0.01)


def test_a_mask_that_does_not_fit_or_open_is_named_and_its_picture_left_out(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "turned.jpg", (40, 30), exif=exif)
    Image.new("L", (30, 40), 255).save(tmp_path / "turned.mask.png")
    picture(tmp_path / "wrong.jpg")
    Image.new("L", (30, 40), 255).save(tmp_path / "wrong.mask.png")
    picture(tmp_path / "broken.jpg")
    (tmp_path / "broken.mask.png").write_text("no mask")
    picture(tmp_path / "black.jpg")
    Image.new("L", (40, 30), 0).save(tmp_path / "black.mask.png")
    dataset = data.scan(config(tmp_path, mask="file"))
    assert [item.path.name for item in dataset.items] == ["black.jpg", "turned.jpg"]
    assert any(
        line.startswith("wrong.jpg is 40 x 30 pixels, but its mask wrong.mask.png is 30 x 40")
        for line in dataset.problems
    )
    assert any(
        line.startswith("broken.jpg has a mask broken.mask.png that is not a picture") for line in dataset.problems
    )
    assert any(line.startswith("black.jpg has a mask that is black") for line in dataset.problems)


def test_a_mask_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="data.mask_folder is .*does not exist"):
        data.scan(config(tmp_path, mask="file", mask_folder=str(tmp_path / "nowhere")))


# Formats and turning.


@pytest.mark.skipif("HEIF" not in WHOLE, reason="pillow-heif is an extra")
def test_heic_is_read_where_its_library_is(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(WHOLE["HEIF"])
    assert data.scan(config(tmp_path, trigger="mokka")).items[0].width_px == 24


def test_heic_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data.opening._formats.cache_clear()
    try:
        assert data.scan(config(tmp_path)).problems == [
            "a.heic is a HEIC picture; install velatura[heic] to read it: left out."
        ]
    finally:
        data.opening._formats.cache_clear()


def test_complaint_22_exif_rotation_silently_ignored(tmp_path: Path) -> None:
    """The size, the pixels and the bucket are those of the picture as it is looked at."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image = Image.new("RGB", (400, 200), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 200, 200))
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "turned.txt").write_text("a thing")
    item = data.scan(config(tmp_path)).items[0]
    assert (item.width_px, item.height_px) == (200, 400)
    pixels = data.load_pixels(item, (32, 64), 0, False, "#ffffff")
    assert float(pixels[:, :30].mean()) > 0.95 and float(pixels[:, 34:].mean()) < -0.95
