"""Edits of a dataset: each is one step, whole, that an undo takes back without losing anybody's work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from trainer.config import DataConfig
from trainer.data import caption_edits, caption_files, edits, sources
from trainer.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "set"
    (made / "more").mkdir(parents=True)
    for name in ("a.png", "b.png", "more/c.png"):
        Image.new("RGB", (32, 32), "navy").save(made / name)
        (made / name).with_suffix(".txt").write_text(f"caption of {name[-5]}\n")
    return made


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): caption_files.read_caption(path) for path in sources.pictures_below(folder)
    }


def test_an_edit_of_many_captions_is_one_step(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*.txt")}
    edit = edits.write(folder, "Prefix", {path: f"x {path.stem}" for path in sources.pictures_below(folder)})
    assert edit is not None and edit.num_pictures == 3 and texts(folder)["more/c.png"] == "x c"
    undone = edits.undo(folder)
    assert undone is not None and undone.left == ()
    assert {path: path.read_bytes() for path in folder.rglob("*.txt")} == before
    assert edits.undo(folder) is None and [edit.undone for edit in edits.history(folder)] == [True]


def test_what_is_typed_in_one_visit_is_one_edit(folder: Path) -> None:
    picture = folder / "a.png"
    for visit, text in (("1", "a"), ("1", "a c"), ("1", "a cat"), ("2", "a cat lying")):
        edits.write(folder, "Type", {picture: text}, visit)
    assert [edit.what for edit in edits.history(folder)] == ["Type", "Type"]
    seen = []
    while edits.undo(folder):
        seen.append(caption_files.read_caption(picture))
    assert seen == ["a cat", "caption of a"]


def test_an_edit_made_outside_is_never_undone_over(folder: Path) -> None:
    first, second = folder / "a.png", folder / "b.png"
    edits.write(folder, "Type", {first: "one", second: "two"})
    (folder / "a.txt").write_text("written elsewhere")
    undone = edits.undo(folder)
    assert undone is not None and undone.left == ("a.txt",)
    assert caption_files.read_caption(first) == "written elsewhere"
    assert caption_files.read_caption(second) == "caption of b"


def test_an_edit_further_back_can_be_undone_alone(folder: Path) -> None:
    edits.write(folder, "Type", {folder / "a.png": "one"})
    edits.write(folder, "Type", {folder / "b.png": "two"})
    undone = edits.undo(folder, 1)
    assert undone is not None and texts(folder)["a.png"] == "caption of a" and texts(folder)["b.png"] == "two"


def test_a_deleted_picture_lies_in_the_trash_with_what_belongs_to_it(folder: Path) -> None:
    Image.new("L", (32, 32), 0).save(folder / "a.mask.png")
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    edits.discard(folder, [folder / "a.png", folder / "more" / "c.png"])
    assert list(texts(folder)) == ["b.png"] and not (folder / "a.mask.png").exists()
    assert len(edits.trashed(folder)) == 2
    survey = sources.survey(folder, DataConfig(), "set")
    assert survey.problems == [], "the trash is nothing to tell of when the set is trained on"

    names = [path.relative_to(folder).as_posix() for path in edits.trashed(folder)]
    edits.restore(folder, names[:1])
    assert len(edits.trashed(folder)) == 1
    edits.restore(folder, names[1:])
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    edits.undo(folder)  # of the second restoring
    assert len(edits.trashed(folder)) == 1


def test_deleting_is_undone_and_restores_nothing_over_another(folder: Path) -> None:
    edits.discard(folder, [folder / "a.png"])
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    with pytest.raises(DataError, match="a.png is there again already"):
        edits.restore(folder, [path.relative_to(folder).as_posix() for path in edits.trashed(folder)])
    undone = edits.undo(folder)
    assert undone is not None and undone.left == ("a.png",) and texts(folder)["a.png"] == "caption of a"


def test_a_caption_that_two_pictures_share_stays_with_the_one_that_stays(folder: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(folder / "a.jpg")
    edits.discard(folder, [folder / "a.png"])
    assert caption_files.read_caption(folder / "a.jpg") == "caption of a"


def test_a_kill_in_the_middle_is_one_undo_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, writes = texts(folder), []

    def killed(*arguments: object) -> None:
        writes.append(arguments)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    real = edits.files.write
    monkeypatch.setattr(edits.files, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        edits.write(folder, "Prefix", dict.fromkeys(sources.pictures_below(folder), "x"))
    monkeypatch.undo()
    assert texts(folder) != before
    edits.undo(folder)
    assert texts(folder) == before


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/a.txt", "a\\b.txt", "C:a.txt", "a.png", "x\0.txt", 3, None])
def test_a_log_that_came_with_the_folder_reaches_nothing_outside(folder: Path, name: object) -> None:
    secret = folder.parent / "secret.txt"
    secret.write_text("mine")
    (folder / edits.FOLDER).mkdir()
    change = {"file": name, "before": "stolen", "after": "mine"}
    move = {"source": "a.png", "target": name}
    for kinds in ({"changes": [change], "moves": []}, {"changes": [], "moves": [move]}):
        entry = {"edit": 1, "what": "x", "at": 1, "visit": "", **kinds}
        (folder / edits.FOLDER / "history.jsonl").write_text(json.dumps(entry) + "\n")
        if name != "a.png" or kinds["changes"]:
            assert edits.undo(folder) is None
    assert secret.read_text() == "mine"


def test_edits_of_texts() -> None:
    assert caption_edits.replaced("A Cat, cats", "cat", "dog") == "A dog, dogs"
    assert caption_edits.replaced("a", "", "x") == "a" and caption_edits.replaced("a.b", ".", "\\1") == "a\\1b"
    assert caption_edits.with_prefix("a cat", "photo of ") == "photo of a cat"
    assert caption_edits.with_prefix("photo of a cat", "photo of") == "photo of a cat"
    assert caption_edits.with_suffix("a cat", ", outline style") == "a cat, outline style"
    assert caption_edits.with_suffix("", "outline") == "outline"
    assert caption_edits.sorted_tags("mokka, red, Blue, a", "mokka") == "mokka, a, Blue, red"
    assert caption_edits.without_tag("mokka, Red, blue", " red ") == "mokka, blue"
    assert caption_edits.without_tag("a,b", "c") == "a,b"
    assert caption_edits.with_trigger_in_front("party", "art") == "art, party"
    assert caption_edits.with_trigger_in_front("Art of", "art") == "Art of"
    assert caption_edits.with_trigger_in_front("", "art") == "art"


def test_bulk_edit_of_five_hundred_is_quick(tmp_path: Path) -> None:
    import time

    pictures = [tmp_path / f"{number}.png" for number in range(500)]
    start = time.monotonic()
    edits.write(tmp_path, "Prefix", dict.fromkeys(pictures, "x"))
    assert time.monotonic() - start < 10 and len(os.listdir(tmp_path)) == 501
