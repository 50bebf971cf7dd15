"""The Stack tab as a mixing desk, in a real browser: the picture stays beside its sliders, follows them, and can be
cancelled, compared and taken back.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests import test_browser as browsing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, browsing.pytestmark]
expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one


@contextmanager
def serving(workspace: Path, *loras: Path) -> Iterator[browsing.Server]:
    """A server whose workspace has these LoRAs."""
    made = browsing.Server(workspace)
    (made.workspace / "loras").mkdir(parents=True)
    for lora in loras:
        shutil.copy(lora, made.workspace / "loras" / lora.name)
    made.start()
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
def server(tmp_path: Path, trained: Path, trained_style: Path) -> Iterator[browsing.Server]:
    with serving(tmp_path / "workspace", trained, trained_style) as made:
        yield made


@pytest.fixture
def desk(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """The Stack tab at 1440 x 900 with two LoRAs chosen."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(server.address)
    page.get_by_role("tab", name="Stack").click()
    set_live(page, False)
    choose(page, 1, "cat")
    choose(page, 2, "style")
    browsing.fill(page, "stack-prompt", "a red apple")
    yield page
    assert "Traceback" not in server.log(), server.log()


def set_live(page: Page, wanted: bool) -> None:
    page.locator("#live input").set_checked(wanted)


def choose(page: Page, row: int, name: str) -> None:
    page.locator(f"#lora-{row} input").click()
    page.get_by_role("option", name=name, exact=True).last.click()


def infotext(page: Page) -> str:
    return page.locator("#infotext textarea").input_value()


def render(page: Page, steps: int = 2) -> None:
    before = page.locator("#recent img").count()
    browsing.fill(page, "stack-steps", str(steps))
    page.locator("#render").click()
    expect(page.locator("#recent img")).to_have_count(before + 1, timeout=WAIT_MS)


def inside(page: Page, *selectors: str) -> bool:
    """Whether all of these are whole in the window."""
    height = page.evaluate("window.innerHeight")
    boxes = [page.locator(selector).first.bounding_box() for selector in selectors]
    return all(box and box["y"] >= 0 and box["y"] + box["height"] <= height for box in boxes)


def test_picture_progress_buttons_and_sliders_are_on_screen_together(desk: Page) -> None:
    """Harm 4: Render and picture were never on screen together at 1440 x 900, nor was progress."""
    parts = ["#picture", "#drawing", "#render", "#cancel-render", "#weight-1", "#weight-2"]
    assert inside(desk, *parts)
    desk.set_viewport_size({"width": 1024, "height": 900})
    assert inside(desk, *parts)

    # The page's head and the tools of a row stay on one line each.
    for width in (1440, 1280, 1200, 1024):
        desk.set_viewport_size({"width": width, "height": 900})
        desk.wait_for_timeout(500)  # buttons take another size slowly
        for part in ("#layer-1 .layer-tools", ".top"):
            box = desk.locator(part).bounding_box()
            assert box and box["height"] < (80 if part == ".top" else 40), (width, part)

    # The picture stays while the controls go by.
    desk.set_viewport_size({"width": 1440, "height": 900})
    desk.locator("#render-axes, #grids").first.scroll_into_view_if_needed()
    desk.mouse.wheel(0, 4000)
    desk.wait_for_timeout(500)
    assert desk.evaluate("window.scrollY") > 100 and inside(desk, "#picture", "#drawing", "#render", "#cancel-render")

    # In a narrow window it comes first.
    desk.set_viewport_size({"width": 420, "height": 900})
    desk.evaluate("window.scrollTo(0, 0)")
    boxes = [desk.locator(part).bounding_box() for part in ("#picture", "#render", "#stack-prompt")]
    tops = [box["y"] for box in boxes if box]
    assert tops == sorted(tops) and len(tops) == 3 and desk.evaluate("document.documentElement.scrollWidth") <= 421


def test_ctrl_enter_renders_from_a_field_and_a_long_render_is_cancelled(desk: Page, server: browsing.Server) -> None:
    """Harm 4 and more: Ctrl+Enter did nothing; a render couldn't be cancelled, nor was its progress seen."""
    browsing.fill(desk, "stack-steps", "500")
    desk.locator("#stack-prompt").locator("textarea, input").first.press("Control+Enter")
    expect(desk.locator("#drawing")).to_contain_text(re.compile(r"step \d+ of 500"), timeout=WAIT_MS)
    expect(desk.locator("#cancel-render")).to_have_text("Cancel")
    desk.locator("#cancel-render").click()
    expect(desk.locator("#drawing")).to_contain_text("Cancelled", timeout=5000)
    expect(desk.locator("#cancel-render")).to_be_disabled()
    assert not list((server.workspace / "renders").glob("*.png"))
    render(desk)
    assert "Steps: 2" in infotext(desk)


def test_a_slider_that_stops_shows_a_quick_picture_and_then_the_whole_one(desk: Page) -> None:
    """Of the walk: no live preview. What is superseded is never drawn to its end, and the picture never goes away."""
    set_live(desk, True)
    browsing.fill(desk, "stack-steps", "60")
    slider = desk.locator("#weight-1 input[type=range]")
    slider.focus()
    slider.press("ArrowLeft")
    expect(desk.locator("#drawing")).to_contain_text("Preview", timeout=WAIT_MS)
    expect(desk.locator("#picture img")).to_be_visible(timeout=WAIT_MS)
    expect(desk.locator("#drawing")).to_contain_text("of 60", timeout=WAIT_MS)
    desk.evaluate(
        "window.empty = 0; new MutationObserver(() => { if (!document.querySelector('#picture img')) window.empty++ })"
        ".observe(document.querySelector('#picture'), {childList: true, subtree: true})"
    )
    slider.press("ArrowLeft")
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile(r"cat:0\.9>"), timeout=WAIT_MS)
    assert desk.locator("#recent img").count() == 1, "the first stop's picture was superseded"
    assert desk.evaluate("window.empty") == 0


def test_solo_and_mute_restore_exactly_and_rows_move(desk: Page) -> None:
    """Of the walk: no solo; rows could be neither moved nor removed."""
    browsing.fill(desk, "weight-2", "0.35")
    desk.locator("#solo-1 input").check()
    render(desk)
    assert "cat:1>" in infotext(desk) and "style" not in infotext(desk)
    desk.locator("#solo-1 input").uncheck()
    desk.locator("#mute-1 input").check()
    render(desk)
    assert "style:0.35>" in infotext(desk) and "<lora:cat" not in infotext(desk)
    desk.locator("#mute-1 input").uncheck()
    desk.locator("#down-1").click()
    expect(desk.locator("#lora-1 input")).to_have_value("style")
    render(desk)
    assert re.search(r"style:0\.35>.*cat:1>", infotext(desk), re.DOTALL)
    desk.locator("#remove-1").click()
    expect(desk.locator("#lora-1 input")).to_have_value("cat")
    expect(desk.locator("#layer-2")).to_be_hidden()


def test_a_cell_of_a_sheet_gives_its_stack_and_a_sheet_promises_no_recipe(desk: Page) -> None:
    """Harm 13: "Download PNG with its recipe" stood above a sheet without one, and its cells couldn't be clicked."""
    browsing.fill(desk, "stack-steps", "1")
    browsing.fill(desk, "grid-weights", "0.2, 0.6")
    desk.locator("#render-grid").click()
    cells = desk.locator("#cells button.thumbnail-item, #cells .thumbnail-lg")
    expect(cells).to_have_count(4, timeout=WAIT_MS)
    expect(desk.locator("#download")).to_have_text("Download sheet")
    cells.nth(2).click()  # the first LoRA at 0.6, the second at 0.2
    expect(desk.locator("#weight-1 input[type=number]")).to_have_value("0.6")
    expect(desk.locator("#weight-2 input[type=number]")).to_have_value("0.2")
    render(desk)
    expect(desk.locator("#download")).to_have_text("Download PNG with its recipe")


def test_a_pinned_picture_is_compared_with_the_next_and_the_history_has_seeds(desk: Page) -> None:
    """Of the walk: no A/B, no pinned compare, and a history without seeds."""
    render(desk)
    desk.locator("#pin").click()
    expect(desk.locator("#compare")).to_be_visible()
    browsing.fill(desk, "stack-seed", "7")
    render(desk)
    sources = desk.locator("#compare img").evaluate_all("images => images.map(image => image.src)")
    assert len(set(sources)) == 2
    expect(desk.locator("#recent")).to_contain_text("seed 7")
    expect(desk.locator("#recent")).to_contain_text("seed 1")
    desk.locator("#pin").click()
    expect(desk.locator("#picture img")).to_be_visible()
    expect(desk.locator("#compare")).to_be_hidden()


def test_a_region_can_be_a_mask_picture(desk: Page) -> None:
    """Harm 10: the help offered a mask, the page refused every file."""
    raw = io.BytesIO()
    Image.new("L", (64, 64), 255).save(raw, "PNG")
    desk.locator("#more-1 button").first.click()
    desk.locator("#more-1 input[type=file]").set_input_files(
        {"name": "../<b>left.png", "mimeType": "image/png", "buffer": raw.getvalue()}
    )
    region = desk.locator("#layer-1-region").locator("textarea, input").first
    expect(region).to_have_value(re.compile(r"^mask b-left-[0-9a-f]{8}\.png$|^mask .*left-[0-9a-f]{8}\.png$"))
    render(desk)
    assert "<lora:cat" in infotext(desk)


# What is opened, and what stays.


def source(page: Page) -> str:
    """The address of the picture on the easel."""
    expect(page.locator("#picture img")).to_be_visible(timeout=WAIT_MS)
    return page.locator("#picture img").evaluate("image => image.src")


def expect_shown(page: Page, address: str, seed: int) -> None:
    """The very picture, and its stack in the form."""
    expect(page.locator("#picture img")).to_have_attribute("src", address, timeout=WAIT_MS)
    expect(page.locator("#infotext textarea")).to_have_value(re.compile(rf"Seed: {seed},"))
    expect(page.locator("#stack-seed input")).to_have_value(str(seed))


def open_in_library(page: Page, kind: str, words: str, title: str) -> None:
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-kind").get_by_text(kind, exact=True).click()
    named = page.locator(".name").filter(has_text=re.compile(rf"^\s*{title}"))
    page.locator("#library-cards .card").filter(has=named).filter(has_text=words).first.click()
    expect(page.locator("#library-details h3")).to_contain_text(title, timeout=WAIT_MS)
    page.locator("#library-open").click()
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true", timeout=WAIT_MS)


def load_stack(page: Page, name: str) -> None:
    page.locator("#saved-stack input").click()
    page.get_by_role("option", name=name, exact=True).last.click()
    page.locator("#load-stack").click()


def test_each_door_into_the_tab_shows_the_picture_of_what_it_opens(desk: Page, server: browsing.Server) -> None:
    """The form was filled, and the easel stayed empty or kept another stack's picture."""
    render(desk)
    first = source(desk)
    desk.locator("#saved-stacks button").first.click()
    browsing.fill(desk, "stack-name", "mine")
    desk.locator("#save-stack").click()
    expect(desk.locator("#saved-stack input")).to_have_value("mine")
    browsing.fill(desk, "stack-seed", "7")
    render(desk)
    second = source(desk)
    assert first != second

    # The Library's card, and a picture that is dropped.
    open_in_library(desk, "Pictures", "seed 1", "1-")
    expect_shown(desk, first, 1)
    (picture,) = (server.workspace / "renders").glob("7-*.png")
    desk.locator("#recipe-png input[type=file]").set_input_files(picture)
    expect(desk.locator("#stack-seed input")).to_have_value("7", timeout=WAIT_MS)
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("Seed: 7,"), timeout=WAIT_MS)
    assert source(desk) not in (first, second), "a copy, written anew"

    # A saved stack has no picture of its own: none is shown, or it is drawn at once.
    load_stack(desk, "mine")
    expect(desk.locator("#drawing")).to_contain_text("Press Render", timeout=WAIT_MS)
    expect(desk.locator("#picture img")).to_have_count(0)
    set_live(desk, True)
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("Seed: 1,"), timeout=WAIT_MS)
    desk.locator("#recent button").filter(has_text="seed 7").first.click()
    expect_shown(desk, second, 7)
    load_stack(desk, "mine")
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("Seed: 1,"), timeout=WAIT_MS)
    expect(desk.locator("#picture img")).not_to_have_attribute("src", second)

    # A LoRA of the Library is one more row, which is drawn too.
    desk.locator("#remove-2").click()
    expect(desk.locator("#infotext textarea")).not_to_have_value(re.compile("<lora:style"), timeout=WAIT_MS)
    open_in_library(desk, "LoRAs", "style", "style")
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("<lora:style"), timeout=WAIT_MS)


def test_a_grid_gives_each_cells_picture_also_after_a_reload_and_from_the_library(desk: Page) -> None:
    """A grid in Recent, "click one to get its stack back", gave none."""
    browsing.fill(desk, "stack-steps", "1")
    browsing.fill(desk, "grid-weights", "0.2, 0.6")
    desk.locator("#render-grid").click()
    cells = desk.locator("#cells button.thumbnail-item, #cells .thumbnail-lg")
    expect(cells).to_have_count(4, timeout=WAIT_MS)
    desk.reload()
    expect(cells).to_have_count(4, timeout=WAIT_MS)
    for door in ("here", "recent", "library"):
        if door == "recent":
            desk.locator("#recent button").filter(has_text="sheet").first.click()
        if door == "library":
            open_in_library(desk, "Pictures", "a sheet of pictures", "grid-")
        expect(cells).to_have_count(4, timeout=WAIT_MS)
        place = {"here": 2, "recent": 1, "library": 0}[door]
        cells.nth(place).click()
        weights = ("0.2", "0.6")[place // 2], ("0.2", "0.6")[place % 2]
        made_from = re.compile(rf"cat:{weights[0]}>.*style:{weights[1]}>", re.DOTALL)
        expect(desk.locator("#infotext textarea")).to_have_value(made_from, timeout=WAIT_MS)
        source(desk)
        expect(desk.locator("#weight-1 input[type=number]")).to_have_value(weights[0])
        expect(desk.locator("#cells")).to_be_hidden()


def test_the_picture_and_the_pinned_one_are_there_after_a_reload_and_a_region_is_painted_on_it(desk: Page) -> None:
    """After a reload there was no picture and Pin was dead; beside a pinned picture a region was painted on grey."""
    render(desk)
    desk.locator("#pin").click()
    browsing.fill(desk, "stack-seed", "7")
    render(desk)
    images = "images => images.map(image => image.src)"
    sources = desk.locator("#compare img").evaluate_all(images)
    desk.reload()
    expect(desk.locator("#compare")).to_be_visible(timeout=WAIT_MS)
    assert set(desk.locator("#compare img").evaluate_all(images)) == set(sources)
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("Seed: 7,"))
    desk.locator("#more-1 button").first.click()
    desk.locator("#draw-region-1").click()
    stage = desk.locator("dialog.act .act-stage")
    expect(stage).to_have_css("background-image", re.compile(r"url\(.*/7-[0-9a-f]{8}"), timeout=WAIT_MS)
    desk.keyboard.press("Escape")
    desk.locator("#pin").click()
    expect(desk.locator("#picture img")).to_be_visible(timeout=WAIT_MS)
    assert source(desk) in sources


def test_live_follows_everything_that_changes_the_picture(desk: Page) -> None:
    """Weights were live; guidance, Up and Down, the text weight, the balance and a mask were not."""
    browsing.fill(desk, "stack-steps", "1")
    set_live(desk, True)
    desk.locator("#insight button").first.click()
    desk.locator("#more-1 button").first.click()

    def guidance() -> None:
        desk.locator("#stack-guidance_scale input[type=range]").focus()
        desk.keyboard.press("ArrowRight")

    def mask() -> None:
        raw = io.BytesIO()
        Image.linear_gradient("L").save(raw, "PNG")
        picture = {"name": "left.png", "mimeType": "image/png", "buffer": raw.getvalue()}
        desk.locator("#more-1 input[type=file]").set_input_files(picture)

    changes = {
        "a prompt": lambda: browsing.fill(desk, "stack-prompt", "a red fox"),
        "guidance": guidance,
        "the text weight": lambda: browsing.fill(desk, "layer-1-text_weight", "0.4"),
        "a seed": lambda: browsing.fill(desk, "stack-seed", "9"),
        "a new seed": lambda: desk.locator("#new-seed").click(),
        "down": lambda: desk.locator("#down-1").click(),
        "up": lambda: desk.locator("#up-2").click(),
        "the balance": lambda: desk.locator("#balance").click(),
        "a mask": mask,
    }
    expect(desk.locator("#infotext textarea")).to_have_value(re.compile("<lora:cat"), timeout=WAIT_MS)
    for name, change in changes.items():
        before = desk.locator("#recent img").count()
        change()
        for _ in range(1200):
            if desk.locator("#recent img").count() > before:
                break
            desk.wait_for_timeout(100)
        assert desk.locator("#recent img").count() == before + 1, f"{name} drew no picture"
