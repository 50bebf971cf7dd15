"""Edits of pictures that are killed, that hostile logs and browsers ask for, and that are many."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from PIL import Image

from app import masks, ui
from app.dataset_pictures import PictureEditor
from tests import edited_sets
from tests.edited_sets import contents, smooth, trained
from trainer.data import edit_log, edits, opening, picture_edits, picture_replacing, sources
from trainer.errors import DataError, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return edited_sets.made(tmp_path)


# Kills.

KILLED = """
import os, sys
from pathlib import Path
from trainer import files, system
from trainer.data import caption_files, edits, picture_edits, swaps
folder, step, undo = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "undo"
if undo:
    picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), (0, 0, 40, 40))
count = 0
def counted(function):
    def call(*arguments):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), 9)
        return function(*arguments)
    return call
steps = {files: ("write", "write_synced"), system: ("link_or_copy", "replace"), caption_files: ("log",)}
for module, names in (steps | {swaps.shutil: ("rmtree",)}).items():
    for name in names:
        setattr(module, name, counted(getattr(module, name)))
if undo:
    edits.undo(folder)
else:
    picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), (0, 0, 40, 40))
"""


@pytest.mark.parametrize("kind", ["crop", "undo"])
def test_killed_at_any_step_the_set_is_the_old_or_the_new(folder: Path, kind: str) -> None:
    import shutil

    old = contents(folder)
    done = folder.parent / "done"
    shutil.copytree(folder, done)
    picture_edits.crop(done, picture_edits.look(done, done / "a.png"), (0, 0, 40, 40))
    new = contents(done)
    seen, step = [], 0
    while True:
        step += 1
        copy = folder.parent / f"{kind}-{step}"
        shutil.copytree(folder, copy)
        code = subprocess.run([sys.executable, "-c", KILLED, str(copy), str(step), kind], check=False).returncode
        trained(copy)  # as whoever opens the set next
        assert contents(copy) in (old, new), f"step {step}"
        seen.append(contents(copy) == new)
        assert not list((copy / edit_log.FOLDER / "new").iterdir()) if seen[-1] else True
        while edits.undo(copy):
            pass
        assert contents(copy) == old
        if code == 0:
            break
    assert step >= 6 and {True, False} == set(seen)


# Hostile data.


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 0), (-1, 0, 40, 40), (0, 0, 81, 40), (40, 0, 0, 40), (0, 0, 8, 40), (0, 0, 80, 60), (0, 0, 2**70, 9)],
)
def test_a_box_that_leaves_the_picture_is_refused(folder: Path, box: tuple[int, int, int, int]) -> None:
    before = contents(folder)
    with pytest.raises(DataError, match="the crop"):
        picture_edits.crop(folder, picture_edits.look(folder, folder / "a.png"), box)
    assert contents(folder) == before


SHA = "0" * 64


@pytest.mark.parametrize(
    "swap",
    [
        {"file": "../../secret.png", "before": SHA, "after": SHA}, {"file": "/etc/a.png", "before": SHA, "after": None},
        {"file": "a.txt", "before": SHA, "after": SHA}, {"file": "a.png", "before": "x", "after": SHA},
        {"file": "a.png", "before": 3, "after": SHA}, {"file": "a.png", "after": SHA}, {"file": None}, 7, None,
        {"file": "a.png", "before": "../" * 20 + "abcd", "after": SHA},
    ],
)  # fmt: skip
def test_a_log_that_came_with_the_folder_swaps_nothing(folder: Path, swap: object) -> None:
    secret = folder.parent / "secret.png"
    smooth().save(secret)
    own = folder / edit_log.FOLDER
    (own / "new" / "1").mkdir(parents=True)
    before, raw = contents(folder), secret.read_bytes()
    for entry in (
        {"edit": 1, "what": "x", "at": 1, "visit": "", "changes": [], "moves": [], "swaps": [swap]},
        {"more": 1, "swaps": [swap]},
    ):
        with (own / "history.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
    picture_replacing.settle(folder)
    assert edits.undo(folder) is None and contents(folder) == before and secret.read_bytes() == raw


def test_a_swap_of_a_strange_log_puts_back_only_what_it_says(folder: Path) -> None:
    """The kept file is another than the log says: nothing is put in place of the picture."""
    before = contents(folder)
    edit = picture_edits.flip(folder, [folder / "b.png"])
    after = contents(folder)
    smooth().save(folder / edit_log.FOLDER / "pictures" / str(edit.number) / "b.png")
    undone = edits.undo(folder)
    assert undone is not None and undone.left == ("b.png",) and contents(folder) == after != before


@pytest.mark.parametrize("at", [1e300, -1e300, float("nan"), float("inf"), True, "now", 10**400])
def test_a_time_that_nothing_can_spell_is_no_edit(folder: Path, at: object) -> None:
    (folder / edit_log.FOLDER).mkdir()
    entry = {"edit": 1, "what": "x", "at": at, "visit": "", "changes": [], "moves": []}
    (folder / edit_log.FOLDER / "history.jsonl").write_text(json.dumps(entry) + "\n")
    for edit in edits.history(folder):
        time.localtime(edit.at)


# What a browser may say.


@pytest.fixture
def editor(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PictureEditor:
    """The page's editor on a workspace whose dataset `mine` is the folder."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace")
    folder.rename(context.datasets / "mine")
    return PictureEditor(context)


def png(image: Image.Image) -> str:
    return masks.url_of(image)


def test_what_the_page_asks_for_is_done(editor: PictureEditor) -> None:
    home, asked = editor.context.datasets / "mine", {"dataset": "mine", "name": "a.png"}
    before, looked = contents(home), editor.look(asked)
    assert looked["size"] == (80, 60) and looked["painted"] == [80, 60]
    shown = opening.open_mask(io.BytesIO(masks.bytes_of(looked["mask"], 10**6)))
    assert (numpy.asarray(shown) == 255 - numpy.asarray(opening.open_mask(home / "a.mask.png"))).all()
    half = Image.new("L", (80, 60), 0)
    half.paste(255, (0, 0, 40, 60))
    editor.paint(asked | {"version": looked["version"], "url": png(half)})
    assert (trained(home)[1][0] == 1 - numpy.asarray(half) / 255).all()
    with pytest.raises(DataError, match="was changed meanwhile"):
        editor.crop(asked | {"version": looked["version"], "box": [0, 0, 40, 40]})
    editor.crop(asked | {"version": editor.look(asked)["version"], "box": [0, 0, 40, 40]})
    (home / "b.txt").write_text("a cat on the LEFT")
    answer = editor.flip({"dataset": "mine", "names": ["a.png", "b.png", "c.png"], "visit": "1"})
    assert answer == {"done": 2, "problems": [], "sided": ["b.png"]}
    (home / "b.txt").write_text("caption of b\n")
    while edits.undo(home):
        pass
    assert contents(home) == before


NAMES = [
    "", "../a.png", "/etc/passwd", "a.mask.png", ".edits/history.jsonl", "a.txt", None, 3, ["a.png"], {}, "a.png\0",
    "x" * 9999,
]  # fmt: skip


@pytest.mark.parametrize("asked", [None, [], "x", 7, {}, {"dataset": "mine"}, {"dataset": "../mine", "name": "a.png"}])
def test_a_question_of_another_shape_is_refused(editor: PictureEditor, asked: object) -> None:
    for answer in (editor.look, editor.crop, editor.paint, editor.flip):
        with pytest.raises(UserError):
            answer(asked)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_picture_of_the_set_is_refused(editor: PictureEditor, name: object) -> None:
    before = contents(editor.context.workspace)
    for answer in (editor.look, editor.crop, editor.paint):
        with pytest.raises(UserError):
            answer({"dataset": "mine", "name": name, "version": "", "box": [0, 0, 40, 40]})
    assert editor.flip({"dataset": "mine", "names": [name], "visit": ""})["done"] == 0
    assert contents(editor.context.workspace) == before


@pytest.mark.parametrize(
    "box", [None, "0,0,9,9", [0, 0, 40], [0, 0, 40, 40, 40], [0, 0, 40.5, 40], [0, 0, True, 40], [0, 0, "40", 40],
            [float("nan")] * 4, [0, 0, 10**400, 40], [-5, 0, 40, 40], [[0], [0], [40], [40]]],
)  # fmt: skip
def test_a_box_of_a_browser_is_never_believed(editor: PictureEditor, box: object) -> None:
    asked = {"dataset": "mine", "name": "a.png"}
    with pytest.raises(UserError):
        editor.crop(asked | {"version": editor.look(asked)["version"], "box": box})
    assert not edits.history(editor.context.datasets / "mine")


@pytest.mark.parametrize(
    "url",
    [
        None, 7, "", "file:///etc/passwd", "data:image/png;base64,", "data:image/png;base64,AAAA",
        "data:image/png;base64,§",
        "data:image/svg+xml,<svg/>", "data:image/png;base64," + "A" * 9_000_000, png(Image.new("L", (8, 8))),
    ],
)  # fmt: skip
def test_a_painted_mask_of_a_browser_is_never_believed(editor: PictureEditor, url: object) -> None:
    asked = {"dataset": "mine", "name": "a.png"}
    with pytest.raises(UserError):
        editor.paint(asked | {"version": editor.look(asked)["version"], "url": url})
    assert not edits.history(editor.context.datasets / "mine")


@pytest.mark.parametrize("visit", [None, 7, [], "captions 1", "x" * 10_000, "\ud800"])
def test_a_visit_of_a_browser_joins_no_other_edit(editor: PictureEditor, visit: object) -> None:
    home = editor.context.datasets / "mine"
    edits.write(home, "Typed", {home / "a.png": "typed"}, "flip captions 1")
    asked = {"dataset": "mine", "names": ["b.png"], "visit": visit}
    if isinstance(visit, str):
        assert editor.flip(asked)["done"] == 1
        assert [edit.num_pictures for edit in edits.history(home)] == [1, 1]
    else:
        with pytest.raises(UserError):
            editor.flip(asked)


def test_masks_of_five_hundred_pictures_are_found_quickly(tmp_path: Path) -> None:
    for number in range(500):
        for name in (f"{number}.png", f"{number}.mask.png"):
            (tmp_path / name).touch()
    start = time.monotonic()
    found = sources.masks_of(tmp_path)
    assert time.monotonic() - start < 10 and len(found) == 500 and all(len(one) == 1 for one in found.values())
