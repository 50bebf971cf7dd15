"""Captions written by a job of the page: killed and gone on with, asked for by a browser, seen as they come."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import captioning, tabs, ui
from app.context import Context
from app.job_table import Job
from app.job_work import CAPTIONS
from app.tabs import dataset
from tests import captioners
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM
from tests.test_browser import fill, playwright_api, unfold
from tests.test_captioning import draw, texts
from trainer.data import edits
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = playwright_api.expect


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP and a LLaVA, tiny and random."""
    home = tmp_path_factory.mktemp("captioners")
    captioners.blip(home / "blip")
    captioners.llava(home / "llava")
    return home


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folders: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [dataset])
    made = ui.open_workspace(tmp_path / "workspace")
    made.captioners.symlink_to(model_folders, target_is_directory=True)
    return made


def order(**changes: object) -> captioning.Order:
    usual = {"model": "blip", "purpose": "style", "trigger": "", "leave_out": "", "instruction": "", "every": True}
    return captioning.Order(dataset="mine", **{**usual, **changes})  # type: ignore[arg-type]


def tick_until(context: Context, job: Job, ready: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + 120
    while not ready(now := context.runner.get(job.id)):
        assert time.monotonic() < deadline, context.runner.log_file(job).read_text()[-2000:]
        context.runner.tick()
        time.sleep(0.05)
    return now


def test_a_killed_job_goes_on_and_captions_no_picture_twice(context: Context) -> None:
    folder = draw(context.datasets / "mine", 12, {number: "old" for number in range(12)})
    job = captioning.begin(context, order())
    with pytest.raises(ConfigError, match="is writing captions for this dataset"):
        captioning.begin(context, order())
    some = tick_until(context, job, lambda _: (folder / "2.txt").read_text() != "old")
    assert some.pid
    os.kill(some.pid, signal.SIGKILL)
    done = tick_until(context, job, lambda now: now.state in ("finished", "failed"))
    assert done.state == "finished", done.error
    log = context.runner.log_file(job).read_text().splitlines()
    named = [json.loads(line)["name"] for line in log if line.startswith('{"event": "captioned"')]
    assert sum('"planned"' in line for line in log) == 2 and len(named) == len(set(named)) >= 11
    assert "old" not in texts(folder).values()
    assert [edit.num_pictures for edit in edits.history(folder)] == [12]
    shown = captioning.progress(context, done)
    assert shown.headline == "Finished" and "12 of 12 pictures" in shown.detail


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "../blip"}, "not here; allowed: blip"),
        ({"model": "/etc"}, "not here"),
        ({"model": ""}, "none is chosen"),
        ({"purpose": "<b>"}, "character or style"),
        ({"trigger": "x" * 100}, "up to 80"),
        ({"instruction": "tell me"}, "takes no instruction"),
    ],
)
def test_what_a_browser_may_not_ask_for_starts_nothing(
    changes: dict[str, object], words: str, context: Context
) -> None:
    draw(context.datasets / "mine", 1)
    with pytest.raises(ConfigError, match=words):
        captioning.begin(context, order(**changes))
    assert not context.runner.every()


def test_a_job_whose_order_cannot_be_read_keeps_no_other_dataset_from_its_captions(context: Context) -> None:
    draw(context.datasets / "mine", 1)
    context.runner.submit("captions-odd", '{"of": "another version"}', CAPTIONS)
    assert captioning.newest(context, "mine") is None
    assert captioning.begin(context, order()).id == captioning.newest(context, "mine").id  # type: ignore[union-attr]


def test_a_log_that_holds_anything_shows_as_nothing(context: Context) -> None:
    draw(context.datasets / "mine", 1)
    job = captioning.begin(context, order())
    context.runner.log_file(job).write_text(
        '{"event": "captioned", "done": "<b>"}\n{"event": "skipped", "done": NaN, "total": 1, "left_s": 1}\n[]\n'
    )
    assert captioning.progress(context, job).detail == ""


# The page.


@pytest.fixture
def page(context: Context, open_page: Callable[[], Page]) -> Iterator[Page]:
    """The tab in a browser, and the server's thread that starts jobs."""
    draw(context.datasets / "mine", 3, {1: "a person's"})
    opened = open_page()
    opened.set_viewport_size({"width": 1440, "height": 1300})
    context.runner.start()
    opened.locator("#dataset-gallery img").first.wait_for()
    yield opened
    context.runner.halt()


@NEEDS_CHROMIUM
@pytest.mark.timeout(400)
def test_captions_come_as_they_are_written_and_one_undo_takes_them_back(context: Context, page: Page) -> None:
    folder = context.datasets / "mine"
    unfold(page, "Write captions")
    expect(page.locator("#caption-instruction")).to_have_count(0)  # a BLIP takes none
    page.locator("#captioner input").click()
    page.get_by_role("option", name="llava", exact=True).click()
    told = page.locator("#caption-instruction textarea")
    expect(told).to_have_value(re.compile("^Describe this picture"))
    told.fill(HOSTILE)
    page.get_by_label("A style").click()
    expect(page.locator("#caption-leave-out textarea")).to_have_value(re.compile("illustration"))
    expect(told).to_have_value(HOSTILE)  # what a person wrote stays
    fill(page, "check-trigger", HOSTILE)
    page.locator("#begin-captions").click()

    # Its progress, the gallery, and the files.
    expect(page.locator("#caption-progress")).to_contain_text("Finished", timeout=200_000)
    expect(page.locator("#caption-progress")).to_contain_text("2 of 2 pictures")
    expect(page.locator("#dataset-gallery")).to_contain_text(HOSTILE)
    assert {name: text.startswith(HOSTILE) for name, text in texts(folder).items()} == {
        "0": True,
        "1": False,
        "2": True,
    }

    # One edit of the set.
    unfold(page, "Edits")
    page.locator("#dataset-history").get_by_label("Undo Captions by llava (2)").click()
    expect(page.locator("#dataset-gallery").get_by_text("no caption yet")).to_have_count(2)
    assert texts(folder) == {"1": "a person's"}
