"""A training paused while the server is killed, its grid, more steps and a branch: in a browser, on Imprimatura."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import test_browser as browsing
from tests.browsing import come_back
from trainer import lora_file, presets, runs, session
from trainer.events import Finished, Step

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = browsing.playwright_api.expect
WAIT_MS = 240_000  # the suite's other files train beside this one
pytestmark = [pytest.mark.slow, browsing.pytestmark, pytest.mark.timeout(1200)]
PROMPT = "a red apple, outline style"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Four pictures of the samples."""
    folder = tmp_path_factory.mktemp("pictures") / "mine"
    folder.mkdir()
    for path in sorted((examples / "outline-style" / "train").glob("*.png"))[:4]:
        shutil.copy(path, folder)
        shutil.copy(path.with_suffix(".txt"), folder)
    return folder


@pytest.fixture
def server(tmp_path: Path, pictures: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path / "workspace")
    shutil.copytree(pictures, made.workspace / "datasets" / "mine")
    made.start()
    yield made
    made.kill()
    for process in made.trainers():
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def page(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """The Train tab."""
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(WAIT_MS)
    opened.goto(server.address)
    opened.get_by_role("tab", name="Train").click()
    expect(opened.locator("#forecast")).to_contain_text("All 4 pictures train", timeout=WAIT_MS)
    yield opened
    opened.close()
    assert "Traceback" not in server.log(), server.log()


def begin(page: Page, steps: int) -> None:
    browsing.fill(page, "field-max_steps", str(steps))
    browsing.fill(page, "field-batch_size", "2")
    browsing.fill(page, "field-preview-prompts", PROMPT)
    page.locator("#start-training").click()


def see(page: Page, pattern: str) -> None:
    expect(page.locator("#progress .progress")).to_contain_text(re.compile(pattern, re.DOTALL), timeout=WAIT_MS)


def choose_job(page: Page, name: str) -> None:
    page.locator("#job input").click()
    page.get_by_role("option", name=re.compile(f"^{name} ·")).click()


def test_a_training_paused_over_a_killed_server_gives_the_very_lora_and_then_its_grid(
    page: Page, server: browsing.Server
) -> None:
    page.locator("#grid-after input").check()
    begin(page, 24)
    see(page, r"step \d+ of 24")
    page.locator("#pause-training").click()
    see(page, "Paused and saved")
    page.locator("#duplicate-training").click()
    choose_job(page, "mine")
    expect(page.locator("#queue-head")).to_contain_text("1 waits for what is paused", timeout=WAIT_MS)
    assert not server.trainers()

    # The server is killed and comes back: still paused, and still nothing else begins.
    server.kill()
    server.start()
    come_back(page, server.address)
    page.get_by_role("tab", name="Train").click()
    expect(page.locator("#queue-list li").first).to_contain_text("mine training and its grid, paused", timeout=WAIT_MS)
    page.wait_for_timeout(3000)
    assert not server.trainers()

    # Resumed from the list, it goes first; the other run is the unbroken one.
    page.get_by_role("button", name="Resume mine").click()
    expect(page.locator("#queue")).to_be_hidden(timeout=3 * WAIT_MS)
    mine, whole = (runs.Run(server.workspace / "runs" / name) for name in ("mine", "mine-2"))
    assert mine.lora_file.read_bytes() == whole.lora_file.read_bytes()
    steps = [event.step for event in mine.events() if isinstance(event, Step)]
    assert steps == [*range(1, 25)]

    # Each has its grid, once, in Batch.
    grids = sorted(path.name for path in (server.workspace / "batches").iterdir())
    assert grids == ["mine-2-grid", "mine-grid"]
    page.get_by_role("tab", name="Batch").click()
    expect(page.locator("#batch-progress")).to_contain_text("mine", timeout=WAIT_MS)
    expect(page.locator("#batch-pictures img").first).to_be_visible(timeout=WAIT_MS)


@pytest.fixture
def finished(server: browsing.Server, pictures: Path) -> runs.Run:
    """A run of six steps, of whose job the page knows."""
    import tomli_w

    from app import ui
    from app.context import Context

    folder = server.workspace / "datasets" / "mine"
    values = {
        "data.folder": str(folder), "max_steps": 6, "batch_size": 2, "preview_every_steps": 0,
        "preview.prompts": [PROMPT], "checkpoint_every_steps": 3, "adapter.rank": 5,
    }  # fmt: skip
    config = session.absolute(presets.load("imprimatura-style", values))
    run, stream = session.start(config, server.workspace / "runs", "fox", None)
    assert isinstance(list(stream)[-1], Finished)
    context: Context = ui.open_workspace(server.workspace)
    job = context.runner.submit("x", tomli_w.dumps(config.model_dump(mode="json")))
    with context.runner._connect() as connection:
        connection.execute("UPDATE job SET name = 'fox', state = 'finished' WHERE id = ?", (job.id,))
    return run


def test_a_run_is_extended_and_branched_off_from_the_page(
    finished: runs.Run, page: Page, server: browsing.Server
) -> None:
    choose_job(page, "fox") if "fox" not in page.locator("#job input").input_value() else None
    page.locator("#go-on > button").click()
    expect(page.locator("#go-on-words")).to_contain_text("cosine schedule depends on the number of steps")
    browsing.fill(page, "more-steps", "4")
    page.locator("#extend-run").click()
    see(page, r"Finished.*step 10 of 10")
    assert finished.config().optimizer.extended == ("6=6",)

    # Branch off: the form has the run's settings, and what must be changed is said.
    page.locator("#branch-optimizer input").check()
    page.locator("#branch-run").click()
    expect(page.locator("#forecast")).to_contain_text("goes on from fox, step 10", timeout=WAIT_MS)
    assert page.locator("#field-adapter-lora-rank input").first.input_value() == "5"
    before = finished.lora_file.read_bytes()
    browsing.fill(page, "field-max_steps", "12")
    browsing.fill(page, "run-name", "vixen")
    page.wait_for_timeout(1500)
    page.reload()  # what is to be gone on from is kept
    expect(page.locator("#forecast")).to_contain_text("goes on from fox, step 10", timeout=WAIT_MS)
    browsing.fill(page, "run-name", "vixen")
    page.locator("#start-training").click()
    see(page, r"vixen.*Finished.*step 12 of 12")
    vixen = runs.Run(server.workspace / "runs" / "vixen")
    assert [event.step for event in vixen.events() if isinstance(event, Step)] == [11, 12]
    assert vixen.config().start.source == str(finished.checkpoints / "step-000010")
    assert finished.lora_file.read_bytes() == before

    # Its lineage on its card, and on its LoRA's.
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-cards .card").filter(has_text="vixen").click()
    expect(page.locator("#library-details")).to_contain_text("Goes on from", timeout=WAIT_MS)
    expect(page.locator("#library-details")).to_contain_text("fox, step 10")


def test_the_library_leads_to_a_form_that_goes_on_from_a_lora(
    finished: runs.Run, page: Page, server: browsing.Server
) -> None:
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-cards .card").filter(has_text="fox").click()
    expect(page.locator("#library-onward")).to_be_visible(timeout=WAIT_MS)
    page.locator("#library-onward").click()
    expect(page.locator("#field-start-source input")).to_have_value("LoRA fox", timeout=WAIT_MS)
    expect(page.locator("#field-adapter-lora-rank input").first).to_have_value("5", timeout=WAIT_MS)
    expect(page.locator("#forecast")).to_contain_text("goes on from fox", timeout=WAIT_MS)

    # A rank that does not fit is said before anything is queued.
    browsing.fill(page, "field-adapter-lora-rank", "2")
    page.wait_for_timeout(1500)
    page.locator("#start-training").click()
    expect(page.locator("#forecast")).to_contain_text(re.compile("“Rank” is 2; allowed: 5 or more"), timeout=WAIT_MS)
    browsing.fill(page, "field-adapter-lora-rank", "5")
    begin(page, 2)
    see(page, r"Finished.*step 2 of 2")
    on = runs.Run(server.workspace / "runs" / "mine")
    recipe = lora_file.recipe_of(lora_file.read_header(on.lora_file).metadata)
    assert recipe and recipe["config"]["start"]["source"] == "fox.safetensors"
