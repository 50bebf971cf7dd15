"""Pictures of a dataset cropped, flipped and masked: what is kept, what training sees, kills, and hostile data."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy
import pytest
from PIL import Image, ImageOps

from tests import edited_sets
from tests.edited_sets import contents, smooth, trained
from trainer.data import edits, opening, picture_edits, pixel_edits
from trainer.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return edited_sets.made(tmp_path)


# What is done, by what training then sees.


def test_a_crop_and_its_mask_are_what_training_sees_and_one_undo_brings_all_back(folder: Path) -> None:
    before, (pixels, mask) = contents(folder), trained(folder)
    edit = picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), (10, 4, 70, 44))
    cropped, cropped_mask = trained(folder)
    assert (cropped == pixels[:, 4:44, 10:70]).all() and (cropped_mask == mask[:, 4:44, 10:70]).all()
    assert edit.num_pictures == 1 and edit.what == "Crop of a.png"
    assert contents(folder)["b.png"] == before["b.png"] and edits.trashed(folder) == []
    undone = edits.undo(folder)
    assert undone is not None and undone.left == () and contents(folder) == before


def test_several_flips_of_one_visit_are_one_edit_with_their_masks(folder: Path) -> None:
    before, (pixels, mask) = contents(folder), trained(folder)
    for name in ("a.png", "b.png"):
        picture_edits.flip(folder, [folder / name], "flip 1")
    flipped, flipped_mask = trained(folder)
    assert (flipped == pixels[:, :, ::-1]).all() and (flipped_mask == mask[:, :, ::-1]).all()
    (edit,) = edits.history(folder)
    assert edit.num_pictures == 2
    picture_edits.flip(folder, [folder / "a.png"], "flip 1")  # sent twice: an edit of its own, and nothing is lost
    assert [old.num_pictures for old in edits.history(folder)] == [2, 1]
    edits.undo(folder)
    edits.undo(folder)
    assert contents(folder) == before


def test_a_painted_mask_is_what_training_sees(folder: Path) -> None:
    before = contents(folder)
    painted = Image.new("L", (80, 60), 255)
    painted.paste(0, (40, 0, 80, 60))
    (folder / "a.mask.png").unlink()
    picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), painted)
    assert (folder / "a.mask.png").is_file()
    _, mask = trained(folder)
    assert (mask[0] == numpy.asarray(painted) / 255).all()

    # White all over is no mask; black all over is refused.
    picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), Image.new("L", (80, 60), 255))
    assert set(contents(folder)) == set(before) - {"a.mask.png"}
    with pytest.raises(DataError, match="nothing of the picture would count"):
        picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), Image.new("L", (80, 60), 0))
    with pytest.raises(DataError, match="nothing is painted"):
        picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), Image.new("L", (80, 60), 255))


@pytest.mark.parametrize("name", ["a-masklabel.png", "a_mask.png", "a-mask.webp", "masks/a.png", "masks/a.mask.png"])
def test_masks_of_other_tools_go_with_the_picture(folder: Path, name: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    (folder / "a.mask.png").rename(path) if name.endswith("png") else Image.open(folder / "a.mask.png").save(
        path, lossless=True
    )
    (folder / "a.mask.png").unlink(missing_ok=True)
    old = numpy.asarray(opening.open_mask(path))
    assert picture_edits.flip(folder, [folder / "a.png"]).num_pictures == 1
    assert (numpy.asarray(opening.open_mask(path)) == old[:, ::-1]).all()

    # Painted, it stays where that tool looks for it.
    painted = Image.new("L", (80, 60), 255)
    painted.paste(0, (0, 0, 8, 8))
    picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), painted)
    lying = [file for file in contents(folder) if "mask" in file]
    assert lying == [name.replace(".webp", ".png")]
    assert (numpy.asarray(opening.open_mask(folder / lying[0])) == numpy.asarray(painted)).all()


def test_a_fine_mask_is_kept_where_nothing_was_painted(folder: Path) -> None:
    fine = Image.fromarray(numpy.where(numpy.indices((60, 80)).sum(0) % 2, 255, 200).astype(numpy.uint8))
    fine.save(folder / "a.mask.png")
    small = fine.resize((40, 30))
    small.paste(0, (0, 0, 10, 10))
    picture_edits.paint(folder, picture_edits.look(folder, folder / "a.png"), small)
    mask = numpy.asarray(opening.open_mask(folder / "a.mask.png"))
    assert (mask[30:, 30:] == numpy.asarray(fine)[30:, 30:]).all() and mask[:16, :16].max() == 0


def test_a_mask_that_two_pictures_share_is_never_bent_to_one(folder: Path) -> None:
    smooth().save(folder / "a.jpg")
    before = contents(folder)
    opened = picture_edits.look(folder, folder / "a.png")
    with pytest.raises(DataError, match=r"a.png and a.jpg have one mask together"):
        picture_edits.crop(folder, opened, (0, 0, 40, 40))
    (folder / "a.mask.png").unlink()
    opened = picture_edits.look(folder, folder / "a.png")
    with pytest.raises(DataError, match="would have one mask together"):
        picture_edits.paint(folder, opened, ImageOps.invert(Image.linear_gradient("L")))
    assert contents(folder) == {name: raw for name, raw in before.items() if name != "a.mask.png"}


# What a file keeps.


def adobe() -> bytes:
    """A profile that is not sRGB's."""
    from trainer.data import colour

    profile, _ = colour.space_of(Image.new("RGB", (1, 1)), {"cICP": bytes([12, 13, 0, 1])})
    assert profile
    return profile


def rotated_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Camera"
    return exif.tobytes()


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}), (".jpg", {"quality": 97, "subsampling": 0}), (".jpg", {"quality": 60, "progressive": True}),
        (".webp", {"lossless": True}), (".webp", {"quality": 90}), (".avif", {"quality": 95}),
    ],
)  # fmt: skip
def test_format_profile_and_orientation_are_kept(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    path = tmp_path / f"a{suffix}"
    smooth().save(path, icc_profile=adobe(), exif=rotated_exif(), **options)
    shown = opening.open_image(path)
    assert shown.size == (60, 80), "turned"
    path.write_bytes(pixel_edits.flipped(path))
    again, _ = opening.as_stored(path)
    assert again.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}[suffix]
    assert again.info["icc_profile"] == adobe() and again.getexif().get(0x0112, 1) == 1
    assert again.getexif()[0x010F] == "Camera"
    difference = numpy.asarray(opening.open_image(path)).astype(int) - numpy.asarray(ImageOps.mirror(shown))
    lossless = suffix == ".png" or options.get("lossless")
    assert abs(difference).max() <= (0 if lossless else 24) and abs(difference).mean() < 2
    if suffix == ".jpg":
        assert bool(again.info.get("progressive")) == bool(options.get("progressive"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(depth: int, colour_type: int, rows: bytes, *more: bytes, width: int = 32, height: int = 32) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(more)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


GREYS = bytes(range(32))


@pytest.mark.parametrize(
    "raw",
    [
        raw_png(8, 0, (b"\0" + GREYS) * 32, chunk(b"tRNS", b"\0\5")),
        raw_png(4, 0, (b"\0" + bytes(range(16))) * 32, chunk(b"tRNS", b"\0\3")),
        raw_png(1, 0, (b"\0" + b"\x0f\xff\0\1") * 32, chunk(b"tRNS", b"\0\1")),
        raw_png(16, 0, (b"\0" + struct.pack(">32H", *range(0, 32000, 1000))) * 32, chunk(b"tRNS", b"\x0b\xb8")),
        raw_png(8, 2, (b"\0" + bytes(range(96))) * 32, chunk(b"tRNS", b"\0\3\0\4\0\5")),
        raw_png(8, 3, (b"\0" + GREYS) * 32, chunk(b"PLTE", bytes(range(96))), chunk(b"tRNS", bytes(range(0, 256, 8)))),
        raw_png(8, 6, (b"\0" + bytes(range(128))) * 32, chunk(b"gAMA", struct.pack(">I", 100_000))),
        raw_png(8, 2, (b"\0" + bytes(range(96))) * 32, chunk(b"cICP", bytes([12, 13, 0, 1]))),
        raw_png(8, 4, (b"\0" + bytes(range(64))) * 32, chunk(b"tEXt", b"transparency\0lie")),
    ],
    ids=["grey key", "grey 4 key", "bits key", "grey 16 key", "rgb key", "palette", "rgba gamma", "cICP", "text"],
)  # fmt: skip
def test_a_png_keeps_mode_transparency_and_colours(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(raw)
    before, notes = opening.open_whole(path)
    mode = opening.as_stored(path)[0].mode
    path.write_bytes(pixel_edits.cropped(path, (2, 0, 30, 20)))
    after, notes_after = opening.open_whole(path)
    assert opening.as_stored(path)[0].mode == mode and notes == notes_after
    wanted = numpy.asarray(before.convert("RGBA"))[:20, 2:30]
    assert (numpy.asarray(after.convert("RGBA")) == wanted).all()


def test_a_cmyk_jpeg_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth().convert("CMYK").save(path, quality=95)
    shown = numpy.asarray(opening.open_image(path)).astype(int)
    path.write_bytes(pixel_edits.flipped(path))
    assert opening.as_stored(path)[0].mode == "CMYK"
    assert abs(numpy.asarray(opening.open_image(path)) - shown[:, ::-1]).max() <= 16


def test_what_can_not_be_kept_is_refused_and_nothing_is_done(folder: Path) -> None:
    deep = raw_png(16, 2, (b"\0" + bytes(192)) * 32)
    frames = io.BytesIO()
    smooth().save(frames, "WEBP", save_all=True, append_images=[ImageOps.mirror(smooth())])
    for raw, words in (
        (deep, "16 bits a channel"),
        (frames.getvalue(), "more than one frame"),
        (b"x", "not a picture"),
    ):
        (folder / "b.png").write_bytes(raw)
        before = contents(folder)
        with pytest.raises(DataError, match=rf"b.png.*{words}"):
            picture_edits.flip(folder, [folder / "a.png", folder / "b.png"])
        assert contents(folder) == before and edits.history(folder) == []


# Who else is there.


def test_a_picture_changed_meanwhile_is_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: Path) -> bytes:
        smooth().save(folder / "b.png")
        return b"never written"

    monkeypatch.setattr(pixel_edits, "flipped", slow)
    with pytest.raises(DataError, match=r"b.png was changed meanwhile"):
        picture_edits.flip(folder, [folder / "b.png"])
    assert opening.open_image(folder / "b.png").tobytes() == smooth().tobytes()


def test_an_undo_leaves_what_another_hand_changed_and_asks_for_the_later_edit_first(folder: Path) -> None:
    first = picture_edits.flip(folder, [folder / "a.png"])
    picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), (0, 0, 40, 40))
    with pytest.raises(DataError, match=r"Crop of a.png came after it"):
        edits.undo(folder, first.number)
    smooth().save(folder / "a.png")
    undone = edits.undo(folder)
    assert undone is not None and undone.left == ("a.png",)
    assert opening.open_image(folder / "a.png").tobytes() == smooth().tobytes()


def test_deleting_an_edited_picture_and_undoing_both_brings_the_original_back(folder: Path) -> None:
    before = contents(folder)
    picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), (0, 0, 40, 40))
    edits.discard(folder, [folder / "a.png"])
    assert len(edits.trashed(folder)) == 1
    edits.undo(folder)
    edits.undo(folder)
    assert contents(folder) == before


def test_a_link_to_a_picture_elsewhere_leaves_that_one_alone(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "photo.png"
    smooth().save(outside)
    raw = outside.read_bytes()
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(outside)
    picture_edits.flip(folder, [folder / "b.png"])
    assert outside.read_bytes() == raw and not (folder / "b.png").is_symlink()
    edits.undo(folder)
    assert (folder / "b.png").read_bytes() == raw
