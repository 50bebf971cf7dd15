"""The Dataset tab of an empty workspace: what is dropped there becomes a dataset, and is chosen."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from PIL import Image

from app import dataset_edits, tabs, ui
from app.context import Context
from app.tabs import dataset
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_browser import playwright_api
from trainer.data import edits
from trainer.errors import DataError

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = playwright_api.expect


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [dataset])
    return ui.open_workspace(tmp_path / "workspace")


def drawn(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), ("navy", "teal", "brown")[number % 3]).save(folder / name)
    return [folder / name for name in names]


def added(context: Context, *paths: Path, name: str | None = None) -> dict[Any, Any]:
    with gr.Blocks():
        tab = dataset._Tab(context)
    update = tab.add_files(name, [str(path) for path in paths])
    return {"dataset": update.get(tab.dataset), "report": update[tab.report]["value"]}


def test_a_zip_dropped_with_no_dataset_chosen_becomes_one_of_its_name(context: Context, tmp_path: Path) -> None:
    (context.datasets / "mine").mkdir()
    (picture,) = drawn(tmp_path, "a.png")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.write(picture, "cat/a.png")
        archive.writestr("cat/a.txt", "a cat")
    update = added(context, tmp_path / "mine.zip")
    assert update["dataset"]["value"] == "mine-2" and "1 picture added" in update["report"]
    assert (context.datasets / "mine-2" / "a.txt").read_text() == "a cat\n"
    assert added(context, picture, name="mine")["dataset"] is None  # chosen already


def test_what_holds_no_picture_makes_no_dataset(context: Context, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert added(context, tmp_path / "a.png")["dataset"] is None and context.dataset_names() == []


# What the browser sends until it hears that it is saved.


def test_of_what_was_typed_only_what_can_not_be_written_is_kept_for_later(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(context.datasets / "mine", "a.png", "b.png")
    real = edits.write

    def full(folder: Path, what: str, texts: dict[Path, str], visit: str = "") -> object:
        if any(path.stem == "a" for path in texts):
            raise DataError("no space left on device")
        return real(folder, what, texts, visit)

    typed = [
        {"dataset": "mine", "name": f"{name}.png", "text": f"a {name}", "visit": "1", "number": number}
        for number, name in enumerate("ab")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(edits, "write", full)
        assert dataset_edits.keep_typed(context, typed) == ([1], ["no space left on device"])
    assert dataset_edits.keep_typed(context, typed) == ([0, 1], [])
    assert (context.datasets / "mine" / "a.txt").read_text() == "a a\n"


@pytest.mark.parametrize(
    "typed", [None, 3, "x", [None], [[]], [{"name": 3, "number": "1"}], [{"name": "a.png", "number": True}]]
)
def test_what_is_sent_in_another_shape_is_nothing(typed: object, context: Context) -> None:
    assert dataset_edits.keep_typed(context, typed) == ([], []) and context.dataset_names() == []


# In a browser.


@pytest.fixture
def page(context: Context, open_page: Callable[[], Page]) -> Page:
    opened = open_page()
    expect(opened.locator("#start-here")).to_be_visible()
    return opened


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_own_pictures_are_taken_on_an_empty_page(context: Context, page: Page, tmp_path: Path) -> None:
    page.locator("#my-pictures").click()
    page.locator("#dataset-files input[type=file]").set_input_files(drawn(tmp_path / "mine", "a.png", "b.png"))
    expect(page.locator("#dataset-gallery .card")).to_have_count(2)
    expect(page.locator("#dataset input")).to_have_value("pictures")
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)
    page.reload()
    expect(page.locator("#dataset input")).to_have_value("pictures")
    expect(page.locator("#dataset-gallery .card")).to_have_count(2)

    # What is refused is said in words alone.
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    page.locator("#dataset-files input[type=file]").set_input_files([tmp_path / "bad.zip", *drawn(tmp_path, "c.png")])
    expect(page.get_by_text("is not a zip that can be read").first).to_be_visible()
    expect(page.get_by_text("Error", exact=True)).to_have_count(0)
    expect(page.locator("#dataset-gallery .card")).to_have_count(3)


def drop(page: Page, place: str, *paths: Path) -> None:
    """Drop files and folders as a person does, from outside the browser."""
    box = page.locator(place).bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        session.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})


@NEEDS_CHROMIUM
@pytest.mark.slow
def test_a_dropped_folder_is_taken_with_its_captions(context: Context, page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    drawn(folder / "one", "a.png")
    drawn(folder / "two", "x.png", "a.png", ".hidden.png")
    (folder / "one" / "a.txt").write_text("a cat")
    (folder / "notes.pdf").write_bytes(b"no picture")
    rows = [{"file_name": "two/a.png", "text": "a dog"}, {"file_name": "one/a.png", "text": "not read"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    drop(page, "#dataset-files", folder)
    expect(page.locator("#dataset-gallery .card")).to_have_count(3)
    made = context.datasets / "pictures"
    captions = {path.stem: path.read_text().strip() for path in made.glob("*.txt")}
    assert captions == {"one-a": "a cat", "two-a": "a dog"}
