"""Notes, ratings, names and the trash of the library: nothing that was typed or made is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from app import item_changes, item_notes, trash, ui
from app.context import Context
from app.item_notes import Note
from app.library_items import Shelf
from app.tabs import dataset
from app.trash import Trash
from trainer import lora_file, presets
from trainer.errors import DataError, RunError

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
HOSTILE = ["../../jobs.sqlite", "/etc/passwd", "..", "a/b", "con", "<img src=x onerror=1>", "\x00", "cat\u202egnp"]


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return Shelf(ui.open_workspace(tmp_path / "workspace"))


def lora(path: Path, value: float = 0.3) -> Path:
    parts = {"lora_down.weight": torch.full((2, 128), value), "lora_up.weight": torch.full((128, 2), 0.01)}
    path.parent.mkdir(parents=True, exist_ok=True)
    lora_file.save(path, {LAYER: parts}, {}, torch.float32)
    return path


def run_folder(context: Context, name: str) -> Path:
    folder = context.runs / name
    folder.mkdir()
    presets.save(presets.load(presets.names()[0], {"data.folder": str(context.datasets / "grey-cat")}),
                 folder / "config.toml")  # fmt: skip
    (folder / "samples").mkdir()
    lora(folder / f"{name}.safetensors")
    return folder


# Notes.


def _write_notes(folder: str, first: int) -> None:
    for number in range(20):
        item_notes.change(Path(folder), "loras", f"{first}-{number}", f"note {number}", rating=number % 6)


def test_two_processes_lose_none_of_one_anothers_notes(tmp_path: Path) -> None:
    """Harm 9."""
    start = multiprocessing.get_context("fork")
    writers = [start.Process(target=_write_notes, args=(str(tmp_path), first)) for first in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(item_notes.read(tmp_path, "loras")) == 60


def test_a_note_typed_in_two_tabs_keeps_both_texts(tmp_path: Path) -> None:
    """Harm 9: each letter is sent; the other tab's words stay beside."""
    seen = {"one": "", "two": ""}
    for tab, text in (("one", "s"), ("two", "t"), ("one", "so"), ("two", "to"), ("two", "too"), ("one", "soft")):
        item_notes.change(tmp_path, "runs", "cat", text, seen[tab])
        seen[tab] = text
    item_notes.change(tmp_path, "runs", "cat", rating=4)
    (note,) = item_notes.read(tmp_path, "runs").values()
    assert note == Note("soft\ntoo", 4)


def test_damaged_notes_are_set_aside_and_odd_ones_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text("{no json")
    item_notes.change(tmp_path, "runs", "a", "kept")
    assert (tmp_path / "runs-set-aside.json").read_text() == "{no json"
    values = json.loads(path.read_text()) | {"b": {"rating": 77, "text": ["x"]}, "c": 7, "d": {"rating": True}}
    path.write_text(json.dumps(values))
    assert item_notes.read(tmp_path, "runs") == {"a": Note("kept")}


@pytest.mark.parametrize("changes", [{"rating": 6}, {"rating": -1}, {"text": "x" * 5000}])
def test_what_is_no_rating_or_too_long_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(DataError, match="allowed"):
        item_notes.change(tmp_path, "runs", "a", **changes)  # type: ignore[arg-type]


# Names.


def test_a_lora_of_a_run_is_renamed_for_every_tab_and_its_run_keeps_its_own(shelf: Shelf) -> None:
    """Harm 9."""
    folder = run_folder(shelf.context, "cat")
    (item,) = shelf.every("loras")
    item_notes.change(shelf.notes, "loras", item.key, "the good one")
    assert item_changes.rename(shelf, item, "Mokka, the cat") == item.key
    (info,) = shelf.context.find_loras().values()
    assert info.name == "Mokka-the-cat" and (folder / "cat.safetensors").is_file()
    (item,) = shelf.every("loras")
    assert item_changes.rename(shelf, item, "mokka") == item.key
    assert [path.name for path in shelf.context.loras.iterdir()] == ["mokka.safetensors"]
    assert shelf.item("loras", item.key).note.text == "the good one"


def test_a_dataset_is_renamed_with_its_heldout_set_and_its_note(shelf: Shelf) -> None:
    """Harm 9."""
    name = dataset.copy_sample(shelf.context, "outline-style")
    item_notes.change(shelf.notes, "datasets", name, "ink", rating=5)
    key = item_changes.rename(shelf, shelf.item("datasets", name), "Ink drawings")
    assert shelf.context.dataset_names() == ["Ink-drawings", "Ink-drawings-heldout"]
    assert shelf.item("datasets", key).note == Note("ink", 5)


def test_a_name_that_is_taken_replaces_nothing(shelf: Shelf) -> None:
    lora(shelf.context.loras / "a.safetensors", 0.1)
    lora(shelf.context.loras / "b.safetensors", 0.2)
    raw = (shelf.context.loras / "b.safetensors").read_bytes()
    item = next(item for item in shelf.every("loras") if item.name == "a")
    with pytest.raises(DataError, match="taken"):
        item_changes.rename(shelf, item, "b")
    assert (shelf.context.loras / "b.safetensors").read_bytes() == raw
    assert (shelf.context.loras / "a.safetensors").is_file()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_in_its_folder(shelf: Shelf, name: str) -> None:
    lora(shelf.context.loras / "a.safetensors")
    dataset.copy_sample(shelf.context, "grey-cat")
    for kind in ("loras", "datasets"):
        (item,) = shelf.every(kind)
        try:
            item_changes.rename(shelf, item, name)
        except (DataError, RunError):
            continue
    assert len(list(shelf.context.loras.iterdir())) == 1 and len(shelf.context.dataset_names()) == 1
    assert len(shelf.every("loras")) == 1 and not (shelf.context.workspace / "jobs.sqlite.safetensors").exists()


def test_a_run_gets_a_title_and_keeps_its_folder(shelf: Shelf) -> None:
    run_folder(shelf.context, "cat")
    item_changes.rename(shelf, shelf.item("runs", "cat"), "Third try, softer")
    assert shelf.item("runs", "cat").name == "Third try, softer" and (shelf.context.runs / "cat").is_dir()


# The trash.


def test_every_kind_goes_to_the_trash_and_comes_back_as_it_was(shelf: Shelf) -> None:
    """Harm 9."""
    from app import saved_stacks
    from trainer.config import StackConfig

    context = shelf.context
    dataset.copy_sample(context, "grey-cat")
    run_folder(context, "cat")
    lora(context.loras / "own.safetensors", 0.7)
    picture = context.pictures(context.datasets / "grey-cat")[0]
    shutil.copy(picture, context.renders / "one.png")
    saved_stacks.save(context, StackConfig(prompt="a fox"), "fox", picture)
    before = _files(context.workspace)
    keys = {kind: shelf.every(kind)[0].key for kind in ("runs", "pictures", "stacks", "datasets")}
    keys["loras"] = next(item.key for item in shelf.every("loras") if item.name == "own")
    for kind, key in keys.items():
        item_notes.change(shelf.notes, kind, key, f"about {kind}")
        item_changes.throw(shelf, shelf.item(kind, key))
        assert key not in [item.key for item in shelf.every(kind)]
    assert len(shelf.trash.entries()) == 5
    for entry in shelf.trash.entries():
        assert item_changes.restore(shelf, entry.id) == (entry.kind, keys[entry.kind])
    assert _files(context.workspace) == before
    assert all(shelf.item(kind, key).note.text == f"about {kind}" for kind, key in keys.items())


def _files(folder: Path) -> dict[str, bytes]:
    kinds = ("runs", "loras", "renders", "stacks", "datasets")
    paths = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_new_thing_of_the_name_neither_gets_the_note_nor_is_replaced(shelf: Shelf) -> None:
    dataset.copy_sample(shelf.context, "grey-cat")
    item_notes.change(shelf.notes, "datasets", "grey-cat", "the old one")
    entry = item_changes.throw(shelf, shelf.item("datasets", "grey-cat"))
    (shelf.context.datasets / "grey-cat").mkdir()
    assert shelf.item("datasets", "grey-cat").note == Note()
    assert item_changes.restore(shelf, entry.id) == ("datasets", "grey-cat-2")
    assert shelf.item("datasets", "grey-cat-2").note.text == "the old one"
    assert not list((shelf.context.datasets / "grey-cat").iterdir())


def test_what_trains_or_is_trained_on_stays(shelf: Shelf) -> None:
    """Harm 9: a run at work, and the set it works on, can't be thrown away."""
    context = shelf.context
    dataset.copy_sample(context, "grey-cat")
    folder = run_folder(context, "cat")
    job = context.runner.submit("dog", (folder / "config.toml").read_text())
    run_folder(context, "dog")
    for kind, key in (("runs", "dog"), ("datasets", "grey-cat")):
        with pytest.raises(RunError, match="waits"):
            item_changes.throw(shelf, shelf.item(kind, key))
    with pytest.raises(RunError, match="waits"):
        item_changes.rename(shelf, shelf.item("datasets", "grey-cat"), "x")
    context.runner.stop(job.id)
    item_changes.throw(shelf, shelf.item("runs", "dog"))
    from trainer.runs import Run

    with Run(folder).lock().acquire(timeout=0), pytest.raises(RunError, match="trains"):
        item_changes.throw(shelf, shelf.item("runs", "cat"))
    assert folder.is_dir()


def test_a_kill_between_journal_and_move_is_ended_by_the_next_look(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [lora(shelf.context.loras / f"{number}.safetensors", number) for number in (1, 2)]
    moved: list[Path] = []

    def put(file: Path, wanted: list[Path]) -> None:
        moved.append(file)
        if len(moved) == 2:
            os.link(file, wanted[0])
            raise KeyboardInterrupt  # as a kill would, when it has both names
        os.replace(file, wanted[0])

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(trash.unique_names, "put", put)
        shelf.trash.throw("loras", "a", "both", paths)
    assert paths[1].is_file() and not paths[0].exists()
    (entry,) = Trash(shelf.context.workspace).entries()
    assert not paths[1].exists() and len(shelf.trash.held(entry)) == 2
    shelf.trash.restore(entry.id)
    assert all(path.is_file() for path in paths) and shelf.trash.entries() == []


def test_only_what_was_shown_is_deleted_for_good(shelf: Shelf) -> None:
    """Harm 9: nothing is gone without a second click, and what another tab throws away meanwhile is not meant."""
    first = shelf.trash.throw("loras", "a", "a", [lora(shelf.context.loras / "a.safetensors")])
    second = shelf.trash.throw("loras", "b", "b", [lora(shelf.context.loras / "b.safetensors")])
    assert shelf.trash.empty([first.id, "../..", "nobody"]) == 1
    assert [entry.id for entry in shelf.trash.entries()] == [second.id]
    assert not (shelf.trash.folder / first.id).exists() and (shelf.trash.folder / second.id).is_dir()


@pytest.mark.parametrize("place", ["../outside.txt", "/etc/passwd", "a/../../outside.txt"])
def test_an_edited_journal_moves_nothing_outside_the_workspace(shelf: Shelf, place: str) -> None:
    shelf.trash.throw("loras", "a", "a", [lora(shelf.context.loras / "a.safetensors")])
    journal = shelf.trash.folder / "journal.json"
    values = json.loads(journal.read_text())
    values[0] |= {"places": [place], "state": "moving"}
    journal.write_text(json.dumps(values))
    outside = shelf.context.workspace.parent / "outside.txt"
    outside.write_text("mine")
    with pytest.raises(DataError, match="damaged"):
        shelf.trash.entries()
    assert outside.read_text() == "mine" and os.path.exists("/etc/passwd")


def test_a_batchs_pictures_are_listed_before_anybody_said_anything_of_them(shelf: Shelf) -> None:
    from PIL import Image

    out = shelf.context.batches / "few"
    out.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(out / "1-abc.png")
    (item,) = shelf.every("pictures")
    assert item.key == "batches/few/1-abc.png" and "few" in item.words
