"""What the page looks at anew, and when, in a real browser: tabs that are seen alone, and seldom what only grows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest

from app import ui
from app.change_polling import News
from app.context import Refresh
from tests.page_fixtures import NEEDS_CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = NEEDS_CHROMIUM


class Small:
    """A page of two tabs that are looked at, and of something that is always seen."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.now: dict[str, Any] = dict.fromkeys(("one", "two", "always", "growth"), 0)
        news = News()
        with gr.Blocks() as self.page:
            with gr.Tabs():
                for name in ("one", "two"):
                    with gr.Tab(name, elem_id=f"tab-{name}"):
                        gr.Textbox(name)
            news.listen("one", self._version("one"), self._look("one"), self._version("growth"), tab=True)
            news.listen("two", self._version("two"), self._look("two"), tab=True)
            news.listen("always", self._version("always"), self._look("always"))
            news.draw()

    def _version(self, name: str) -> Callable[[gr.Request], Any]:
        return lambda request: self.now[name]

    def _look(self, name: str) -> Refresh:
        def look() -> None:
            self.looks[name] += 1

        return Refresh(look, [], [])


@pytest.fixture
def small(browser: Browser) -> Iterator[tuple[Small, Page]]:
    made = Small()
    address = ui.launch(made.page, server_name="127.0.0.1")
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("tab", name="two").wait_for()
    yield made, page
    page.context.close()
    made.page.close()


def looked(made: Small, page: Page, **least: int) -> None:
    """Wait until each was looked at so often at least."""
    end = time.monotonic() + 60
    while any(made.looks[name] < count for name, count in least.items()):
        assert time.monotonic() < end, made.looks
        page.wait_for_timeout(50)


def test_a_tab_is_looked_at_while_it_is_seen_and_when_it_is_opened(small: tuple[Small, Page]) -> None:
    made, page = small
    looked(made, page, one=1, always=1)
    made.now |= {"two": 1, "always": 1}
    looked(made, page, always=2)
    page.wait_for_timeout(2500)
    assert made.looks == {"one": 1, "always": 2}, "nobody sees the second tab"
    page.get_by_role("tab", name="two").click()
    looked(made, page, two=1)
    made.now |= {"one": 1, "two": 2}
    looked(made, page, two=2)
    page.wait_for_timeout(2500)
    assert made.looks == {"one": 1, "two": 2, "always": 2}


def test_what_only_grows_is_looked_at_every_three_seconds_and_what_changes_at_once(small: tuple[Small, Page]) -> None:
    made, page = small
    looked(made, page, one=1)
    began = time.monotonic()
    while time.monotonic() - began < 9.5:
        made.now["growth"] += 1
        page.wait_for_timeout(200)
    assert 3 <= made.looks["one"] <= 5, made.looks
    before = made.looks["one"]
    for version in (1, 2, 3):
        made.now["one"] = version
        looked(made, page, one=before + version)
    assert time.monotonic() - began < 9.5 + 3 * 3, "each at the next asking"
