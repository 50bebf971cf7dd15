"""A zip named as a dataset is the folder it holds, whatever hostile things it holds beside it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import plain
from tests.test_uploads import make_zip, png
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import Dataset, archives, scanning
from trainer.errors import DataError


def scan(path: Path) -> Dataset:
    return scanning.scan_folder(path, "data.folder", DataConfig(folder=str(path)), CaptionsConfig(), "")


def test_a_zip_is_read_as_its_folder_would_be(tmp_path: Path) -> None:
    entries = {
        "10_mokka cat/a.png": png("red"), "10_mokka cat/b.png": png("blue"), "10_mokka cat/b.txt": b"mokka sits",
        "more/metadata.jsonl": b'{"file_name": "c.png", "text": "mokka runs"}', "more/c.png": png("green"),
    }  # fmt: skip
    for name, raw in entries.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_bytes(raw)
    packed, plain = scan(make_zip(tmp_path / "set.zip", entries)), scan(tmp_path / "plain")
    assert packed.digest == plain.digest
    assert [(item.captions, item.repeats) for item in packed.items] == [
        (item.captions, item.repeats) for item in plain.items
    ]
    assert archives.name_of(tmp_path / "set.zip") == "set"


def test_it_is_unpacked_once_and_a_changed_zip_anew(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "set.zip", {"a.png": png(), "a.txt": b"one"})
    first = archives.opened(path)[0]
    (first / "a.txt").write_text("mended by hand")
    assert archives.opened(path)[0] == first and scan(path).items[0].captions == ("mended by hand",)
    second = archives.opened(make_zip(path, {"a.png": png(), "a.txt": b"two"}))[0]
    assert second != first and scan(path).items[0].captions == ("two",)
    assert {entry.name for entry in tmp_path.iterdir()} == {"set.zip", first.name, second.name}


@pytest.mark.parametrize(
    "name",
    [
        "../out.png", "/out.png", "a/../../out.png", "C:\\out.png", "..\\out.png", "nul.png", "a/aux.txt/x.png",
        "a\x07.png", "x" * 250 + ".png", "a?.png", "a/ /x.png", ".hid.png", "d/" * 20 + "x.png",
    ],
)  # fmt: skip
def test_a_harmful_name_is_left_out_and_said(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "here"
    folder.mkdir(parents=True)
    path = make_zip(folder / "set.zip", {"good.png": png(), "good.txt": b"good", name: png("blue")})
    unpacked, lines = archives.opened(path)
    assert [file.name for file in sorted(unpacked.rglob("*")) if file.is_file()] == [
        ".left-out",
        "good.png",
        "good.txt",
    ]
    assert len(lines) == 1 and "name" in lines[0]
    assert lines[0] in scan(path).problems
    assert {file.name for file in tmp_path.rglob("*.png")} == {"good.png"}


def test_what_is_no_picture_or_twice_is_left_out(tmp_path: Path) -> None:
    entries = {
        "good.png": png(),
        "good.txt": b"good",
        "GOOD.png": png("blue"),
        "bad.png": b"no picture",
        "run.exe": b"MZ",
        "__MACOSX/good.png": b"litter",
    }
    lines = archives.opened(make_zip(tmp_path / "set.zip", entries))[1]
    assert [line.split()[0] for line in lines] == ["GOOD.png", "bad.png", "run.exe"]


@pytest.mark.parametrize("raw", [b"", b"PK\x03\x04 and no more", b"GIF89a"])
def test_what_is_no_zip_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(raw)
    with pytest.raises(DataError, match="not a zip that can be read"):
        scan(tmp_path / "set.zip")
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.zip"]


def test_a_zip_without_a_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture that can be used"):
        scan(make_zip(tmp_path / "set.zip", {"a.txt": b"alone"}))
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.zip"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_zip_is_read_or_refused_and_never_leads_out(
    cuts: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("damaged") / "in"
    place.mkdir()
    raw = bytearray(
        make_zip(place / "set.zip", {"a.png": png(size=4), "a.txt": b"one"}, zipfile.ZIP_STORED).read_bytes()
    )
    for at, value in cuts:
        raw[at % len(raw)] = value
    (place / "set.zip").write_bytes(raw)
    try:
        folder = archives.opened(place / "set.zip")[0]
        assert folder.parent == place and {file.suffix for file in folder.rglob("*") if file.is_file()} <= {
            ".png",
            ".txt",
            "",
        }
    except DataError:
        pass
    assert [entry.name for entry in place.parent.iterdir()] == ["in"]


def test_a_run_trains_on_a_zip(
    tmp_path: Path, tiny: Path, draw_dots: Callable[..., Path], run_velatura: Callable[..., object]
) -> None:
    pictures = draw_dots(tmp_path / "dots", "a {colour} dot")
    path = make_zip(tmp_path / "packed.zip", {file.name: file.read_bytes() for file in sorted(pictures.iterdir())})
    done = run_velatura(
        "train", plain.STYLE, "--data", str(path), "--out", str(tmp_path / "runs"), "--set", f"base={tiny}", "--set",
        "max_steps=2",
        "--set", "preview_every_steps=0", "--set", "resolution_px=32", "--set", "batch_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "packed" / "packed.safetensors").is_file()


def test_entries_that_cannot_lie_beside_each_other_cost_only_themselves(tmp_path: Path) -> None:
    entries = {
        "a.png": png(),
        "a.png/b.png": png("blue"),
        "d/" * 15 + "x" * 190 + ".png": png("green"),
        "good.png": png(),
    }
    deep = "/".join(["y" * 190] * 15)
    place = tmp_path
    for _ in range(7):
        place = place / ("z" * 200)
    place.mkdir(parents=True)
    lines = archives.opened(make_zip(place / "set.zip", entries | {f"{deep}/x.png": png("black")}))[1]
    assert len(lines) == 2 and all("has a path that can't be written here" in line for line in lines)
