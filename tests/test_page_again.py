"""Training again with new pictures, in a real browser: from the Library to the verdict, over a killed server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from app import tabs, ui
from app.context import Context
from app.tabs import library, stack, train
from tests import test_browser as browsing
from tests.browsing import come_back
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_app_retrained import VERDICT
from tests.test_page_train import choose, fill, says
from trainer import phases, runs
from trainer.events import Step
from trainer.report import compared

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = browsing.playwright_api.expect
WAIT_MS = 240_000  # the suite's other files train beside this one
pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> Context:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train, stack, library])
    made = ui.open_workspace(tmp_path / "workspace")
    shutil.copytree(trained.parent, made.runs / "cat")
    for name, num in (("few", 4), ("new", 7)):
        draw(made.datasets / name, num)
    return made


def draw(folder: Path, num: int) -> None:
    folder.mkdir(parents=True)
    for number in range(num):
        Image.new("RGB", (64, 64), (number * 30, 90, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("mokka, a square")


def open_run(page: Page, name: str) -> None:
    """The run's panel in the Library."""
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-kind").get_by_text("Runs").click()
    page.locator(f'#library-cards [data-key="{name}"]').click()
    expect(page.locator("#library-details")).to_contain_text(name)


def test_a_run_is_trained_again_from_the_library_and_what_must_fail_can_not_begin(
    context: Context, open_page: Callable[[], Page]
) -> None:
    from trainer import session  # noqa: F401  # what the first start loads, so that the wait below is for the page

    page = open_page()
    open_run(page, "cat")
    page.locator("#library-again").click()
    box = page.locator("#again-box")
    expect(box).to_contain_text("This is the recipe of cat. Choose the new pictures.", timeout=WAIT_MS)
    expect(page.locator("#forecast")).to_contain_text("No dataset is chosen")
    expect(page.locator("#start-training")).to_be_disabled()
    assert page.locator("#field-max_steps input").input_value() == "6"  # the recipe's own

    # Four pictures are too few to hold some out.
    choose(page, "train-dataset", "few")
    says(page, "4 pictures are too few to hold some out")
    expect(page.locator("#start-training")).to_be_disabled()
    choose(page, "train-dataset", "new")
    says(page, "2 pictures held out to compare old and new on")
    expect(page.locator("#start-training")).to_be_enabled()

    # It begins with the old one where that is wished, and the form says so.
    page.locator("#again-from-old input").check()
    says(page, "goes on from")
    page.locator("#again-from-old input").uncheck()
    expect(page.locator("#forecast")).not_to_contain_text("goes on from")
    page.locator("#again-from-old input").check()
    says(page, "goes on from")

    # Kept over a reload; then started.
    page.wait_for_timeout(1500)
    page.reload()
    expect(page.locator("#again-box")).to_contain_text("This is the recipe of cat.", timeout=WAIT_MS)
    says(page, "2 pictures held out to compare old and new on")
    expect(page.locator("#again-from-old input")).to_be_checked()
    fill(page, "run-name", "again")
    page.locator("#start-training").click()
    expect(page.locator("#job input")).to_have_value(re.compile("again · queued"), timeout=WAIT_MS)
    expect(page.locator("#verdict")).to_contain_text("compared with cat")
    expect(box).to_be_hidden()
    (job,) = context.runner.every()
    command = context.runner.work.command(job)
    assert (
        Path(command[command.index("--compare-with") + 1]).read_bytes()
        == (context.runs / "cat" / "cat.safetensors").read_bytes()
    )
    assert "leave_out = 2" in job.config and "cat.safetensors" in job.config


@pytest.mark.slow
def test_a_start_without_comparing_is_a_start_like_any_other(context: Context, open_page: Callable[[], Page]) -> None:
    page = open_page()
    open_run(page, "cat")
    page.locator("#library-again").click()
    choose(page, "train-dataset", "few")
    says(page, "4 pictures are too few")
    page.locator("#again-leave").click()
    expect(page.locator("#again-box")).to_be_hidden()
    says(page, "All 4 pictures train")
    page.locator("#start-training").click()
    expect(page.locator("#job input")).to_have_value(re.compile("few · queued"), timeout=WAIT_MS)
    (job,) = context.runner.every()
    assert "--compare-with" not in context.runner.work.command(job)


@pytest.mark.slow
@pytest.mark.parametrize("better", ["new", "old"])
def test_the_better_one_is_opened_in_stack_from_train_and_from_the_library(
    context: Context, open_page: Callable[[], Page], better: str, trained_style: Path
) -> None:
    folder = context.runs / "again"
    shutil.copytree(trained_style.parent, folder)
    for path in folder.glob("style.*"):
        path.rename(folder / f"again{path.suffix}")
    old = next(sha256 for sha256, info in context.find_loras().items() if info.name == "cat")
    answer = asdict(VERDICT) | {
        "better": better,
        "old": "cat.safetensors",
        "new": "again.safetensors",
        "old_sha256": old,
    }
    (folder / compared.FILE).write_text(json.dumps(answer))
    job = context.runner.submit("again", (folder / "config.toml").read_text())
    with context.runner._connect() as connection:
        connection.execute("UPDATE job SET name = 'again', state = 'finished' WHERE id = ?", (job.id,))
    page = open_page()
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#verdict")).to_contain_text(VERDICT.sentence, timeout=WAIT_MS)
    expect(page.locator("#verdict svg.interval")).to_be_visible()
    page.locator("#use-better").click()
    wanted = "again" if better == "new" else "cat"
    expect(page.locator("#lora-1 input")).to_have_value(re.compile(wanted), timeout=WAIT_MS)
    page.locator("#remove-1").click()
    expect(page.locator("#lora-1 input")).not_to_have_value(re.compile(wanted))
    open_run(page, "again")
    expect(page.locator("#library-details")).to_contain_text(VERDICT.sentence)
    page.locator("#library-better").click()
    expect(page.locator("#lora-1 input")).to_have_value(re.compile(wanted), timeout=WAIT_MS)


# A server that is killed, with the trainings that it began.


@pytest.fixture
def server(tmp_path: Path, trained: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path / "served" / "workspace")
    shutil.copytree(trained.parent, made.workspace / "runs" / "cat")
    draw(made.workspace / "datasets" / "new", 7)
    made.start()
    yield made
    made.kill()
    for process in made.trainers():
        os.kill(process.pid, signal.SIGKILL)


def until(what: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def kill_all(server: browsing.Server) -> None:
    """The server and what it began, at once and without a word."""
    trainers = server.trainers()
    server.kill()
    for process in trainers:
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_paused_and_killed_in_training_and_in_comparing_it_ends_with_its_verdict(
    browser: object, server: browsing.Server
) -> None:
    page: Page = browser.new_page(viewport={"width": 1440, "height": 900})  # type: ignore[attr-defined]
    page.set_default_timeout(WAIT_MS)
    page.goto(server.address)
    open_run(page, "cat")
    page.locator("#library-again").click()
    expect(page.locator("#again-box")).to_be_visible(timeout=WAIT_MS)
    choose(page, "train-dataset", "new")
    says(page, "2 pictures held out to compare old and new on")
    fill(page, "field-max_steps", "24")
    page.locator("#start-training").click()
    run = runs.Run(server.workspace / "runs" / "new")
    until(lambda: any(isinstance(event, Step) for event in run.events()))

    # Paused and resumed, then killed with its server.
    page.locator("#pause-training").click()
    expect(page.locator("#progress")).to_contain_text("Paused and saved", timeout=WAIT_MS)
    page.locator("#resume-training").click()
    expect(page.locator("#progress")).to_contain_text(re.compile("step \\d+ of 24"), timeout=WAIT_MS)
    until(lambda: sum(isinstance(event, Step) for event in run.events()) > 12)
    kill_all(server)
    server.start()

    # Killed once more while it compares.
    until(lambda: (phase := phases.read(run)) is not None and phase.what == "comparing")
    assert run.state() == "finished" and not (run.folder / compared.FILE).exists()
    log = run.events_file.read_bytes()
    kill_all(server)
    server.start()
    until(lambda: (run.folder / compared.FILE).exists())
    steps = [event.step for event in run.events() if isinstance(event, Step)]
    assert run.events_file.read_bytes() == log and steps == [*range(1, 25)]

    # The verdict stands where the artist looks.
    come_back(page, server.address)
    page.get_by_role("tab", name="Train").click()
    found = compared.read(run.folder)
    assert found is not None
    expect(page.locator("#verdict")).to_contain_text(found.sentence[:60], timeout=WAIT_MS)
    expect(page.locator("#progress")).to_contain_text("Finished", timeout=WAIT_MS)
    open_run(page, "new")
    expect(page.locator("#library-details")).to_contain_text(found.sentence[:60])
    page.close()
    assert "Traceback" not in server.log(), server.log()
