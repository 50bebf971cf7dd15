"""Stack's shelf of LoRAs in the order that one wants: sorted in the browser, and kept there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from app import item_notes
from app.context import Context
from app.recipe_index import RecipeIndex
from tests import test_browser as browsing
from tests.test_page_rows import a_lora
from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
# By name: minutes of age, rating, and pictures that it is in.
LORAS = {"ash 10": (3, 0, 1), "ash 9": (1, 2, 0), "birch": (2, 5, 2), "Cedar": (4, 2, 1)}
ORDERS = {
    "Newest": ["ash 9", "birch", "ash 10", "Cedar"],
    "Name": ["ash 9", "ash 10", "birch", "Cedar"],
    "Most used": ["birch", "ash 10", "Cedar", "ash 9"],
    "Rating": ["birch", "ash 9", "Cedar", "ash 10"],
}


def filled(workspace: Path) -> None:
    """LoRAs and pictures; nothing of them was ever trained or drawn."""
    for folder in ("loras", "renders"):
        (workspace / folder).mkdir(parents=True, exist_ok=True)
    drawn: dict[int, list[AdapterChoice]] = {}
    for place, (name, (minutes, rating, num)) in enumerate(LORAS.items()):
        path = workspace / "loras" / f"{name}.safetensors"
        a_lora(path, 0.1 + place)
        made_at = path.stat().st_mtime - 60 * minutes
        os.utime(path, (made_at, made_at))
        sha256 = lora_file.inspect(path).sha256
        if rating:
            item_notes.change(workspace / "notes", "loras", sha256, rating=rating)
        for seed in range(num):
            drawn.setdefault(seed, []).append(AdapterChoice(sha256=sha256, name=name))
    for seed, loras in drawn.items():
        stack = StackConfig(seed=seed, adapters=tuple(loras))
        picture = picture_metadata.Picture(Image.new("RGB", (16, 16)), stack)
        picture_metadata.save(picture, workspace / "renders" / f"{seed}.png")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path / "workspace")
    filled(made.workspace)
    made.start()
    yield made
    made.kill()


def names(page: Page) -> list[str]:
    page.locator(".shelf-card").first.wait_for()
    return page.locator(".shelf-card .shelf-name").all_inner_texts()


def opened(page: Page, address: str) -> Page:
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.get_by_role("tab", name="Stack").click()
    page.locator("#live input").set_checked(False)
    return page


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(600)
def test_the_shelf_is_sorted_here_and_stays_so_in_this_browser(browser: Browser, server: browsing.Server) -> None:
    page = opened(browser.new_page(viewport={"width": 1440, "height": 900}), server.address)
    sort = page.get_by_label("Sort the LoRAs")
    assert names(page) == ORDERS["Newest"]
    page.wait_for_timeout(2000)  # until what the page asks by itself is answered
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    for words, order in ORDERS.items():
        sort.select_option(words)
        assert names(page) == order, words
    assert asked == []
    expect(page.locator(".shelf-card").first).to_contain_text("5 stars")
    sort.select_option("Most used")
    expect(page.locator(".shelf-card").first).to_contain_text("in 2 pictures")

    # Enter takes the first that is seen, in the order that is seen.
    page.get_by_label("Find a LoRA").fill("ash")
    page.get_by_label("Find a LoRA").press("Enter")
    expect(page.locator("#lora-1 input")).to_have_value("ash 10")
    page.reload()
    assert names(page) == ORDERS["Most used"] and sort.input_value() == "used"
    other = opened(browser.new_page(), server.address)
    assert names(other) == ORDERS["Newest"]
    assert "Traceback" not in server.log(), server.log()


def test_what_is_used_of_late_is_counted_by_picture(tmp_path: Path) -> None:
    filled(tmp_path)
    index = RecipeIndex(Context(tmp_path, None))  # type: ignore[arg-type]
    hashes = {path.stem: lora_file.inspect(path).sha256 for path in (tmp_path / "loras").glob("*")}
    uses = index.uses()
    assert {name: uses[sha256] for name, sha256 in hashes.items()} == {name: of[2] for name, of in LORAS.items()}
