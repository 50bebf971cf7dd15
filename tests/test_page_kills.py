"""The server killed in the middle of a training, a batch and an automatic captioning that were begun on the page, and
started again: the page comes back by itself, the work goes on, and everything is done once.
"""

from __future__ import annotations

import collections
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browsing, captioners, test_browser
from tests.test_browser import Server, fill, server  # noqa: F401  # fixtures
from tests.test_captioning import draw, texts
from trainer.data import edits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), test_browser.pytestmark]
expect = test_browser.playwright_api.expect
WAIT_MS = 240_000


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:  # noqa: F811
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(90_000)
    opened.goto(server.address)
    opened.get_by_role("tab", name="Train").wait_for()
    yield opened
    assert "Traceback" not in server.log(), server.log()


def kill_and_start(page: Page, server: Server) -> None:  # noqa: F811
    """Kill the server and start it again, the page left open; it must be of the new server by itself."""
    page.evaluate("window.__old = true")
    server.kill()
    page.wait_for_timeout(2500)  # the page asks, and nobody answers
    server.start()
    page.wait_for_function("!window.__old && document.querySelector('#tabs button[role=tab]')", timeout=WAIT_MS)


def steps_of(run: Path) -> collections.Counter[int]:
    lines = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return collections.Counter(line["step"] for line in lines if line["event"] == "step")


def test_a_training_goes_on_and_makes_each_step_once(page: Page, server: Server) -> None:  # noqa: F811
    browsing.open_tab(page, "Dataset")
    test_browser.copy_sample(page)
    test_browser.begin_training(page, steps=60)
    test_browser.see(page, r"step [1-9]\d* of 60", timeout_s=240)
    kill_and_start(page, server)
    test_browser.see(page, r"outline-style.*(step \d+ of 60|Finished)", timeout_s=240)  # the tab and the job are kept
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    test_browser.see(page, "Finished", timeout_s=400)
    (run,) = (server.workspace / "runs").glob("[!.]*")
    assert steps_of(run) == dict.fromkeys(range(1, 61), 1)
    assert (run / f"{run.name}.safetensors").is_file()


def test_a_killed_training_is_taken_up_again(page: Page, server: Server) -> None:  # noqa: F811
    """Server and training die together, as when a machine loses its power."""
    browsing.open_tab(page, "Dataset")
    test_browser.copy_sample(page)
    page.get_by_role("tab", name="Train").click()
    browsing.unfold_all(page)
    fill(page, "field-checkpoint_every_steps", "10")
    fill(page, "field-preview-prompts", "a red apple, outline style")
    fill(page, "field-batch_size", "2")
    fill(page, "field-max_steps", "40")
    page.locator("#start-training").click()
    test_browser.see(page, r"step (1[2-9]|2\d) of 40", timeout_s=300)
    server.kill()
    for process in server.trainers():
        os.kill(process.pid, signal.SIGKILL)
    page.evaluate("window.__old = true")
    server.start()
    page.wait_for_function("!window.__old && document.querySelector('#progress')", timeout=WAIT_MS)
    test_browser.see(page, "Finished", timeout_s=400)
    (run,) = (server.workspace / "runs").glob("[!.]*")
    assert set(steps_of(run)) == set(range(1, 41)) and (run / f"{run.name}.safetensors").is_file()


def test_a_batch_goes_on_and_draws_each_picture_once(page: Page, server: Server) -> None:  # noqa: F811
    browsing.open_tab(page, "Stack")
    page.locator("#live input").set_checked(False)
    fill(page, "stack-prompt", "a red apple")
    fill(page, "stack-steps", "6")
    page.locator("#render").click()
    expect(page.locator("#picture img")).to_be_visible(timeout=WAIT_MS)
    browsing.open_tab(page, "Batch")
    expect(page.locator("#batch-sample img")).to_be_visible()
    fill(page, "batch-seeds", "1-24")
    page.locator("#start-batch").click()
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(r"[1-9]\d* of 24"), timeout=WAIT_MS)
    drawn = {path: path.stat().st_mtime_ns for path in (server.workspace / "batches").glob("*/*.png")}
    kill_and_start(page, server)
    expect(page.locator("#batch-progress")).to_contain_text("24 of 24 pictures", timeout=WAIT_MS)
    (folder,) = (server.workspace / "batches").iterdir()
    pictures = [path for path in folder.glob("*.png") if "sheet" not in path.name]
    assert len(pictures) == 24
    assert all(path.stat().st_mtime_ns == made for path, made in drawn.items()), "a picture was drawn twice"


def test_captions_go_on_and_each_picture_has_one_and_one_undo_takes_them_back(page: Page, server: Server) -> None:  # noqa: F811
    folder = draw(server.workspace / "datasets" / "mine", 40)
    captioners.blip(server.workspace / "captioners" / "blip")
    page.goto(server.address)
    browsing.open_tab(page, "Dataset")
    page.locator("#dataset-gallery img").first.wait_for()
    browsing.unfold_all(page)
    page.locator("#begin-captions").click()
    expect(page.locator("#caption-progress")).to_contain_text(re.compile(r"[1-9]\d* of 40"), timeout=WAIT_MS)
    kill_and_start(page, server)
    browsing.unfold_all(page)
    expect(page.locator("#caption-progress")).to_contain_text("Finished", timeout=WAIT_MS)
    assert len(texts(folder)) == 40
    named = [
        line["name"]
        for log in (server.workspace / "logs").iterdir()
        for text in log.read_text().splitlines()
        if text.startswith('{"event": "captioned"') and (line := json.loads(text))
    ]
    assert sorted(named) == sorted(set(named)) and len(named) == 40
    assert [edit.num_pictures for edit in edits.history(folder)] == [40]
    expect(page.locator("#dataset-gallery").get_by_text("no caption yet")).to_have_count(0)
