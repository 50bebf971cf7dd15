"""The Train tab in a real browser: what is said before a start, on which field, and what its buttons do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from app import tabs, ui
from app.context import Context
from app.tabs import train
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Page


playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=60_000)  # the suite's other files train beside this one
pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train])
    return ui.open_workspace(tmp_path / "workspace")


def draw_pictures(context: Context, name: str, captioned: int, bare: int) -> None:
    folder = context.datasets / name
    folder.mkdir()
    for number in range(captioned + bare):
        Image.new("RGB", (64, 64), (number * 5 % 255, 90, 40)).save(folder / f"{number:02}.png")
        if number < captioned:
            (folder / f"{number:02}.txt").write_text("a square")


def says(page: Page, pattern: str) -> None:
    expect(page.locator("#forecast")).to_contain_text(re.compile(pattern), timeout=120_000)


def fill(page: Page, elem_id: str, value: str) -> None:
    box = page.locator(f"#{elem_id} input, #{elem_id} textarea").first
    box.fill(value)
    box.press("Tab")


def value(page: Page, elem_id: str) -> str:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first.input_value()


def choose(page: Page, elem_id: str, option: str) -> None:
    page.locator(f"#{elem_id} input").click()
    page.get_by_role("option", name=option, exact=True).click()


def test_pictures_that_will_not_train_are_counted_before_a_start_and_a_button_brings_them_in(
    context: Context, open_page: Any
) -> None:
    """Harm 1: a set of 47 of which 41 had no caption trained on six, and nobody was told."""
    draw_pictures(context, "mine", captioned=6, bare=41)
    page = open_page()
    says(page, "6 of 47 pictures train")
    says(page, "41 have no caption")
    expect(page.locator("#start-training")).to_be_enabled()
    page.get_by_role("button", name="Use “mine” as trigger").click()
    says(page, "All 47 pictures train")
    assert value(page, "trigger") == "mine"


def test_all_that_is_wrong_is_said_at_once_each_on_its_own_field_and_cured_by_its_button(
    context: Context, open_page: Any
) -> None:
    """Harm 5: a learning rate of 50 marked the name, and problems came one at a time."""
    draw_pictures(context, "mine", captioned=4, bare=0)
    page = open_page()
    says(page, "All 4 pictures train")
    fill(page, "field-learning_rate", "50")
    fill(page, "field-max_steps", "0")
    says(page, "2 things to mend")
    under = "box => getComputedStyle(box, '::after').content"
    assert "“Learning rate” is 50; allowed: 1 or less." in page.locator("#field-learning_rate").evaluate(under)
    assert page.locator("#run-name").evaluate(under) in ("none", "normal")
    expect(page.locator("#start-training")).to_be_disabled()

    # What two settings say to each other is said beside it, though one of them is folded away.
    page.locator("#advanced > button").click()
    page.locator("#advanced").get_by_role("button", name=re.compile("^Validation")).click()
    fill(page, "field-validation-folds", "1")
    says(page, "3 things to mend.*“Folds” is 1")
    page.get_by_role("button", name="Set it to 0.0015").click()
    says(page, "2 things to mend")
    assert value(page, "field-learning_rate") == "0.0015"
    fill(page, "field-max_steps", "20")
    fill(page, "field-validation-folds", "0")
    says(page, "All 4 pictures train")
    expect(page.locator("#start-training")).to_be_enabled()
    assert page.locator("#field-learning_rate").evaluate(under) in ("none", "normal")


def test_nothing_that_must_fail_is_queued(context: Context, open_page: Any) -> None:
    """Harm 7: a set without captions was queued and failed later."""
    from trainer import session  # noqa: F401  # what the first start loads, so that the wait below is for the page

    draw_pictures(context, "mine", captioned=0, bare=3)
    (context.datasets / "mine" / f"{HOSTILE.replace('/', '')}.png").write_bytes(b"no")
    page = open_page()
    says(page, "3 have no caption")
    expect(page.locator("#start-training")).to_be_disabled()
    page.get_by_role("button", name="Use “mine” as trigger").click()
    says(page, "3 of 4 pictures train")
    says(page, "<img src=x")
    assert page.evaluate("window.__owned") is None

    page.locator("#start-training").click()
    expect(page.locator("#job input")).to_have_value(re.compile("mine · queued"), timeout=120_000)
    assert [job.state for job in context.runner.every()] == ["queued"]


def test_a_preset_whose_base_is_not_here_says_so_and_changes_the_whole_form_or_offers_its_like(
    context: Context, open_page: Any
) -> None:
    """Harm 3: the name in the list changed, the form stayed another preset's, and Start was enabled."""
    draw_pictures(context, "mine", captioned=4, bare=0)
    page = open_page()
    says(page, "All 4 pictures train")
    choose(page, "preset", "Character on SDXL · base not here")
    says(page, "stabilityai/stable-diffusion-xl-base-1.0 isn't on this machine")
    assert value(page, "field-resolution_px") == "1024" and "not here" in value(page, "field-base")
    expect(page.locator("#start-training")).to_be_disabled()
    page.get_by_role("button", name="Take Character on Imprimatura").click()
    says(page, "All 4 pictures train.*on imprimatura")
    assert value(page, "preset") == "Character on Imprimatura" and value(page, "field-resolution_px") == "128"
    expect(page.locator("#start-training")).to_be_enabled()


def test_settings_are_found_wherever_they_are_folded_and_changed_ones_are_put_back(
    context: Context, open_page: Any
) -> None:
    draw_pictures(context, "mine", captioned=4, bare=0)
    page = open_page()
    says(page, "All 4 pictures train")
    expect(page.locator("#field-data-flip")).to_be_hidden()
    fill(page, "find-setting", "mirror")
    expect(page.locator("#field-data-flip")).to_be_visible()
    expect(page.locator("#field-adapter-lora-rank")).to_be_hidden()
    page.locator("#field-data-flip input").click()
    expect(page.locator("#changed-settings")).to_contain_text("1 changed setting")
    fill(page, "find-setting", "")
    page.locator("#changed-settings > button").click()
    expect(page.locator("#changed-lines li")).to_contain_text("Mirror off was on")
    page.get_by_role("button", name="Reset Mirror").click()
    expect(page.locator("#changed-settings")).to_be_hidden()
