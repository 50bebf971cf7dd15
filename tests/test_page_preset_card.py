"""A card in two real browsers: made of a run in one workspace, dropped into another, compared, trained by, and met."""

from __future__ import annotations

import contextlib
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests import test_browser
from tests.test_browser import HOSTILE, Server  # fixture
from tests.viewed_pictures import enlarge, leave
from trainer import card_file, events, presets, runs
from trainer.card_file import reading
from trainer.card_file.contents import Card
from trainer.config import StackConfig
from trainer.events import Sampled

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), test_browser.pytestmark]
expect = test_browser.playwright_api.expect
WAIT_MS = 120_000


class Place:
    """A workspace of its own, with its own presets and cards, and its pages."""

    def __init__(self, folder: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "workspace").mkdir(parents=True)
        self.home, self.browser = folder / "home", browser
        self.pages: list[Page] = []
        monkeypatch.setenv("VELATURA_HOME", str(self.home))
        self.server = Server(folder / "workspace")

    def start(self) -> None:
        """Serve it, on a machine however busy."""
        try:
            self.server.start()
        except AssertionError:  # it gives a server a minute
            assert self.server.process is not None and self.server.process.poll() is None, self.server.log()
            for _ in range(300):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{self.server.address}config", timeout=5).read()
                    return
                time.sleep(1)
            raise

    def page(self) -> Page:
        """The Library in a new window."""
        page = self.browser.new_page(viewport={"width": 1440, "height": 900})
        self.pages.append(page)
        page.set_default_timeout(WAIT_MS)
        page.goto(self.server.address)
        page.get_by_role("tab", name="Library").click()
        expect(page.locator("#library-drop")).to_be_visible(timeout=WAIT_MS)
        return page


@pytest.fixture
def place(tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes places; fails on an error of any of their servers."""
    made: list[Place] = []

    def new(name: str) -> Place:
        made.append(Place(tmp_path / name, browser, monkeypatch))
        return made[-1]

    yield new
    for one in made:
        for page in one.pages:  # first, as a page whose server is gone says so
            page.close()
        one.server.kill()
        for process in one.server.trainers():
            process.kill()
    for one in made:
        assert "Traceback" not in one.server.log(), one.server.log()


def kind(page: Page, name: str) -> None:
    page.locator("#library-kind").get_by_text(name, exact=True).click()


def choose(page: Page, name: str) -> None:
    page.locator("#library-cards .card", has_text=name).first.click()
    expect(page.locator("#library-details h3")).to_contain_text(name, timeout=WAIT_MS)


def box(page: Page, elem_id: str) -> Any:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def drop(page: Page, path: Path) -> None:
    page.locator("#library-drop input[type=file]").set_input_files(str(path))


def keep(page: Page) -> None:
    page.locator("#keep-arrival").click()
    expect(page.locator("#library-arrival")).to_contain_text("It is kept under Presets.", timeout=WAIT_MS)


def shared(place: Any, trained: Path, card: Path) -> None:
    """The card of a run that was really trained, with a preview, made and fetched in a workspace of its own."""
    first = place("first")
    folder = first.server.workspace / "runs" / "pictures of anna"
    shutil.copytree(trained.parent, folder)
    (folder / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (96, 96), "teal").save(folder / "samples" / "6.png")
    events.Log(folder / "events.jsonl").write(Sampled(6, f"a cat {HOSTILE}", "samples/6.png"))
    first.start()

    page = first.page()
    kind(page, "Runs")
    choose(page, "pictures of anna")
    page.locator("#share").get_by_text("Share").click()
    box(page, "share-author").fill(f"Ann {HOSTILE}")
    page.locator("#share-samples").get_by_text("With previews").click()
    page.locator("#make-card").click()
    expect(page.locator("#download-card")).to_be_visible(timeout=WAIT_MS)
    with page.expect_download() as fetching:
        page.locator("#download-card").click()
    fetching.value.save_as(card)
    page.close()
    first.server.kill()


def test_a_run_is_shared_and_trained_by_elsewhere(place: Any, trained: Path, tmp_path: Path, examples: Path) -> None:
    card = tmp_path / "theirs.velatura"
    shared(place, trained, card)
    opened = card_file.read(card)
    assert (
        opened.train == runs.Run(trained.parent).config().model_copy(update={"data": opened.train.data})
        and len(opened.pictures) == 1
    )
    assert b"anna" not in card.read_bytes()

    # Dropped elsewhere: it opens, with its pictures, its evidence and what it would change.
    second = place("second")
    shutil.copytree(examples / "grey-cat" / "train", second.server.workspace / "datasets" / "mine")
    second.start()
    page = second.page()
    drop(page, card)
    offer = page.locator("#library-arrival .offer")
    expect(page.locator("#library-arrival")).to_contain_text("A card by Ann", timeout=WAIT_MS)
    expect(offer).to_contain_text("What it changes")
    expect(offer.locator(".card-strip img")).to_have_count(1)
    assert not list(second.home.glob("cards/*")), "shown, not kept"
    page.locator("#leave-arrival").click()
    expect(offer).to_be_hidden()
    drop(page, card)
    keep(page)
    panel = page.locator("#library-details")
    expect(panel.locator(".card-strip img")).to_have_count(1)
    enlarge(page, panel.locator(".card-strip .view-picture"))
    expect(page.locator(".view-title")).to_contain_text(f"a cat {HOSTILE}")
    leave(page, panel.locator(".card-strip .view-picture"))
    assert panel.locator(".card-strip img").evaluate("image => image.complete && image.naturalWidth") > 0
    expect(panel).to_contain_text("Ran on")
    changes = page.locator("#preset-difference")
    expect(changes).to_contain_text("Steps")
    assert page.evaluate("window.__owned") is None

    # Compared with a preset, and kept as one.
    box(page, "preset-versus").fill("Style on Imprimatura")
    page.get_by_role("option", name="Style on Imprimatura").first.click()
    expect(changes).to_contain_text("The other", timeout=WAIT_MS)
    page.locator("#keep-preset").click()
    expect(panel.locator(".kind")).to_have_text("Preset", timeout=WAIT_MS)
    assert len(list((second.home / "presets").glob("*.toml"))) == 1

    # Trained by.
    page.locator("#library-cards .card", has_text="by Ann").first.click()
    expect(panel.locator(".kind")).to_have_text("Card", timeout=WAIT_MS)
    page.locator("#library-open", has_text="Train like this").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true", timeout=WAIT_MS)
    expect(box(page, "field-max_steps")).to_have_value("6", timeout=WAIT_MS)
    expect(page.locator("#start-training")).to_be_enabled(timeout=WAIT_MS)
    page.locator("#start-training").click()
    beside = page.locator(".beside-card")
    expect(beside).to_contain_text("This run", timeout=5 * WAIT_MS)
    expect(beside).to_contain_text("The card")
    expect(beside.locator("tr", has_text="A step")).to_contain_text(" s")
    run = next((second.server.workspace / "runs").glob("mine*"))
    assert (run / "card.velatura").read_bytes() == card.read_bytes()
    assert "Beside the card and what was predicted" in (run / "report.html").read_text()


def test_a_card_of_a_stack_opens_in_stack_and_a_damaged_one_is_refused(place: Any, tmp_path: Path) -> None:
    stack = reading.packed(Card(kind="stack", title=f"A look {HOSTILE}"), StackConfig(prompt="a red apple", seed=77))
    (tmp_path / "look.velatura").write_bytes(stack)
    (tmp_path / "bad.velatura").write_bytes(stack[:-9])
    away = reading.packed(
        Card(kind="train", title="Away", base={"name": "a/b", "source_url": "https://example.org/b"}),
        presets.load("sdxl-style", {"base": "a/b"}),
    )
    (tmp_path / "away.velatura").write_bytes(away)
    here = place("here")
    here.start()
    page = here.page()
    drop(page, tmp_path / "bad.velatura")
    expect(page.locator("#library-arrival")).to_contain_text("does not end as a card does", timeout=WAIT_MS)

    # A base that isn't here is named with where the card says it comes from; nothing is asked of there.
    drop(page, tmp_path / "away.velatura")
    keep(page)
    told = "base a/b is not here; the card says it comes from https://example.org/b"
    expect(page.locator("#library-details .warned")).to_contain_text(told, timeout=WAIT_MS)
    drop(page, tmp_path / "look.velatura")
    keep(page)
    expect(page.locator("#library-details h3")).to_contain_text("A look", timeout=WAIT_MS)
    page.locator("#library-open", has_text="Render like this").click()
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true", timeout=WAIT_MS)
    expect(box(page, "stack-prompt")).to_have_value("a red apple", timeout=WAIT_MS)
    assert page.evaluate("window.__owned") is None
