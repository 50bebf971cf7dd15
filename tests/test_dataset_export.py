"""A dataset exported in each layout and brought in again: by the page, and as training reads it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from app import dataset_exports, dataset_notes, dataset_sets, ui
from app.context import Context
from trainer.config import DataConfig
from trainer.data import sources
from trainer.errors import DataError

ZIP, KOHYA, IMAGEFOLDER = dataset_exports.LAYOUTS
CAPTIONS = {"a": "a cat, “red”", "b": "two\nlines", "c": "", "d": "a dog"}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(gr, "Info", lambda *_, **__: None)
    made = ui.open_workspace(tmp_path / "workspace")
    folder = made.datasets / "mine"
    (folder / "3_close ups").mkdir(parents=True)
    (folder / ".edits").mkdir()
    for number, (name, text) in enumerate(CAPTIONS.items()):
        home = folder / "3_close ups" if name == "d" else folder
        Image.new("RGB", (64, 64), (number * 50, 90, 40)).save(home / f"{name}.png")
        if text:
            (home / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    Image.new("L", (64, 64), 255).save(folder / "a.mask.png")
    Image.new("RGB", (64, 64), "navy").save(folder / ".edits" / "old.png")
    return made


def seen(folder: Path) -> dict[str, tuple[str, int]]:
    """Caption and repeats by what the picture holds."""
    survey = sources.survey(folder, DataConfig(folder=str(folder)), "data.folder")
    return {str(Image.open(one.path).getpixel((0, 0))): (one.text, one.repeats) for one in survey.pictures}


@pytest.mark.parametrize("layout", [ZIP, KOHYA, IMAGEFOLDER])
def test_what_is_exported_comes_in_again_as_it_was(layout: str, context: Context, tmp_path: Path) -> None:
    dataset_notes.keep_trigger(context, "mine", "mokka")
    packed = dataset_exports.packed(context, "mine", layout)
    before = seen(context.datasets / "mine")
    trained = dict(before)
    if layout == KOHYA:
        trained["(100, 90, 40)"] = ("mokka", 1)  # kohya reads the folder's name where there is no caption
    copy = tmp_path / "packed.zip"
    copy.write_bytes(packed.read_bytes())
    assert seen(copy) == trained

    # Through the page, which keeps the folders that say repeats.
    name, report = dataset_sets.add(context, None, [packed])
    assert name == "mine-2" and len([one for one in report.added if "mask" not in one]) == 4
    assert seen(context.datasets / "mine-2") == trained
    assert not [line for line in report.left_out if "c.png" not in line and "mask" not in line], report.left_out


def test_kohyas_folders_hold_repeats_trigger_and_a_caption_for_each_picture(context: Context) -> None:
    Image.new("RGB", (64, 64), "white").save(context.datasets / "mine" / "A.jpg")
    dataset_notes.keep_trigger(context, "mine", "mokka")
    with zipfile.ZipFile(dataset_exports.packed(context, "mine", KOHYA)) as archive:
        names = set(archive.namelist())
        assert archive.read("3_close-ups/d.txt") == b"a dog\n"
    assert {"1_mokka/b.png", "1_mokka/b.txt", "1_mokka/c.png", "3_close-ups/d.png"} <= names
    assert len({name.lower() for name in names if Path(name).stem.lower().startswith("a")}) == 3  # each its own caption
    assert not any("mask" in name or "old" in name for name in names)


def test_an_imagefolder_has_a_row_for_each_picture(context: Context) -> None:
    with zipfile.ZipFile(dataset_exports.packed(context, "mine", IMAGEFOLDER)) as archive:
        rows = [json.loads(line) for line in archive.read("metadata.jsonl").decode().splitlines()]
        assert {row["file_name"] for row in rows} | {"metadata.jsonl"} == set(archive.namelist())
    assert {row["file_name"]: row["text"] for row in rows}["a.png"] == CAPTIONS["a"]


def test_an_empty_set_is_refused_in_each_layout(context: Context) -> None:
    (context.datasets / "none").mkdir()
    for layout in dataset_exports.LAYOUTS:
        with pytest.raises(DataError, match="nothing in this dataset"):
            dataset_exports.packed(context, "none", layout)


def test_no_picture_is_read_whole(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> bytes:
        raise AssertionError("a file was read whole")

    for layout in dataset_exports.LAYOUTS:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", refuse)
            dataset_exports.packed(context, "mine", layout)


# What is remembered of a set.


def test_train_is_given_the_triggers_of_its_sets_alone(context: Context) -> None:
    (context.datasets / "other").mkdir()
    (context.datasets / "bare").mkdir()
    dataset_notes.keep_trigger(context, "mine", " mokka ")
    dataset_notes.keep_trigger(context, "other", "zorn")
    given = [
        dataset_notes.for_train(context, name, present)
        for name, present in (("mine", ""), ("mine", "own"), ("other", "mokka"), ("bare", "own"), (None, ""))
    ]
    assert given == ["mokka", "own", "zorn", "own", ""]


@pytest.mark.parametrize("raw", [b"", b"[1]", b'{"trigger": 3, "is_checked": "yes"}', b"[" * 9000, b"\xff"])
def test_notes_that_say_anything_say_nothing(raw: bytes, context: Context) -> None:
    (context.datasets / "mine" / ".page.json").write_bytes(raw)
    assert dataset_notes.read(context.datasets / "mine") == dataset_notes.Notes()
