"""How many actions it takes from an empty page and pictures of one's own to a first stacked picture: 12 at most.

A press, a text typed and files chosen are an action each; waiting is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import test_browser
from tests.test_browser import Server, server  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), test_browser.pytestmark]
expect = test_browser.playwright_api.expect
MOST = 12
WAIT_MS = 900_000


class Person:
    """Acts on the page, and counts."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.actions: list[str] = []

    def press(self, control: str | Locator) -> None:
        found = self.page.locator(control) if isinstance(control, str) else control
        self.actions.append(f"press {control}")
        found.first.click()

    def give(self, place: str, *files: Path) -> None:
        self.actions.append(f"give files to {place}")
        self.page.locator(f"{place} input[type=file]").first.set_input_files([str(file) for file in files])

    def type(self, box: str, text: str) -> None:
        self.actions.append(f"type {text!r}")
        test_browser.fill(self.page, box, text)


@pytest.fixture
def person(browser: Browser, server: Server) -> Iterator[Person]:  # noqa: F811
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(90_000)
    page.goto(server.address)
    yield Person(page)
    assert "Traceback" not in server.log(), server.log()


def test_own_pictures_become_a_stacked_picture_in_twelve_actions(
    person: Person, trained_style: Path, examples: Path, tmp_path: Path
) -> None:
    """Pictures of a character without captions, and a style LoRA that somebody else made."""
    page = person.page
    person.press("#my-pictures")
    expect(page.get_by_role("tab", name="Dataset")).to_have_attribute("aria-selected", "true")
    person.give("#dataset-files", *sorted((examples / "grey-cat" / "train").glob("*.png")))
    expect(page.locator("#dataset-gallery .card")).not_to_have_count(0)

    # What will happen is said, and a press cures what is missing.
    person.press(page.get_by_role("tab", name="Train"))
    person.press(page.locator("#preset-cards button", has_text="Character on Imprimatura"))
    cure = page.get_by_role("button", name=re.compile("as trigger$"))
    cure.wait_for()
    person.press(cure)
    expect(page.locator("#start-training")).to_be_enabled()
    person.press("#start-training")
    test_browser.see(page, "Finished", timeout_s=WAIT_MS / 1000)

    # The other LoRA is dropped where anything may be dropped.
    person.press(page.get_by_role("tab", name="Library"))
    person.give("#library-drop", trained_style)
    page.locator("#open-arrival").wait_for()
    person.press("#open-arrival")
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    own = page.locator("#lora-shelf .shelf-cards button", has_not_text="style")
    person.press(own)
    person.type("stack-prompt", "a smiling cat, outline style")
    if not page.locator("#picture img").count():
        person.press("#render")
    expect(page.locator("#picture img")).to_be_visible(timeout=240_000)
    made = page.locator("#infotext textarea").input_value()
    assert made.count("<lora:") == 2, made
    print(f"{len(person.actions)} actions:", *person.actions, sep="\n  ")
    assert len(person.actions) <= MOST, person.actions
