"""The whole page as WCAG AA asks, computed in a browser: contrast in light and dark and at two widths, a name for every
control, and a Tab key that reaches all of them and is seen where it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browsing, wcag
from tests import test_browser as server_side

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, server_side.pytestmark]
expect = server_side.playwright_api.expect
WIDTHS_PX = (1440, 420)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, chromium: Browser) -> Iterator[Page]:
    """The page of a workspace with one of everything."""
    server = server_side.Server(tmp_path_factory.mktemp("page") / "workspace")
    browsing.fill_workspace(server.workspace)
    server.start()
    page = chromium.new_page(viewport={"width": WIDTHS_PX[0], "height": 900})
    page.set_default_timeout(60_000)
    page.goto(server.address)
    page.get_by_role("tab", name="Train").wait_for()
    wcag.hold_still(page)
    yield page
    server.kill()


def prepare(page: Page, title: str) -> None:
    """That tab with something in it, all unfolded."""
    page.set_viewport_size({"width": WIDTHS_PX[0], "height": 900})
    browsing.open_tab(page, title)
    if title == "Dataset":
        page.locator("#dataset-gallery .thumbnail-item").first.click()
        expect(page.locator("#caption textarea")).to_be_enabled()
    if title == "Train":
        server_side.fill(page, "field-learning_rate", "50")
        expect(page.locator("#forecast")).to_contain_text("to mend")
    if title == "Stack":
        page.locator("#live input").set_checked(False)
        for row, name in enumerate(("fox", "owl"), 1):
            box = page.locator(f"#lora-{row} input")
            box.fill(name)
            box.press("Enter")
            expect(box).to_have_value(name)
    if title == "Library":
        page.locator("#library-cards .card").first.click()
        expect(page.locator("#library-details h3")).to_be_visible()
    browsing.unfold_all(page)
    page.wait_for_timeout(500)


@pytest.mark.parametrize("title", browsing.TABS)
def test_text_is_seen_controls_have_names_and_the_tab_key_reaches_them(opened: Page, title: str) -> None:
    prepare(opened, title)
    for _ in range(20):  # a name may come a moment after its control
        if not (found := wcag.nameless(opened)):
            break
        opened.wait_for_timeout(300)
    assert not found, "\n".join(found)
    reached, missed, unseen = wcag.tabbed(opened)
    expect(opened.locator("[role=combobox][aria-expanded=true]")).to_have_count(0)
    assert reached > 15 and not missed, "\n".join(missed)
    assert not unseen, "\n".join(unseen)
    check_contrast(opened)


def check_contrast(page: Page, hovered: tuple[str, ...] = ("primary", "secondary", "stop")) -> None:
    """Of what is shown, at each width, light and dark, and of its buttons also under the mouse."""
    for width in WIDTHS_PX:
        page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
            page.wait_for_timeout(100)
            found = wcag.faint(page)
            for kind in hovered if width == WIDTHS_PX[0] else ():
                button = page.locator(f"button.{kind}:visible:enabled").first
                if button.count():
                    button.hover()
                    found += wcag.faint(page)
            assert not found, f"{width} px, {theme}:\n" + "\n".join(map(json.dumps, found))
    page.evaluate("document.body.classList.remove('dark')")


def test_what_is_said_over_the_page_is_seen(opened: Page) -> None:
    prepare(opened, "Library")
    opened.locator("#library-note textarea").blur()
    opened.keyboard.press("?")
    expect(opened.locator("dialog#keys")).to_be_visible()
    check_contrast(opened, ())
    opened.keyboard.press("Escape")


def test_nothing_shows_through_the_picture_of_a_narrow_stack(opened: Page) -> None:
    """Labels of rows were painted over the picture that stays while they go by."""
    prepare(opened, "Stack")
    opened.set_viewport_size({"width": 420, "height": 900})
    covered = """
    () => {
      const easel = document.querySelector('.easel').getBoundingClientRect(), over = new Set();
      for (let y = easel.top + 4; y < easel.bottom - 4; y += 8)
        for (let x = easel.left + 4; x < easel.right - 4; x += 16) {
          const top = document.elementFromPoint(x, y);
          if (top && !top.closest('.easel')) over.add(top.outerHTML.slice(0, 120));
        }
      return [...over];
    }
    """
    for scroll in range(200, 1600, 100):
        opened.evaluate("y => window.scrollTo(0, y)", scroll)
        assert opened.evaluate(covered) == [], scroll
    opened.set_viewport_size({"width": WIDTHS_PX[0], "height": 900})


def test_the_measure_finds_what_is_wrong(opened: Page, tmp_path: Path) -> None:
    opened.evaluate(
        """() => document.body.insertAdjacentHTML('beforeend', `<div id="wrong" style="background: #fff">
          <p style="color: #999">faint</p> <p style="color: #767676">just enough</p>
          <p style="color: #949494; font-size: 24px">large</p> <p style="color: #000; opacity: .4">thin</p>
          <button style="outline: none !important; border: 0; width: 9px"></button></div>`)"""
    )
    found = {text: ratio for ratio, _, text, where, *_ in wcag.faint(opened) if "wrong" in where}
    assert {text: round(ratio, 1) for text, ratio in found.items()} == {"faint": 2.9, "thin": 2.9}
    assert any("wrong" in one for one in wcag.nameless(opened))
    _, missed, unseen = wcag.tabbed(opened)
    assert not missed and any("wrong" in one for one in unseen)
    opened.evaluate("document.getElementById('wrong').remove()")
