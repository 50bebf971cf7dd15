"""Folders as artists have them: what is wrong with a file is said, and never stops the others."""

import importlib.util
import io
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import data, files
from trainer.config import TrainConfig
from trainer.errors import ConfigError, DataError


def config(folder: Path | str, captions: dict[str, object] | None = None, **values: object) -> TrainConfig:
    return TrainConfig(family="sd", base="imprimatura", adapter={"method": "lora"}, data={"folder": str(folder), **values}, captions=captions or {})


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
    dataset = data.scan(config(messy))
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
    dataset = data.scan(config(messy, trigger="mokka"))
    assert {item.path.name: item.caption for item in dataset.items}["silent.png"] == "mokka"
    assert {item.path.name: item.caption for item in dataset.items}["good.png"] == "mokka, a thing"


@pytest.mark.parametrize("make", [lambda folder: folder / "nowhere", lambda folder: picture(folder / "a.png")])
def test_a_folder_that_is_none_is_refused_by_its_field(tmp_path: Path, make) -> None:
    with pytest.raises(DataError, match="data.folder is .*must be a folder"):
        data.scan(config(make(tmp_path)))


def test_a_folder_without_a_usable_picture_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)nothing can be used.*x\.png is empty"):
        data.scan(config(tmp_path))


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


def test_the_digest_changes_with_all_that_changes_training(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "reg").mkdir()
    picture(tmp_path / "reg" / "r.png", caption="a cat")
    plain = picture(tmp_path / "set" / "a.png")
    Image.new("L", (40, 30), 255).save(tmp_path / "set" / "a.mask.png")
    settings: list[dict[str, object]] = [
        {}, {"repeats": ("*=2",)}, {"weights": ("*=0.5",)}, {"mask": "file"}, {"trigger": "mokka"},
        {"regularisation": str(tmp_path / "reg")}, {"regularisation": str(tmp_path / "reg"), "regularisation_weight": 0.5},
    ]  # fmt: skip
    found = {data.scan(config(plain.parent, **values)).digest for values in settings}
    assert len(found) == len(settings)
    Image.new("L", (40, 30), 200).save(tmp_path / "set" / "a.mask.png")
    assert data.scan(config(plain.parent, mask="file")).digest not in found


def test_the_digest_changes_with_picture_and_caption(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    first = data.scan(config(tmp_path)).digest
    (tmp_path / "a.txt").write_text("another thing")
    second = data.scan(config(tmp_path)).digest
    picture(tmp_path / "a.png", (41, 30), caption=None)
    assert len({first, second, data.scan(config(tmp_path)).digest}) == 3


def item(path: Path, **values: object) -> data.Item:
    width, height = data.open_image(path).size
    return data.Item(path, ("a thing",), files.sha256(path), width, height, **values)


def test_pixels_cover_the_bucket_and_are_in_range(tmp_path: Path) -> None:
    pixels = data.load_pixels(item(picture(tmp_path / "a.png", (100, 40))), (64, 48), 0, False, "#ffffff")
    assert pixels.shape == (3, 48, 64) and float(pixels.min()) >= -1 and float(pixels.max()) <= 1
    assert abs(float(pixels[0].mean()) - (200 / 127.5 - 1)) < 0.02


@pytest.mark.parametrize("size, bucket", [((300, 100), (64, 64)), ((100, 300), (64, 64)), ((200, 180), (96, 48)), ((40, 30), (64, 64))])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mask_is_framed_as_its_picture_is_in_every_cut(tmp_path: Path, size: tuple[int, int], bucket: tuple[int, int], mirrored: bool) -> None:
    grey = Image.effect_noise(size, 200).resize((9, 9)).resize(size, Image.Resampling.BICUBIC)
    grey.convert("RGB").save(tmp_path / "a.png")
    grey.save(tmp_path / "a.mask.png")
    one = item(tmp_path / "a.png", mask=tmp_path / "a.mask.png")
    views = []
    for cut in range(5):
        pixels, mask = data.load_pixels(one, bucket, cut, mirrored, "#ffffff"), data.load_mask(one, bucket, cut, mirrored)
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
    means = [data.load_pixels(item(tmp_path / "a.png"), (64, 64), cut, False, "#ffffff").mean((1, 2)).tolist() for cut in (0, 1, 4)]
    assert means == [pytest.approx([-1, -1, -1], abs=0.03), pytest.approx([1, -1, -1], abs=0.03), pytest.approx([-1, -1, 1], abs=0.03)]


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
    found = numpy.asarray(data.open_image(tmp_path / "deep.png"))
    assert numpy.abs(found[..., 0].astype(int) - ramp // 256).max() == 0


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
    problems = data.scan(config(tmp_path)).problems
    assert problems == ["old.bmp is no PNG, JPEG, WebP or AVIF: left out."]


def test_a_name_that_is_no_text_has_a_digest(tmp_path: Path) -> None:
    import os

    picture(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/b\xe9.png")
    os.rename(os.fsencode(tmp_path / "a.txt"), os.fsencode(tmp_path) + b"/b\xe9.txt")
    assert len(data.scan(config(tmp_path)).digest) == 64


# Captions.


def captions_of(dataset: data.Dataset) -> dict[str, tuple[str, ...]]:
    return {item.path.name: item.captions for item in dataset.items}


def test_complaint_13_captions_not_read_a_caption_file_ending_in_caption_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / "a.caption").write_text("a thing")
    assert data.scan(config(tmp_path)).items[0].caption == "a thing"


@pytest.mark.parametrize(
    "name, said",
    [("a.TXT", "ends in .txt, in small letters"), ("a.png.txt", "a caption is called a.txt"), ("b.txt", "is a caption without a picture")],
)
def test_complaint_13_captions_not_read_a_misnamed_caption_is_named(tmp_path: Path, name: str, said: str) -> None:
    picture(tmp_path / "a.png", caption=None)
    (tmp_path / name).write_text("a thing")
    problems = data.scan(config(tmp_path, trigger="mokka")).problems
    assert any(line.startswith(name) and said in line for line in problems), problems


def test_complaint_13_captions_not_read_of_two_caption_files_the_unread_one_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("another thing")
    assert data.scan(config(tmp_path)).problems == ["a.png: the .txt is read, not the .caption beside it."]


def test_prefix_suffix_and_trigger_are_put_around_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a party")
    picture(tmp_path / "b.png", caption="ART of a fox")
    dataset = data.scan(config(tmp_path, {"prefix": "a drawing,", "suffix": ", on paper"}, trigger="art"))
    assert captions_of(dataset) == {"a.png": ("art, a drawing, a party, on paper",), "b.png": ("a drawing, ART of a fox, on paper",)}
    assert data.scan(config(tmp_path, {"prefix": "my art:"}, trigger="art")).items[0].caption == "my art: a party"


def test_lines_are_one_text_or_several_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a thing\n\n mokka here \na thing\n")
    assert data.scan(config(tmp_path)).items[0].captions == ("a thing\n\n mokka here \na thing",)
    assert data.scan(config(tmp_path, {"lines": "choose"}, trigger="mokka")).items[0].captions == ("mokka, a thing", "mokka here")


def test_regularisation_pictures_come_last_without_trigger_and_with_their_weight(tmp_path: Path) -> None:
    own, others = tmp_path / "own", tmp_path / "own" / "cats"
    others.mkdir(parents=True)
    picture(own / "z.png", caption="mokka sits")
    picture(others / "a.png", caption="a cat sits")
    picture(others / "b.png", caption=None)
    dataset = data.scan(config(own, trigger="mokka", regularisation=str(others), regularisation_weight=0.5))
    assert [(item.path.name, item.caption, item.regular, item.weight) for item in dataset.items] == [
        ("z.png", "mokka sits", False, 1.0),
        ("a.png", "a cat sits", True, 0.5),
    ]
    assert any("folder cats is data.regularisation" in line for line in dataset.problems)
    assert any(line.startswith("data.regularisation: b.png has no caption") for line in dataset.problems)


def test_heldout_pictures_inside_the_training_folder_are_not_trained_on(tmp_path: Path) -> None:
    inside = tmp_path / "3_held"
    inside.mkdir()
    picture(tmp_path / "a.png")
    picture(inside / "b.png", caption="a {red|red} thing\na second")
    settings = config(tmp_path, {"wildcards": True, "lines": "choose", "shuffle_tags": True}, heldout=str(inside), repeats=("*=2",))
    assert [item.path.name for item in data.scan(settings).items] == ["a.png"]
    heldout = data.scan_heldout(settings)
    assert heldout is not None and [(item.captions, item.repeats) for item in heldout.items] == [(("a red thing",), 1)]
    assert data.scan_heldout(config(tmp_path)) is None


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
    found = {item.path.name: item for item in data.scan(config(own, mask="file", mask_folder=str(masks))).items}
    assert {name: one.mask and one.mask.name for name, one in found.items()} == {"a.jpg": "a.mask.png", "b.png": "b.jpg", "c.png": "c.webp", "whole.png": None}
    assert float(data.load_mask(found["c.png"], (32, 32), 0, False).mean()) == pytest.approx(128 / 255, abs=0.01)


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
    assert any(line.startswith("wrong.jpg is 40 x 30 pixels, but its mask wrong.mask.png is 30 x 40") for line in dataset.problems)
    assert any(line.startswith("broken.jpg has a mask broken.mask.png that is not a picture") for line in dataset.problems)
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
        assert data.scan(config(tmp_path)).problems == ["a.heic is a HEIC picture; install velatura[heic] to read it: left out."]
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
    one = data.scan(config(tmp_path)).items[0]
    assert (one.width_px, one.height_px) == (200, 400)
    pixels = data.load_pixels(one, (32, 64), 0, False, "#ffffff")
    assert float(pixels[:, :30].mean()) > 0.95 and float(pixels[:, 34:].mean()) < -0.95


def test_rules_that_cannot_be_read_stop_the_scan(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="data.repeats has 'x'"):
        data.scan(config(tmp_path, repeats=("x",)))
