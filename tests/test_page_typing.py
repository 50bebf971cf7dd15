"""Captions typed on the Dataset tab reach the picture they were typed for, and edits only pictures that are seen."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_browser import Server, fill, playwright_api, unfold
from tests.test_page_dataset import box, card, choose, opened, says, server, shown  # noqa: F401  # fixtures
from trainer.data import edits

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
expect = playwright_api.expect


@pytest.fixture
def page(opened: Page) -> Page:  # noqa: F811
    return opened


def chip(page: Page, key: str) -> None:
    page.locator(f"#dataset-gallery .chip[data-key='{key}']").click()


def test_a_caption_typed_while_the_server_is_away_is_saved_when_it_is_back(
    page: Page,
    choose: Callable[..., Path],  # noqa: F811
    server: Server,  # noqa: F811
) -> None:
    folder = choose("away", ["", "two"])
    card(page, 0)
    server.kill()
    page.evaluate("window.__old = true")
    page.locator("#caption textarea").fill("typed while nobody listened")
    expect(page.locator("#caption-state")).to_contain_text("Not saved yet")
    page.wait_for_timeout(2500)
    server.start()
    page.wait_for_function("!window.__old && document.querySelector('#tabs button[role=tab]')", timeout=120_000)
    says(folder / "00.txt", "typed while nobody listened")
    expect(page.locator("#caption textarea")).to_have_value("typed while nobody listened")  # and is open again
    page.wait_for_function("sessionStorage.getItem('velatura-unsaved') === '[]'")

    # Once it is saved, nothing sends it again.
    (folder / "00.txt").write_text("written elsewhere\n")
    page.reload()
    expect(page.locator("#caption textarea")).to_have_value("written elsewhere")
    assert len(edits.history(folder)) == 1


def held(page: Page, name: str) -> list[Route]:
    """What the page asks the server from now on that says this name: it waits in the list."""
    waiting: list[Route] = []

    def take(route: Route) -> None:
        if f'"name":"{name}"' in (route.request.post_data or ""):
            waiting.append(route)
        else:
            route.continue_()

    page.route(re.compile("queue/join"), take)
    return waiting


def let_go(page: Page, waiting: list[Route]) -> None:
    for route in waiting:
        route.continue_()
    page.unroute_all(behavior="wait")


def test_words_typed_before_the_next_picture_is_there_land_nowhere_else(
    page: Page,
    choose: Callable[..., Path],  # noqa: F811
) -> None:
    folder = choose("slow", ["one", "two", "three"])
    card(page, 0)
    waiting = held(page, "01.png")
    page.locator("#dataset-gallery .thumbnail-item").nth(1).click()
    page.wait_for_timeout(2600)
    page.locator("#caption textarea").click()
    page.keyboard.press("End")
    page.keyboard.type(" for the second", delay=20)
    assert box(page) == "one" and len(waiting) == 1
    expect(page.locator("#caption-state")).to_contain_text("Opening")
    let_go(page, waiting)
    expect(page.locator("#caption")).to_contain_text("01.png")
    page.keyboard.press("End")
    page.keyboard.type(" now")
    says(folder / "01.txt", "two now")
    assert (folder / "00.txt").read_text() == "one\n"

    # Two asked for one after the other: the box opens with the last.
    waiting = held(page, "00.png")
    page.locator("#dataset-gallery .thumbnail-item").nth(2).click()
    page.locator("#dataset-gallery .thumbnail-item").nth(0).click()
    expect(page.locator("#caption")).to_contain_text("02.png")
    expect(page.locator("#caption textarea")).not_to_be_editable()
    let_go(page, waiting)
    expect(page.locator("#caption")).to_contain_text("00.png")
    expect(page.locator("#caption textarea")).to_be_editable()


def test_a_picture_that_can_not_be_opened_leaves_the_one_before_open(
    page: Page,
    choose: Callable[..., Path],  # noqa: F811
) -> None:
    folder = choose("unopened", ["one", "two", "three"])
    card(page, 0)
    (folder / "01.png").unlink()
    page.locator("#dataset-gallery .thumbnail-item").nth(1).click()
    expect(page.locator("#caption-state")).to_contain_text("01.png was not opened")
    expect(page.locator("#dataset-gallery [aria-current=true]")).to_have_attribute("title", "00.png")
    page.locator("#caption textarea").fill("of the first")
    says(folder / "00.txt", "of the first")
    assert (folder / "01.txt").read_text() == "two\n"


def test_marked_pictures_that_a_filter_hides_are_left_alone(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    folder = choose("hidden", ["one", "two", "", ""])
    for number in (0, 1):
        page.locator("#dataset-gallery .card input").nth(number).check()
    chip(page, "kind none")
    expect(page.locator("#dataset-gallery .count")).to_have_text("2 of 4, 2 marked, not shown")
    for name in ("Delete marked", "Flip marked"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.locator("#dataset-gallery .thumbnail-item").nth(2).focus()
    page.keyboard.press("Delete")
    unfold(page, "Edit many captions")
    page.locator("#bulk-operation input").click()
    page.get_by_role("option", name="Add trigger").click()
    fill(page, "check-trigger", "mokka")
    page.locator("#bulk-apply").click()
    expect(page.get_by_text("the marked pictures are not shown").first).to_be_visible()
    assert sorted(path.name for path in folder.glob("*.png")) == ["00.png", "01.png", "02.png", "03.png"]
    assert not (folder / "02.txt").exists() and (folder / "00.txt").read_text() == "one\n"

    # Those that are marked and shown.
    page.locator("#dataset-gallery .card input").nth(3).check()
    page.get_by_role("button", name="Delete marked").click()
    expect(page.locator("#dataset-gallery .card")).to_have_count(3)
    assert (folder / "00.png").exists() and not (folder / "03.png").exists()


def test_the_filter_and_the_open_picture_outlive_a_reload(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    choose("again", ["red, cat", "red, dog", "blue"])
    chip(page, "tag red")
    page.locator("#dataset-gallery .find").fill("dog")
    expect(page.locator("#dataset-gallery .card:visible")).to_have_count(1)
    card(page, 1)
    page.reload()
    expect(page.locator("#caption")).to_contain_text("01.png")
    expect(page.locator("#dataset-gallery .find")).to_have_value("dog")
    assert shown(page) == 1


def test_the_open_pictures_tags_are_chips_to_remove_and_to_add_to(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    folder = choose("tagged", ["red, cat, hat", "blue"])
    chips = page.locator("#caption-tags button")
    expect(page.locator("#caption-tags input")).to_be_hidden()
    card(page, 0)
    expect(chips).to_have_count(3)
    page.get_by_role("button", name="Remove cat").click()
    says(folder / "00.txt", "red, hat")
    page.get_by_label("Add a tag").fill("smile")
    page.get_by_label("Add a tag").press("Enter")
    says(folder / "00.txt", "red, hat, smile")
    expect(page.locator("#caption textarea")).to_have_value("red, hat, smile")
    page.get_by_label("Add a tag").fill("HAT")  # is there
    page.get_by_label("Add a tag").press("Enter")
    expect(chips).to_have_count(3)
    for text in ("red, hat", "red, cat, hat"):
        page.locator("#undo-caption").click()
        says(folder / "00.txt", text)
    expect(chips).to_have_count(3)
    page.locator("#caption textarea").fill("one tag")
    expect(chips).to_have_text(["one tag×"])
    time.sleep(1)
    says(folder / "00.txt", "one tag")


def test_the_trigger_is_the_sets_own_and_goes_along_to_train(
    page: Page,
    choose: Callable[..., Path],  # noqa: F811
) -> None:
    choose("first", ["one", ""])
    second = choose("second", ["two", ""])
    trigger = page.locator("#check-trigger textarea, #check-trigger input")
    of_train = page.locator("#trigger textarea, #trigger input")
    trigger.fill("zorn")
    page.locator(".reason").get_by_role("button", name="Caption with").click()
    says(second / "01.txt", "zorn")
    page.get_by_role("tab", name="Train").click()
    expect(of_train).to_have_value("zorn")
    page.get_by_role("tab", name="Dataset").click()

    # Each set has its own; a word of one's own in Train stays.
    page.locator("#dataset input").click()
    page.get_by_role("option", name="first", exact=True).click()
    expect(trigger).to_have_value("")
    trigger.fill("mokka")
    page.get_by_role("tab", name="Train").click()
    expect(of_train).to_have_value("mokka")
    of_train.fill("my own")
    page.get_by_role("tab", name="Dataset").click()
    page.reload()
    page.get_by_role("tab", name="Dataset").click()
    expect(trigger).to_have_value("mokka")
    page.locator("#dataset input").click()
    page.get_by_role("option", name="second", exact=True).click()
    expect(trigger).to_have_value("zorn")
    page.get_by_role("tab", name="Train").click()
    page.wait_for_timeout(1500)
    expect(of_train).to_have_value("my own")
    of_train.fill("")
    page.get_by_role("tab", name="Dataset").click()


def test_a_trigger_typed_before_the_dataset_is_there_stays(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    later = choose("later", ["one", ""])
    choose("before", ["two"])
    trigger = page.locator("#check-trigger textarea, #check-trigger input")
    trigger.fill("kept")
    waiting: list[Route] = []

    def take(route: Route) -> None:
        if '"data":["later"' in (route.request.post_data or "") and not waiting:
            waiting.append(route)
        else:
            route.continue_()

    page.route(re.compile("queue/join"), take)
    page.locator("#dataset input").click()
    page.get_by_role("option", name="later", exact=True).click()
    page.wait_for_timeout(500)
    trigger.fill("typed meanwhile")
    assert len(waiting) == 1
    let_go(page, waiting)
    expect(page.locator("#dataset-gallery .card")).to_have_count(2)
    page.locator(".reason").get_by_role("button", name="Caption with").click()
    says(later / "01.txt", "typed meanwhile")
    page.locator("#dataset input").click()
    page.get_by_role("option", name="before", exact=True).click()
    expect(trigger).to_have_value("kept")


def test_what_was_kept_comes_late_and_undoes_no_choice(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    choose("now", ["one", ""])
    choose("kept", ["two", "", ""])
    page.wait_for_timeout(500)
    waiting: list[Route] = []

    def take(route: Route) -> None:
        # What brings back the Dataset tab's fields, as the page is loaded.
        if '"event_data":null' in (route.request.post_data or "") and len(waiting) < 9:
            waiting.append(route)
        else:
            route.continue_()

    page.route(re.compile("queue/join"), take)
    page.reload()
    page.get_by_role("tab", name="Dataset").click()
    page.wait_for_timeout(1500)
    assert waiting
    with pytest.raises(playwright_api.TimeoutError):
        page.locator("#dataset input").click(timeout=1000)
    let_go(page, waiting)
    page.locator("#dataset input").click()
    page.get_by_role("option", name="now", exact=True).click()
    expect(page.locator("#dataset-gallery .card")).to_have_count(2)
    page.wait_for_timeout(1500)
    expect(page.locator("#dataset input")).to_have_value("now")


def test_the_check_of_the_tab_is_the_paths_check(page: Page, choose: Callable[..., Path]) -> None:  # noqa: F811
    choose("path", ["one", "two"])
    step = page.locator("#guide button").filter(has_text="Check")
    expect(step).not_to_have_accessible_name(re.compile("done"))
    unfold(page, "Check before training")
    page.locator("#check-dataset").click()
    expect(step).to_have_accessible_name(re.compile("done"))
    page.reload()
    expect(step).to_have_accessible_name(re.compile("done"))
