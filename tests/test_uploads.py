"""Uploads: what comes in, under which name, and that nothing hostile does."""

from __future__ import annotations

import contextlib
import io
import random
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data import uploads
from trainer.errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".txt")


def png(color: str = "red", size: int = 32) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), color).save(file, "PNG")
    return file.getvalue()


def make_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_pictures_and_captions_come_in(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(png())
    (tmp_path / "a b.txt").write_text("a red square")
    report = uploads.add_pictures(tmp_path / "set", [tmp_path / "a b.txt", tmp_path / "a b.png"])
    assert report.added == ["a-b.png"] and not report.left_out
    assert names(tmp_path / "set") == ["a-b.png", "a-b.txt"]
    assert (tmp_path / "set" / "a-b.txt").read_text().strip() == "a red square"


def test_nothing_is_replaced_and_captions_follow_their_picture(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "x.zip",
        {"one/a.png": png("red"), "one/a.txt": b"red", "two/a.jpg": png("blue"), "two/a.txt": b"blue"},
    )
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png("green"))
    (folder / "a.txt").write_text("green")
    before = (folder / "a.png").read_bytes()
    report = uploads.add_zip(folder, path)
    assert report.added == ["a-2.png", "a-3.jpg"]
    assert [(folder / f"a{tail}.txt").read_text().strip() for tail in ("", "-2", "-3")] == ["green", "red", "blue"]
    assert (folder / "a.png").read_bytes() == before


def test_caption_alone_goes_to_a_picture_that_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("nobody's")
    report = uploads.add_pictures(folder, [tmp_path / "a.txt", tmp_path / "b.txt"])
    assert (folder / "a.txt").read_text().strip() == "first"
    assert "b.txt is a caption without a picture." in report.left_out
    (tmp_path / "a.txt").write_text("second")
    assert "would replace" in uploads.add_pictures(folder, [tmp_path / "a.txt"]).left_out[0]
    assert (folder / "a.txt").read_text().strip() == "first"


@pytest.mark.parametrize(
    "raw, words",
    [
        (b"", "empty|not a picture"),
        (b"<svg onload=alert(1)>", "not a picture"),
        (png()[:60], "damaged"),
        (png(size=4), "at least 16"),
    ],
)
def test_what_is_no_picture_is_left_out_by_name(tmp_path: Path, raw: bytes, words: str) -> None:
    report = uploads.add_zip(tmp_path / "set", make_zip(tmp_path / "x.zip", {"bad.png": raw, "good.png": png()}))
    assert report.added == ["good.png"]
    assert len(report.left_out) == 1 and report.left_out[0].startswith("bad.png ")
    import re

    assert re.search(words, report.left_out[0])


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.png",
        "/etc/evil.png",
        "C:\\evil.png",
        "..\\..\\evil.png",
        "a/../../evil.png",
        "con.png",
        ".hidden.png",
        "\u202egnp.png",
    ],
)
def test_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "set"
    report = uploads.add_zip(folder, make_zip(tmp_path / "x.zip", {name: png()}))
    assert len(report.added) == 1, report
    assert {path.resolve().parent for path in tmp_path.rglob("*.png")} == {folder.resolve()}
    assert not report.added[0].startswith(".") and report.added[0] != "con.png"


def test_links_and_encrypted_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.png", png())
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 8] |= 1  # the general purpose flag of the last entry in the directory: encrypted
    path.write_bytes(raw)
    report = uploads.add_zip(tmp_path / "set", path)
    assert not report.added
    assert "link.png is a link or a device, not a file." in report.left_out
    assert "secret.png is encrypted." in report.left_out


def test_bomb_is_refused(tmp_path: Path) -> None:
    report = uploads.add_zip(tmp_path / "set", make_zip(tmp_path / "x.zip", {"zeros.png": b"\0" * (20 << 20)}))
    assert not report.added and "more than 100 times" in report.left_out[0]


def test_bomb_whose_header_lies_is_stopped_while_reading(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"zeros.png": b"\0" * (4 << 20)})
    raw = path.read_bytes()
    size = struct.pack("<I", 4 << 20)
    path.write_bytes(raw.replace(size, struct.pack("<I", 1000)))  # in both headers
    report = uploads.add_zip(tmp_path / "set", path)
    assert not report.added and len(report.left_out) == 1


def test_overlapping_entries_are_refused_whole(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"a.png": png("red"), "b.png": png("blue")})
    raw = bytearray(path.read_bytes())
    second = raw.rfind(b"PK\x01\x02")
    raw[second + 42 : second + 46] = struct.pack("<I", 0)  # its local header is the first entry's
    path.write_bytes(raw)
    with pytest.raises(DataError, match="overlap"):
        uploads.add_zip(tmp_path / "set", path)


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_ENTRIES", 3)
    with pytest.raises(DataError, match="4 entries"):
        uploads.add_zip(tmp_path / "set", make_zip(tmp_path / "x.zip", {f"{number}.png": b"" for number in range(4)}))


def test_sum_of_sizes_is_limited_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for path in files:
        path.write_bytes(png())
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 2 * len(png()) + 1)
    report = uploads.add_pictures(tmp_path / "set", files)
    assert report.added == ["0.png", "1.png"] and "2.png and the 2 after it" in report.left_out[0]


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"not a zip at all", b"PK\x05\x06" + b"\0" * 10])
def test_what_is_no_zip_is_refused_in_words(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(DataError, match="not a zip"):
        uploads.add_zip(tmp_path / "set", tmp_path / "x.zip")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mutated_zips_never_leave_the_folder_nor_crash(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    root = tmp_path_factory.mktemp("fuzz")
    dice = random.Random(seed)
    raw = bytearray(
        make_zip(root / "x.zip", {"a.png": png(), "d/b.txt": b"caption", "d/b.png": png("blue")}).read_bytes()
    )
    for _ in range(dice.randint(1, 12)):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    (root / "x.zip").write_bytes(raw[: dice.randint(1, len(raw))] if dice.random() < 0.2 else raw)
    with contextlib.suppress(DataError):
        uploads.add_zip(root / "set", root / "x.zip")
    assert {path.parent for path in root.rglob("*") if path.is_file() and path.name != "x.zip"} <= {root / "set"}
    assert all(path.suffix.lower() in IMAGES for path in (root / "set").glob("[!.]*"))


@settings(max_examples=200, deadline=None)
@given(name=st.text(max_size=300))
def test_any_name_becomes_a_safe_stem(name: str) -> None:
    stem = uploads.safe_stem(name)
    assert (
        stem
        and "/" not in stem
        and "\\" not in stem
        and not stem.startswith((".", "-"))
        and len(stem.encode()) <= 205
        and stem.isprintable()
    )


def _in_turn(folder: Path, source: Path) -> list[str]:
    return uploads.add_pictures(folder, [source / "IMG_0001.png", source / "IMG_0001.txt"]).added


def _upload(folder: str, root: str, numbers: list[int]) -> list[list[str]]:
    """In a process of its own."""
    return [_in_turn(Path(folder), Path(root) / str(number)) for number in numbers]


@pytest.mark.parametrize("callers", [2, 12])
@pytest.mark.parametrize(
    ("kind", "links"), [("threads", True), ("threads", False), ("processes", True)]
)  # a patch reaches no other process
def test_twenty_pictures_of_one_name_from_many_callers_are_all_there_with_their_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callers: int, kind: str, links: bool
) -> None:
    import multiprocessing
    from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor

    if not links:
        monkeypatch.setattr(
            uploads.unique_names.os, "link", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported"))
        )
    colours = [(10 * number, 5, 200) for number in range(20)]
    for number, colour in enumerate(colours):
        source = tmp_path / "sources" / str(number)
        source.mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(source / "IMG_0001.png")
        (source / "IMG_0001.txt").write_text(f"colour {colour}")
    folder = tmp_path / "set"
    pool: Executor = (
        ThreadPoolExecutor(callers)
        if kind == "threads"
        else ProcessPoolExecutor(min(callers, 3), multiprocessing.get_context("spawn"))
    )  # as many as the machine bears
    with pool:
        shares = [list(range(20))[first::callers] for first in range(callers)]
        waiting = [pool.submit(_upload, str(folder), str(tmp_path / "sources"), share) for share in shares]
        added = [name for upload in waiting for names_ in upload.result() for name in names_]
    assert len(set(added)) == 20 and sorted(added) == sorted(path.name for path in folder.glob("*.png"))
    pixels = set()
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            pixel = image.convert("RGB").getpixel((3, 3))
        assert path.with_suffix(".txt").read_text().strip() == f"colour {pixel}", (
            "each caption lies beside its own picture"
        )
        pixels.add(pixel)
    assert pixels == set(colours) and not list(folder.glob(".*.upload"))


def test_one_stem_is_one_pictures_whatever_its_ending_or_case(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp", "A.jpg"):
        Image.new("RGB", (32, 32), "red").save(tmp_path / name)
    report = uploads.add_pictures(tmp_path / "set", [tmp_path / "a.png", tmp_path / "a.webp", tmp_path / "A.jpg"])
    assert report.added == ["a.png", "a-2.webp", "A-3.jpg"]


def test_two_captions_for_one_picture_are_not_both_taken(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    (tmp_path / "a.png").write_bytes(png())
    uploads.add_pictures(tmp_path / "set", [tmp_path / "a.png"])
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.txt").write_text(f"caption {number}")
    with ThreadPoolExecutor(8) as pool:
        reports = list(
            pool.map(
                lambda number: uploads.add_pictures(tmp_path / "set", [tmp_path / str(number) / "a.txt"]), range(8)
            )
        )
    (taken,) = [number for number, report in enumerate(reports) if not report.left_out]
    assert (tmp_path / "set" / "a.txt").read_text().strip() == f"caption {taken}"


def zip_by_hand(entries: dict[bytes, bytes]) -> bytes:
    """A zip of stored entries under any names, which `zipfile` would not write."""
    body = directory = b""
    for name, raw in entries.items():
        fields = struct.pack("<5H3I2H", 20, 0, 0, 0, 33, zlib.crc32(raw), len(raw), len(raw), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + name
        body += b"PK\x03\x04" + fields + name + raw
    return (
        body
        + directory
        + b"PK\x05\x06"
        + struct.pack("<4H2IH", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    )


@pytest.mark.parametrize(
    "name",
    ["", "/", ".", "..", "//", "a/", "\\", ".png", "a/.png", " ", "./", "a//b.png", "...", "\n.png", "\ud83d.png"],
)
def test_an_entry_with_hardly_a_name_costs_nothing_else(name: str, tmp_path: Path) -> None:
    from trainer.data import archives

    entries = {name.encode("utf-8", "surrogatepass"): png("blue"), b"good.png": png()}
    (tmp_path / "x.zip").write_bytes(zip_by_hand(entries))
    report = uploads.add_zip(tmp_path / "set", tmp_path / "x.zip")
    assert "good.png" in report.added
    folder, lines = archives.opened(tmp_path / "x.zip")
    assert (folder / "good.png").is_file() and all(line.isprintable() for line in lines)
