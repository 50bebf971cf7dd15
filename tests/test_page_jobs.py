"""What the page does with a training that is over: taken off the list and opened again, gone on with, used in Stack."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest

from app import tabs, ui
from app.context import Context
from app.tabs import batch, library, stack, train
from tests import browsing
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_page_runs import a_dataset, a_run, losses

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
