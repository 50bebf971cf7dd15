"""What the page does with a training that is over: taken off the list and opened again, gone on with, used in Stack."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest

from app import first_stack, open_in_tab, tabs, ui
from app.context import Context
from app.tabs import batch, dataset, library, stack, train
from tests import browsing
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_page_runs import a_dataset, a_run, losses
from trainer import lora_file
from trainer.errors import UserError
from trainer.events import Finished, Recommended

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=60_000)  # the suite's other files train beside this one


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train, stack, library])
    made = ui.open_workspace(tmp_path / "workspace")
    a_dataset(made, "mine", ["one.png", "two.png"])
    return made


def chosen(page: Page) -> Any:
    return expect(page.locator("#job input"))


# Taken off the list.


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_removed_training_is_opened_again_as_itself_and_its_buttons_act(
    context: Context, open_page: Callable[[], Page]
) -> None:
    """The Job field was empty, another run was shown, and Duplicate ended in a traceback."""
    a_run(context, "first", losses(5))
    a_run(context, "second", losses(9))
    page = open_page()
    browsing.open_tab(page, "Train")
    chosen(page).to_have_value(re.compile("second"), timeout=120_000)
    page.locator("#remove-training").click()
    chosen(page).to_have_value("first · finished")

    browsing.open_tab(page, "Library")
    page.locator("#library-kind").get_by_text("Runs", exact=True).click()
    page.locator("#library-cards .card", has_text="second").click()
    page.locator("#library-open").click()
    chosen(page).to_have_value("second · finished")
    expect(page.locator("#progress")).to_contain_text("second")
    page.locator("#duplicate-training").click()
    chosen(page).to_have_value(re.compile("second-2 · queued"))


@pytest.mark.parametrize("kind", ["train", "batch-toml"])
def test_a_field_of_jobs_offers_what_its_tab_shows(context: Context, kind: str) -> None:
    kept, removed = (context.runner.submit(name, "", kind) for name in ("kept", "removed"))
    context.runner.remove(removed.id)
    with gr.Blocks():
        view = batch._Tab(context).view if kind != "train" else train._Tab(context).view
    offered = ui._offers(context)["job" if kind == "train" else "batch-job"]()
    assert offered == view.changes(None, {})[view.job]["choices"] == [("kept · queued", kept.id)]


@pytest.mark.parametrize("kind", ["train", "batch-toml"])
def test_the_job_at_work_is_shown_first(context: Context, kind: str) -> None:
    at_work, newest = (context.runner.submit(name, "", kind) for name in ("one", "two"))
    with gr.Blocks():
        view = batch._Tab(context).view if kind != "train" else train._Tab(context).view
    assert view.changes(None, {})[view.job]["value"] == newest.id
    context.runner.table.put(at_work, state="running")
    assert view.changes(None, {})[view.job]["value"] == at_work.id
    assert view.changes(newest.id, {})[view.job]["value"] == newest.id


def test_what_would_happen_is_asked_without_naming_a_job(context: Context) -> None:
    """A look on its way while a job was taken off the list named one that Gradio refused, with a traceback."""
    with gr.Blocks() as page:
        tab = train._Tab(context)
    looks = [fn for fn in page.fns.values() if getattr(fn.fn, "__name__", "") == "look"]
    assert looks and not any(tab.view.job in fn.inputs for fn in looks) and tab.view.job not in tab.edited.inputs


# Used in Stack.


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_finished_training_is_used_in_stack_and_drawn_there(
    context: Context, open_page: Callable[[], Page], trained: Path
) -> None:
    """There were downloads alone, and the recommendation was two boxes of words."""
    folder = context.runs / "cat"
    folder.mkdir()
    shutil.copy(trained, folder / "cat.safetensors")
    shutil.copy(trained, folder / "best.safetensors")
    log = [Recommended(6, "best.safetensors", "It is the best."), Finished(6, "cat.safetensors", 9.0, 1.0)]
    a_run(context, "cat", [*losses(6), *log], **{"data.trigger": "mokka"})
    page = open_page()
    browsing.open_tab(page, "Train")
    page.get_by_role("button", name="Use step 6 in Stack").click(timeout=120_000)
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#lora-1 input")).to_have_value(re.compile("cat"))
    expect(page.locator("#stack-prompt textarea")).to_have_value(re.compile("mokka"))
    expect(page.locator("#picture img")).to_be_visible(timeout=240_000)


def test_a_training_joins_the_stack_on_its_base_and_brings_its_own_base_else(context: Context) -> None:
    from tests.test_library_keeping import lora

    a_run(context, "fox", losses(2), **{"data.trigger": "mokka"})
    info = lora_file.inspect(lora(context.runs / "fox" / "fox.safetensors", 0.4))
    page = ui.compose(context)
    opener = open_in_tab._Opener(page, context, page.tabs)
    rows = list(opener.rows)
    held = {**dict.fromkeys(rows), rows[0]: "0" * 64, opener.prompt: "a fox", opener.base: "imprimatura"}
    updates = opener.updates(held, "trained fox/fox.safetensors")
    assert updates[rows[1]]["value"] == info.sha256 and rows[0] not in updates
    assert updates[opener.prompt] == "mokka, a fox"
    assert first_stack.with_trigger("Mokka runs", "mokka") == "Mokka runs"

    # On another base the desk becomes what the training was drawn with.
    updates = opener.updates({**held, opener.base: "another"}, "trained fox/fox.safetensors")
    assert updates[opener.base]["value"] == "imprimatura" and updates[rows[0]]["value"] == info.sha256
    for key in ("fox/../fox/fox.safetensors", "fox/no.safetensors", "no/fox.safetensors", "/", ""):
        with pytest.raises(UserError):
            opener.updates(held, f"trained {key}")


# What fails.


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_what_fails_is_said_where_one_looks_and_stamped_on_nothing(
    context: Context, open_page: Callable[[], Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawing with nothing to draw stamped Error over the batch, its progress and the file zone."""
    monkeypatch.setattr(tabs, "registry", lambda: [batch, dataset])
    page = open_page()
    browsing.open_tab(page, "Batch")
    start, plan = page.locator("#start-batch"), page.locator("#batch-plan")
    expect(page.locator("#batch-why")).to_contain_text("Choose a picture", timeout=120_000)
    expect(start).to_be_disabled()
    page.locator("#batch-source").get_by_text("A table", exact=True).click()
    expect(page.locator("#batch-why")).to_contain_text("Paste or type a table")
    page.locator("#batch-table textarea").fill("prompt\tlora\na fox\tnowhere:1")
    expect(start).to_be_enabled()
    expect(page.locator("#batch-why")).to_be_hidden()
    start.click()
    expect(plan).to_contain_text("This can't be drawn yet")
    expect(plan).to_contain_text("nowhere")
    assert context.runner.every() == []

    # A toast is headed as it was meant to be, and no part of the page is stamped.
    browsing.open_tab(page, "Dataset")
    page.locator("#new-dataset input, #new-dataset textarea").first.fill("mine")
    page.locator("#create-dataset").click()
    expect(page.locator(".toast-title").first).to_contain_text("That did not work")
    assert page.locator("[data-testid=status-tracker] span.error:visible").count() == 0


def test_what_fails_is_stamped_on_one_part_at_most(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    page = ui.compose(context)
    shown = [fn for fn in page.fns.values() if fn.fn is not None and fn.show_progress != "hidden"]
    assert len(shown) > 20
    for fn in shown:
        tracked = fn.outputs if fn.show_progress_on is None else fn.show_progress_on
        assert len(tracked) <= 1, [part.elem_id for part in fn.outputs]
