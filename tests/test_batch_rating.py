"""What is said of a batch's pictures is what the Library says; rejected ones go to the trash, not to be drawn again."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from app import batch_pictures, browser_state, item_changes, item_notes, open_in_tab, ui
from app.batch_gallery import BatchGallery
from app.context import Context
from app.job_table import Job
from app.library_items import Shelf, wanted
from trainer.errors import DataError
from trainer.render import batch_journal

BROWSER = "0123456789abcdef" * 2


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace", [str(tiny)])


@pytest.fixture
def job(context: Context) -> Job:
    """A batch of four pictures, one of them in a folder."""
    made = context.runner.submit("foxes", "prompt\n", "batch-csv")
    for number, name in enumerate(("1.png", "2.png", "3.png", "wide/4.png")):
        path = context.batches / "foxes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number * 60, 0, 0)).save(path)
    return made


class Asking:
    """A request of one browser."""

    headers = {"cookie": f"{browser_state.COOKIE}={BROWSER}"}


def ask(handler: Any, **asked: Any) -> dict[str, Any]:
    answer: dict[str, Any] = handler(asked)
    return answer


def test_keep_reject_and_rate_stand_where_the_library_keeps_them(context: Context, job: Job) -> None:
    shelf = Shelf(context)
    answer = batch_pictures.rate(shelf, job, "1.png", {"verdict": "kept"})
    assert answer["counts"] == {"all": 4, "unrated": 3, "kept": 1, "rejected": 0}
    batch_pictures.rate(shelf, job, "wide/4.png", {"rating": 5})
    batch_pictures.rate(shelf, job, "2.png", {"verdict": "rejected"})
    said = item_notes.read(context.workspace / "notes", "pictures")
    assert said["batches/foxes/1.png"].verdict == "kept" and said["batches/foxes/wide/4.png"].rating == 5

    # The Library has the same pictures; what it says is seen in the batch.
    items = {item.key: item for item in shelf.every("pictures")}
    assert set(items) == {*said, "batches/foxes/3.png"}, "an unrated one too"
    assert {item.key for item in wanted(list(items.values()), "", 0)} == set(items) - {"batches/foxes/2.png"}
    assert [item.key for item in wanted(list(items.values()), "rejected", 0)] == ["batches/foxes/2.png"]
    item_notes.change(shelf.notes, "pictures", "batches/foxes/1.png", rating=3)
    page = batch_pictures.page(shelf, job, "kept", 96)
    assert [(item["n"], item["v"], item["r"]) for item in page["items"]] == [("1.png", "kept", 3)]

    # It keeps its file's name, by which its batch knows it.
    assert item_changes.rename(shelf, items["batches/foxes/1.png"], "The one") == "batches/foxes/1.png"
    assert shelf.item("pictures", "batches/foxes/1.png").name == "The one"
    assert open_in_tab.TARGETS["picture"].value(context, "batches/foxes/1.png").endswith("foxes/1.png")


def test_the_zip_has_the_kept_alone_byte_for_byte(context: Context, job: Job) -> None:
    shelf = Shelf(context)
    with pytest.raises(DataError, match="no picture of this batch is kept"):
        batch_pictures.kept_zip(shelf, job)
    batch_pictures.rate(shelf, job, "wide/4.png", {"verdict": "kept"})
    with zipfile.ZipFile(batch_pictures.kept_zip(shelf, job)) as archive:
        assert archive.namelist() == ["wide/4.png"]
        assert archive.read("wide/4.png") == (context.batches / "foxes" / "wide" / "4.png").read_bytes()


def test_rejected_ones_go_to_the_trash_as_one_thing_and_come_back_with_what_was_said(
    context: Context, job: Job
) -> None:
    shelf, out = Shelf(context), context.batches / "foxes"
    with pytest.raises(DataError, match="nothing to throw away"):
        batch_pictures.throw(shelf, job)
    for name in ("1.png", "wide/4.png"):
        batch_pictures.rate(shelf, job, name, {"verdict": "rejected", "rating": 2})
    assert batch_pictures.throw(shelf, job) == 2
    assert not (out / "1.png").exists() and batch_journal.thrown(out) == {"1.png", "wide/4.png"}
    page = batch_pictures.page(shelf, job, "all", 96)
    assert page["trash"] == 2 and page["counts"]["all"] == 2
    (entry,) = shelf.trash.entries()
    assert entry.name == "2 rejected of foxes"
    assert batch_pictures.restore(shelf, job) == 2
    assert (out / "wide" / "4.png").is_file()
    assert batch_pictures.page(shelf, job, "rejected", 96)["counts"]["rejected"] == 2
    assert batch_pictures.restore(shelf, job) == 0

    # By way of the Library too.
    item = shelf.item("pictures", "batches/foxes/1.png")
    assert item_changes.throw(shelf, item).places == ("batches/foxes/1.png",)
    assert item_changes.restore(shelf, shelf.trash.entries()[0].id) == ("pictures", "batches/foxes/1.png")
    assert shelf.item("pictures", "batches/foxes/1.png").note.rating == 2


def test_a_batch_that_goes_on_draws_nothing_that_was_thrown_away(context: Context, tiny: Path) -> None:
    import tomli_w

    text = tomli_w.dumps({"base": str(tiny), "prompts": ["a", "b"], "seeds": ["1-2"], "steps": 1, "name": "{prompt}",
                          "width_px": 32, "height_px": 32})  # fmt: skip
    made = context.runner.submit("foxes", text, "batch-toml")

    def to_the_end() -> None:
        deadline = time.monotonic() + 300
        while context.runner.get(made.id).state not in ("finished", "failed") and time.monotonic() < deadline:
            context.runner.tick()
            time.sleep(0.2)
        assert context.runner.get(made.id).state == "finished"

    to_the_end()
    shelf, out = Shelf(context), context.batches / "foxes"
    assert {path.name for path in out.glob("*.png")} == {"a.png", "a-2.png", "b.png", "b-2.png"}
    batch_pictures.rate(shelf, made, "a.png", {"verdict": "rejected"})
    batch_pictures.rate(shelf, made, "b.png", {"rating": 4})
    batch_pictures.throw(shelf, made)
    (out / "b-2.png").unlink()  # gone by another hand: that one is drawn again

    context.runner.table.put(made, state="stopped")
    context.runner.resume(made.id)
    to_the_end()
    assert {path.name for path in out.glob("*.png")} == {"a-2.png", "b.png", "b-2.png"}
    log = context.runner.log_file(made).read_text().splitlines()
    events = [json.loads(line) for line in log if line.startswith("{")]
    assert [event["there"] for event in events if event["event"] == "planned"] == [0, 3]
    assert batch_pictures.notes(shelf, made)["b.png"].rating == 4
    assert context.runner.work.finished(made)


@pytest.mark.parametrize("text", ['"a.png', "[" * 100_000, "3", "null", '"../../etc/passwd"', "\ud800"])
def test_a_list_of_the_thrown_that_was_torn_loses_no_other_name(tmp_path: Path, text: str) -> None:
    batch_journal.note_thrown(tmp_path, ["a.png"])
    with (tmp_path / ".batch" / "thrown.jsonl").open("ab") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    batch_journal.note_thrown(tmp_path, ["b.png"])
    assert batch_journal.thrown(tmp_path) >= {"a.png", "b.png"}
    assert batch_journal.thrown(tmp_path / "none") == set()


@pytest.mark.parametrize(
    "asked",
    [
        None, [], "x", 7, {}, {"job": 99}, {"job": "1"}, {"job": True},
        {"job": 1, "name": "../../etc/passwd", "rating": 1},
        {"job": 1, "name": ["1.png"], "rating": 1}, {"job": 1, "name": "1.png", "rating": 6},
        {"job": 1, "name": "1.png", "rating": -1}, {"job": 1, "name": "1.png", "rating": "5"},
        {"job": 1, "name": "1.png", "rating": True}, {"job": 1, "name": "1.png", "rating": 1e300},
        {"job": 1, "name": "1.png", "verdict": "<img src=x>"}, {"job": 1, "name": "1.png", "verdict": {"a": 1}},
        {"job": 1, "name": ".batch/journal.jsonl", "verdict": "kept"}, {"job": 1, "name": "\0", "verdict": "kept"},
    ],
)  # fmt: skip
def test_whatever_a_browser_sends_is_answered_in_words_and_changes_nothing(
    context: Context, job: Job, asked: Any
) -> None:
    with gr.Blocks():
        gallery = BatchGallery(context)
        gallery.draw()
    rate, match, cast = gallery.gallery.rate, gallery.vote.match, gallery.vote.cast
    assert "problem" in rate(asked)
    for answer in (gallery.gallery.act(asked), gallery.gallery.look(asked, Asking()), match(asked), cast(asked)):
        assert "problem" in answer or answer["job"] == 1
    assert item_notes.read(context.workspace / "notes", "pictures") == {}
    assert not (context.batches / "foxes" / "votes.jsonl").exists()


def test_the_view_that_a_browser_chose_is_kept(context: Context, job: Job) -> None:
    with gr.Blocks():
        gallery = BatchGallery(context)
        gallery.draw()
    look = gallery.gallery.look
    assert look({"job": job.id}, Asking())["view"] == "all"
    assert look({"job": job.id, "view": "unrated", "num": 10**9}, Asking())["view"] == "unrated"
    assert look({"job": job.id, "view": {"a": 1}, "num": "x"}, Asking())["view"] == "unrated"
    assert look({"job": job.id, "view": "nonsense"}, Asking())["view"] == "all"


def test_notes_that_were_edited_by_hand_hold_no_other_verdict(tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text('{"a": {"verdict": "<b>", "rating": 2}, "b": {"verdict": ["kept"]}}')
    assert item_notes.read(tmp_path, "pictures") == {"a": item_notes.Note(rating=2)}
    with pytest.raises(DataError, match="the verdict is 'maybe'"):
        item_notes.change(tmp_path, "pictures", "a", verdict="maybe")
    item_notes.change(tmp_path, "pictures", "a", verdict="kept")
    item_notes.move(tmp_path, "pictures", "a", "c")
    assert item_notes.read(tmp_path, "pictures") == {"c": item_notes.Note(rating=2, verdict="kept")}
