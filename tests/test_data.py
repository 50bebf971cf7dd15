"""Folders as artists have them: what is wrong with a file is said, and never stops the others."""

import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import data
from trainer.config import DataConfig
from trainer.errors import DataError


def picture(path: Path, size: tuple[int, int] = (40, 30), caption: str | None = "a thing", **save) -> Path:
    Image.new("RGB", size, (200, 30, 30)).save(path, **save)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Two good pictures among everything that goes wrong."""
    picture(tmp_path / "good.png")
    picture(tmp_path / "fine.webp")
    cut = picture(tmp_path / "cut.jpg", (300, 300), quality=95)
    cut.write_bytes(cut.read_bytes()[:1000])
    (tmp_path / "words.png").write_text("I am no picture")
    (tmp_path / "words.txt").write_text("a caption")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "empty.txt").write_text("a caption")
    picture(tmp_path / "silent.png", caption=None)
    (tmp_path / "alone.txt").write_text("a caption of nothing")
    return tmp_path


def test_one_message_names_every_bad_file_and_says_what_was_done(messy: Path) -> None:
    dataset = data.scan(DataConfig(folder=str(messy)))
    assert [item.path.name for item in dataset.items] == ["fine.webp", "good.png"]
    for name, said in {
        "cut.jpg": "cut short",
        "words.png": "not a picture",
        "empty.png": "0 bytes",
        "silent.png": "no caption",
        "alone.txt": "without a picture",
    }.items():
        line = next(line for line in dataset.message.splitlines() if line.strip().startswith(name))
        assert said in line and ("left out" in line or "not used" in line)
    assert len(dataset.problems) == 5


def test_a_picture_without_caption_takes_the_trigger(messy: Path) -> None:
    dataset = data.scan(DataConfig(folder=str(messy), trigger="mokka"))
    assert {item.path.name: item.caption for item in dataset.items}["silent.png"] == "mokka"
    assert {item.path.name: item.caption for item in dataset.items}["good.png"] == "mokka, a thing"


@pytest.mark.parametrize("make", [lambda folder: folder / "nowhere", lambda folder: picture(folder / "a.png")])
def test_a_folder_that_is_none_is_refused_by_its_field(tmp_path: Path, make) -> None:
    with pytest.raises(DataError, match="data.folder is .*must be a folder"):
        data.scan(DataConfig(folder=str(make(tmp_path))))


def test_a_folder_without_a_usable_picture_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)nothing can be used.*x\.png is empty"):
        data.scan(DataConfig(folder=str(tmp_path)))


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


def test_the_digest_changes_with_picture_and_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    config = DataConfig(folder=str(tmp_path))
    first = data.scan(config).digest
    (tmp_path / "a.txt").write_text("another thing")
    assert data.scan(config).digest != first


def test_pixels_are_centred_square_and_in_range(tmp_path: Path) -> None:
    pixels = data.load_pixels(picture(tmp_path / "a.png", (100, 40)), 64, False)
    assert pixels.shape == (3, 64, 64) and float(pixels.min()) >= -1 and float(pixels.max()) <= 1
    assert abs(float(pixels[0].mean()) - (200 / 127.5 - 1)) < 0.02


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 24), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


WHOLE = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF")}


@given(st.sampled_from(sorted(WHOLE)), st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_any_damage_to_a_picture_is_read_or_refused_in_words(kind: str, changes: list[tuple[int, int]], cut: int) -> None:
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


def test_a_file_that_is_no_picture_of_ours_is_named_and_its_caption_is_not_blamed(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    picture(tmp_path / "old.bmp")
    problems = data.scan(DataConfig(folder=str(tmp_path))).problems
    assert problems == ["old.bmp is no PNG, JPEG, WebP or AVIF: left out."]


def test_a_name_that_is_no_text_has_a_digest(tmp_path: Path) -> None:
    import os

    picture(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/b\xe9.png")
    os.rename(os.fsencode(tmp_path / "a.txt"), os.fsencode(tmp_path) + b"/b\xe9.txt")
    assert len(data.scan(DataConfig(folder=str(tmp_path))).digest) == 64
