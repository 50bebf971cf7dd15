"""The page in a real browser: from a sample set to a trained LoRA to a picture, across a reload, with nothing asked of
the network.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests import browsing, warm
from tests.page_fixtures import ARGUMENTS, CHROMIUM, HOSTILE, NEEDS_CHROMIUM  # noqa: F401  # theirs who import these from here

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).parents[1]

playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)
playwright_api.expect.set_options(timeout=30_000)  # the suite's other files train beside this one, on two cores
pytestmark = NEEDS_CHROMIUM


@dataclass
class Server:
    """`python -m app` on a workspace, started and killed as a test likes."""

    workspace: Path
    port: int = field(default_factory=lambda: _free_port())
    process: warm.Server | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        arguments = ["--workspace", str(self.workspace), "--port", str(self.port)]
        self.process = warm.Server(arguments, ROOT, self.workspace.parent / "server.log")
        deadline = time.monotonic() + 240  # other files may train beside this one
        while True:
            try:
                urllib.request.urlopen(f"{self.address}config", timeout=5).read()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.kill()  # a fixture that never came to its yield doesn't
                    raise AssertionError(self.log()) from None
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)

    def log(self) -> str:
        return (self.workspace.parent / "server.log").read_text()[-4000:]

    def trainers(self) -> list[psutil.Process]:
        """Living trainings of this workspace."""
        processes = []
        for process in psutil.process_iter(["cmdline", "status"]):
            line = process.info["cmdline"] or []
            if str(self.workspace / "runs") in line and process.info["status"] != psutil.STATUS_ZOMBIE:
                processes.append(process)
        return processes


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "workspace")
    made.start()
    yield made
    made.kill()
    for process in made.trainers():
        os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page on the server; fails on an error in the page and on any request that leaves this machine."""
    problems: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(30_000)
    opened.on("pageerror", lambda error: problems.append(f"error in the page: {error}"))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((server.address, "data:", "blob:"))
            else problems.append(f"asked for {request.url}")
        ),
    )
    opened.goto(server.address)
    playwright_api.expect(opened.locator("#dataset-summary textarea, #dataset-summary input").first).not_to_have_value(
        ""
    )  # the page has asked what there is
    yield opened
    assert opened.evaluate("window.__owned") is None
    assert not problems, problems
    assert "Traceback" not in server.log(), server.log()


def fill(page: Page, elem_id: str, value: str) -> None:
    box: Locator = page.locator(f"#{elem_id} input, #{elem_id} textarea").first
    box.fill(value)
    box.press("Tab")


def copy_sample(page: Page) -> None:
    page.locator("#copy-sample").click()
    page.locator("#dataset-gallery img").first.wait_for()
    assert "44 pictures" in page.locator("#dataset-summary").locator("textarea, input").first.input_value()


def begin_training(page: Page, steps: int) -> None:
    page.get_by_role("tab", name="Train").click()
    playwright_api.expect(page.locator("#train-heldout input")).to_have_value("outline-style-heldout")
    fill(page, "field-max_steps", str(steps))
    fill(page, "field-batch_size", "4")
    fill(page, "field-preview-prompts", "a red apple, outline style")
    playwright_api.expect(page.locator("#field-max_steps input").first).to_have_value(str(steps))
    page.locator("#start-training").click()


def unfold(page: Page, title: str) -> None:
    page.get_by_role("button", name=re.compile(f"^{title}")).click()


def try_conditions(page: Page) -> None:
    """A setting comes when another asks for it, also within a folded group, and goes again."""
    page.get_by_role("tab", name="Train").click()
    unfold(page, "Advanced")
    unfold(page, "New word")
    vectors = page.locator("#field-inversion-vectors")
    playwright_api.expect(vectors).to_be_hidden()
    fill(page, "field-inversion-token", "mokka")
    playwright_api.expect(vectors).to_be_visible()
    fill(page, "field-inversion-token", "")
    playwright_api.expect(vectors).to_be_hidden()
    unfold(page, "Advanced")


def see(page: Page, pattern: str, timeout_s: float = 120) -> None:
    playwright_api.expect(page.locator("#progress .progress")).to_contain_text(
        re.compile(pattern), timeout=timeout_s * 1000
    )


def go_on_to_a_batch(page: Page, server: Server) -> None:
    """From a picture on the Stack tab: how its LoRAs meet, and more like it."""
    unfold(page, "How these LoRAs go together")
    page.locator("#conflict-map").click()
    playwright_api.expect(page.locator("#conflicts")).to_contain_text(re.compile(r"outline-style.*of \d+", re.DOTALL))

    # More of the same, drawn without the page.
    page.get_by_role("tab", name="Batch").click()
    playwright_api.expect(page.locator("#batch-sample img")).to_be_visible()
    fill(page, "batch-seeds", "1-2")
    page.locator("#start-batch").click()
    playwright_api.expect(page.locator("#batch-plan")).to_contain_text("2 pictures")
    page.reload()
    page.get_by_role("tab", name="Batch").click()
    playwright_api.expect(page.locator("#batch-progress")).to_contain_text(
        re.compile("2 of 2 pictures"), timeout=90_000
    )
    playwright_api.expect(page.locator("#batch-pictures .grid img")).to_have_count(3)  # and their sheet
    assert len(list((server.workspace / "batches" / "batch").glob("*.png"))) == 2


@pytest.mark.slow
def test_from_samples_to_a_picture_across_a_reload(page: Page, server: Server, browser: Browser) -> None:
    copy_sample(page)
    try_conditions(page)
    begin_training(page, steps=24)
    see(page, r"step \d+ of 24")
    page.reload()
    page.get_by_role("tab", name="Train").click()
    see(page, r"outline-style.*(Training|Measuring).*step \d+ of 24")
    assert len(server.trainers()) == 1

    second = browser.new_page()  # a second tab shows the same job
    second.goto(server.address)
    second.get_by_role("tab", name="Train").click()
    see(second, r"outline-style.*step \d+ of 24")
    second.close()

    see(page, "Finished")
    assert page.locator("#samples img").count() >= 2
    assert "never saw" in page.locator("#heldout-result textarea").input_value()
    playwright_api.expect(page.locator("#recommendation")).to_contain_text("Use step 24: best.safetensors")
    assert page.locator("#heldout-plot svg").count() == 1 and "44" in page.locator("#plan").inner_text()
    for name, file in (("best", "outline-style-best.safetensors"), ("report", "report.html")):
        with page.expect_download() as waiting:
            page.locator(f"#download-{name}").click()
        assert waiting.value.suggested_filename == file and Path(waiting.value.path()).stat().st_size > 1000
    assert (server.workspace / "runs" / "outline-style" / "outline-style.safetensors").is_file()

    page.get_by_role("tab", name="Stack").click()
    page.locator("#lora-1 input").click()
    page.get_by_role("option", name="outline-style").click()
    fill(page, "stack-prompt", "a red apple, outline style")
    fill(page, "stack-steps", "8")
    fill(page, "weight-1", "0.75")
    page.locator("#render").click()
    page.locator("#picture img").wait_for(timeout=90_000)
    made_from = playwright_api.expect(page.locator("#infotext textarea"))
    made_from.to_have_value(re.compile("<lora:outline-style:0.75>"), timeout=90_000)  # Live has drawn others before it
    assert page.locator("#picture img").evaluate("image => image.naturalWidth") == 128

    # The picture that is offered brings the stack back.
    with page.expect_download() as waiting:
        page.locator("#download").click()
    picture = waiting.value.path()
    fill(page, "stack-prompt", "something else")
    fill(page, "weight-1", "0.1")
    page.locator("#recipe-png input[type=file]").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": Path(picture).read_bytes()}
    )
    playwright_api.expect(page.locator("#stack-prompt").locator("textarea, input").first).to_have_value(
        "a red apple, outline style"
    )
    assert page.locator("#weight-1 input[type=number]").input_value() == "0.75"

    go_on_to_a_batch(page, server)


@pytest.mark.slow
def test_training_outlives_the_server_and_can_be_stopped_after(page: Page, server: Server) -> None:
    copy_sample(page)
    begin_training(page, steps=2000)
    see(page, r"step [1-9]\d* of 2000")
    (trainer,) = server.trainers()
    page.goto(
        "about:blank"
    )  # a page left open reloads itself once the server is back, and would break off our own visit
    server.kill()
    assert trainer.is_running()
    server.start()
    browsing.come_back(page, server.address)
    page.get_by_role("tab", name="Train").click()
    see(page, r"outline-style.*Training.*step [1-9]\d* of 2000")
    assert [process.pid for process in server.trainers()] == [trainer.pid]
    page.locator("#stop-training").click()
    see(page, "Stopped; it can go on")
    assert not server.trainers()
    playwright_api.expect(page.locator("#resume-training")).to_be_enabled()


def test_hostile_captions_and_names_are_only_text(page: Page, server: Server) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(picture, "PNG")
    fill(page, "new-dataset", "mine")
    page.locator("#create-dataset").click()
    playwright_api.expect(page.locator("#dataset input")).to_have_value("mine")
    page.locator("#dataset-files input[type=file]").set_input_files(
        [
            {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": picture.getvalue()},
            {"name": "bad.png", "mimeType": "image/png", "buffer": HOSTILE.encode()},
        ]
    )
    playwright_api.expect(page.locator("#dataset-report textarea")).to_have_value(
        re.compile("bad.png is not a picture")
    )
    copies = [path for path in (server.workspace / "cache" / "gradio").rglob("*.png") if path.is_file()]
    assert not copies, "what was uploaded stays in no other place than its dataset"
    page.locator("#dataset-gallery .thumbnail-item").first.click()
    playwright_api.expect(page.locator("#caption textarea")).to_be_enabled()
    page.locator("#caption textarea").fill(HOSTILE)
    page.locator("#save-caption").click()
    playwright_api.expect(page.locator("#dataset-gallery")).to_contain_text("<img src=x")
    folder = server.workspace / "datasets" / "mine"
    browsing.until(page, lambda: [path.read_text().strip() for path in folder.glob("*.txt")] == [HOSTILE])
    page.locator("#undo-caption").click()
    playwright_api.expect(page.locator("#dataset-gallery")).to_contain_text("no caption yet")
    browsing.until(page, lambda: not [*folder.glob("*.txt")])
    assert page.evaluate("window.__owned") is None
