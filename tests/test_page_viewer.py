"""Pictures full-screen, in a real browser: from each place that shows some, by keys, against one another, by touch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import cards, tabs, ui, viewer
from app.context import Context
from app.tabs import batch, library, stack, train
from tests import browsing, page_fixtures, wcag
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM
from tests.viewed_pictures import (
    COLOURS,
    PREVIEWS,
    SIZE,
    alike,
    at,
    colours,
    dialog,
    enlarge,
    expect,
    fill,
    is_whole,
    leave,
    recent,
    seen,
    swipe,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect.set_options(timeout=60_000)
pytestmark = [pytest.mark.timeout(300), NEEDS_CHROMIUM]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("viewer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VELATURA_HOME", str(folder / "home"))
        patch.setattr(tabs, "registry", lambda: [train, stack, batch, library])
        made = ui.open_workspace(folder / "workspace")
        fill(made)
        yield made


@pytest.fixture(scope="module")
def address(context: Context) -> Iterator[str]:
    made, where = page_fixtures.launch(context)
    yield where
    made.close()


@pytest.fixture(scope="module")
def opened(chromium: Browser, address: str) -> Iterator[Page]:
    page = chromium.new_page(viewport=page_fixtures.WIDE)  # type: ignore[arg-type]
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_role("tab", name="Library").wait_for()
    wcag.hold_still(page)
    yield page
    page.context.close()


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The page, nothing of which has run, with no picture open before the test and after it."""
    yield opened
    assert opened.evaluate("window.__owned") is None
    if opened.locator("dialog.viewer").is_visible():
        opened.keyboard.press("Escape")
    opened.mouse.move(1, 1)


# From every place.


def test_a_recent_picture_and_the_large_one_open_whole(page: Page, context: Context) -> None:
    files = context.cache / "files"
    card = recent(page).nth(1)
    before = set(files.glob("*")) if files.is_dir() else set()
    enlarge(page, card)
    is_whole(page)
    at(page, "2 of 4")
    assert page.locator("#infotext textarea").input_value() == ""  # the card itself was not pressed
    expect(page.locator(".view-made")).to_contain_text(f"a fox {HOSTILE}")
    expect(page.locator(".view-made")).to_contain_text("512 × 384 px")
    assert page.locator(".view-words img").count() == 0
    # It and its two neighbours alone were made ready, and not before it was opened.
    assert len(set(files.glob("*")) - before) <= 3
    leave(page, card)

    # A press on the card takes it; then the large picture is opened by a press, and by Gradio's own button.
    card.click()
    large = page.locator("#picture img")
    expect(large).to_be_visible()
    large.click()
    is_whole(page)
    at(page, "2 of 4")
    leave(page, page.locator("#picture button:has(img)"))
    own = page.locator("#picture .icon-button-wrapper button")
    own.click()
    at(page, "2 of 4")
    leave(page, own)
    assert page.evaluate("document.fullscreenElement") is None


def test_a_pinned_picture_is_the_one_that_others_are_seen_against(page: Page) -> None:
    cells = recent(page)
    cells.nth(0).click()
    expect(page.locator("#pin")).to_be_enabled()
    page.locator("#pin").click()
    expect(page.locator("#compare")).to_be_visible()
    cells.nth(2).click()
    expect(page.locator("#stack-seed input").first).to_have_value("1")
    own = page.locator("#compare .icon-button-wrapper button").last
    own.click()
    at(page, "3 of 4")
    is_whole(page)
    expect(page.locator(".view-stage .a .tag")).to_have_text("A seed 3")
    expect(page.locator(".view-stage .b .tag")).to_have_text("B seed 1")
    expect(page.locator(".view-stage .divider")).to_be_visible()
    leave(page, own)
    page.locator("#pin").click()
    expect(page.locator("#compare")).to_be_hidden()


def test_the_pictures_of_a_batch_open_whole_and_the_pages_keys_rest_meanwhile(page: Page) -> None:
    browsing.open_tab(page, "Batch")
    grid = page.locator("#batch-pictures .grid .thumbnail-item")
    expect(grid).to_have_count(len(COLOURS))
    enlarge(page, grid.nth(2))
    is_whole(page)
    at(page, "3 of 4")
    for key in ("g", "b"):
        page.keyboard.press(key)
    leave(page, grid.nth(2))
    expect(page.locator("#batch-pictures .chip[data-view=unrated]")).to_contain_text("4")

    link = page.locator("#batch-pictures .seen a")
    link.click()
    is_whole(page)
    at(page, "1 of 4")
    leave(page, link)
    page.locator("#batch-pictures .rate button").first.focus()
    page.keyboard.press("v")
    at(page, "1 of 4")
    leave(page, page.locator("#batch-pictures .rate button").first)


def test_previews_and_compared_runs_open_and_the_training_picture_as_a_copy(page: Page) -> None:
    browsing.open_tab(page, "Train")
    frames = page.locator("#samples .frames a")
    expect(frames).to_have_count(len(PREVIEWS))
    frames.nth(1).click()
    is_whole(page, 128)
    at(page, "2 of 4")
    expect(page.locator(".view-title")).to_contain_text(f"a square {HOSTILE}")
    assert seen(page)["height"] > 600  # a small one fills the screen too
    leave(page, frames.nth(1))

    # What came from elsewhere is seen in a copy that was encoded here.
    page.locator("#samples .learned button").focus()
    page.keyboard.press("Enter")
    is_whole(page, 2048)
    assert "/files/" not in str(page.locator(".view-stage .b img").get_attribute("src"))
    leave(page, page.locator("#samples .learned button"))

    page.locator("#run-comparison > button").click()
    for name in ("cat", "dog"):
        page.locator("#compare-runs input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.locator("#compare-runs input").blur()
    runs = page.locator("#comparison .frames a")
    expect(runs).to_have_count(2)
    runs.first.focus()
    page.keyboard.press("Enter")
    is_whole(page, 128)
    at(page, "1 of 2")
    leave(page, runs.first)


def test_the_librarys_pictures_open_whole(page: Page) -> None:
    browsing.open_tab(page, "Library")
    page.locator("#library-kind").get_by_text("Pictures", exact=True).click()
    shelf = page.locator("#library-cards .card")
    expect(shelf).to_have_count(2 * len(COLOURS))
    enlarge(page, shelf.first)
    is_whole(page)
    at(page, "1 of 8")
    expect(page.locator("#library-details h3")).to_have_count(0)
    leave(page, shelf.first)

    shelf.first.click()
    expect(page.locator("#library-details h3")).to_be_visible()
    large = page.locator("#library-details .view-picture").first
    large.focus()
    page.keyboard.press("Enter")
    is_whole(page)
    expect(page.locator(".view-made")).to_contain_text(f"a fox {HOSTILE}")
    leave(page, large)


# Keys.


def test_keys_go_from_picture_to_picture_and_are_taken_from_nobody_who_types(page: Page) -> None:
    cells = recent(page)
    cells.first.focus()
    page.keyboard.press("v")
    is_whole(page)
    for key, where in zip(("Right", "End", "Right", "Left", "Home", "Left"), (2, 4, 4, 3, 1, 1), strict=True):
        page.keyboard.press(key if key in ("Home", "End") else f"Arrow{key}")
        at(page, f"{where} of 4")
    expect(page.locator("[data-do=back]")).to_be_disabled()
    page.locator("[data-do=on]").click()
    at(page, "2 of 4")

    # The Tab key stays inside; letters of the page do nothing beneath.
    for _ in range(15):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog.viewer') !== null")
    page.keyboard.press("Control+4")
    page.keyboard.press("g")
    page.keyboard.press("l")
    leave(page, cells.first)
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")

    box = page.locator("#stack-prompt textarea")
    box.fill("")
    box.press("v")
    expect(box).to_have_value("v")
    expect(dialog(page)).to_be_hidden()
    box.fill("")


# Zoom.


def test_a_picture_is_seen_at_100_percent_and_panned_within_its_bounds(page: Page) -> None:
    enlarge(page, recent(page).first)
    is_whole(page)
    fits = seen(page)
    stage = page.locator(".view-stage").bounding_box()
    assert stage and abs(max(fits["width"] / stage["width"], fits["height"] / stage["height"]) - 1) < 0.01
    page.keyboard.press("z")
    assert (seen(page)["width"], seen(page)["height"]) == SIZE
    expect(page.locator(".view-scale")).to_have_text("100 %")
    page.keyboard.press("z")
    assert seen(page) == fits

    # Larger than the stage it is panned, not further than to its edge.
    middle = (stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.wheel(0, -900)
    page.wait_for_timeout(200)
    before = seen(page)
    assert before["width"] > 1.5 * stage["width"]
    page.mouse.down()
    page.mouse.move(middle[0] + 60, middle[1] + 30, steps=4)
    page.mouse.up()
    after = seen(page)
    assert (round(after["left"] - before["left"]), round(after["top"] - before["top"])) == (60, 30)
    page.mouse.down()
    page.mouse.move(middle[0] + 9000, middle[1], steps=4)
    page.mouse.up()
    assert abs(seen(page)["left"] - stage["x"]) <= 1
    at(page, "1 of 4")  # a drag that pans is no swipe

    page.keyboard.press("p")
    assert page.locator(".view-stage .b img").evaluate("one => getComputedStyle(one).imageRendering") == "pixelated"
    page.keyboard.press("p")
    assert page.locator(".view-stage .b img").evaluate("one => getComputedStyle(one).imageRendering") == "auto"


# One against another.


def test_two_pictures_are_seen_by_a_slider_side_by_side_and_in_one_anothers_place(page: Page) -> None:
    enlarge(page, recent(page).first)
    is_whole(page)
    box = seen(page)
    left, right, middle = box["left"] + 60, box["right"] - 60, (box["top"] + box["bottom"]) / 2
    one = colours(page, (left, middle))[0]
    page.keyboard.press("c")
    expect(page.locator(".view-hint")).to_contain_text("Pinned as A")
    page.keyboard.press("ArrowRight")
    at(page, "2 of 4")
    is_whole(page)
    expect(page.locator(".view-hint")).to_be_empty()

    # The slider: A at the left of it, B at the right, and wherever it is moved.
    centre = (box["left"] + box["right"]) / 2
    a, a_near, b_near, b = colours(page, (left, middle), (centre - 20, middle), (centre + 20, middle), (right, middle))
    assert alike(a, one) and alike(a_near, one) and alike(b, b_near) and not alike(a, b)
    other = b
    for _ in range(4):
        page.keyboard.press("Shift+ArrowRight")
    assert alike(colours(page, (centre + 20, middle))[0], one)
    expect(page.locator(".view-stage .divider")).to_have_attribute("aria-valuenow", "70")
    grip = page.locator(".view-stage .divider").bounding_box()
    assert grip
    page.mouse.move(grip["x"] + grip["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["left"] + 100, middle, steps=5)
    page.mouse.up()
    a, b = colours(page, (left, middle), (box["left"] + 130, middle))
    assert alike(a, one) and alike(b, other)

    # Side by side, zoomed as one.
    page.keyboard.press("m")
    stage = page.locator(".view-stage").bounding_box()
    assert stage
    a_box, b_box = (seen(page, pane) for pane in "ab")
    assert a_box["right"] <= b_box["left"] and a_box["width"] == b_box["width"]
    sides = [(stage["x"] + stage["width"] * share, stage["y"] + stage["height"] / 2) for share in (0.25, 0.75)]
    a, b = colours(page, *sides)
    assert alike(a, one) and alike(b, other)
    page.keyboard.press("+")
    assert seen(page, "a")["width"] == seen(page)["width"] > 1.2 * b_box["width"]

    # In its place: A as long as the space bar or the button is held.
    page.keyboard.press("m")
    assert alike(colours(page, (centre, middle))[0], other)
    page.keyboard.down(" ")
    assert alike(colours(page, (centre, middle))[0], one)
    page.keyboard.up(" ")
    assert alike(colours(page, (centre, middle))[0], other)
    page.locator("[data-do=peek]").hover()
    page.mouse.down()
    assert alike(colours(page, (centre, middle))[0], one)
    page.mouse.up()
    page.keyboard.press("c")
    expect(page.locator("[data-do=way]")).to_be_hidden()
    assert alike(colours(page, (centre, middle))[0], other)
    page.keyboard.press("m")  # of no effect without A


# Small screens, touch, and what reads the page aloud.


def test_it_is_swiped_on_a_telephone_and_read_by_everybody(chromium: Browser, address: str) -> None:
    phone = chromium.new_context(viewport={"width": 420, "height": 860}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    wcag.hold_still(page)
    cells = recent(page)
    expect(cells.nth(1).locator(".enlarge")).to_be_visible()  # where nothing can be pointed at, it is always there
    cells.nth(1).locator(".enlarge").tap()
    is_whole(page)
    swipe(page, -120)
    at(page, "3 of 4")
    swipe(page, 120)
    at(page, "2 of 4")
    page.locator("[data-do=compare]").tap()
    page.locator("[data-do=on]").tap()
    page.locator("[data-do=way]").tap()
    assert seen(page, "a")["bottom"] <= seen(page)["top"]  # one above the other
    page.locator("[data-do=way]").tap()
    tools = page.locator(".view-tools button:not(.view-close):visible")
    assert len(set(tools.evaluate_all("all => all.map(one => one.offsetTop)"))) == 1  # the most there are, in one line
    for width in (1440, 1024, 420):
        page.set_viewport_size({"width": width, "height": 860})
        for theme in ("light", "dark"):
            page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
            page.wait_for_timeout(100)
            found = [one for one in wcag.faint(page) if "dialog.viewer" in one[3]]
            assert not found, (width, theme, found)
        for button in page.locator("dialog.viewer button:visible").all():
            inside = button.bounding_box()
            assert inside and inside["x"] >= 0 and inside["x"] + inside["width"] <= width
    assert not (nameless := wcag.nameless(page)), "\n".join(nameless)
    expect(dialog(page)).to_have_attribute("aria-modal", "true")
    assert page.evaluate("window.__owned") is None
    phone.close()


# What the browser may ask.


def test_only_what_was_shown_is_found_and_only_what_was_drawn_here_is_sent_as_it_is(tmp_path: Path) -> None:
    context = ui.open_workspace(tmp_path / "workspace")
    fill(context)
    room, drawn, foreign = viewer.Viewer(context), context.renders / "0-abc.png", context.datasets / "mine" / "a.png"
    names = {path: context.thumbnail(path).stem for path in (drawn, foreign)}
    for asked in (None, [], "x", {"names": "x"}, {"names": [None, 3, "../../x", "0" * 32, {"a": 1}]}):
        assert room.look(asked) == {"pictures": {}}
    answer = room.look({"names": list(names.values())})["pictures"]
    assert answer[names[drawn]]["at"] == cards.address(context.published(drawn))
    assert ("Seed", "0") in answer[names[drawn]]["made"]
    assert "/thumbs/" in answer[names[foreign]]["at"] and answer[names[foreign]]["made"] == []
    drawn.unlink()
    assert room.look({"names": [names[drawn]]}) == {"pictures": {}}
