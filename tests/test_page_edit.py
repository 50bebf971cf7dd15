"""The Dataset tab in a real browser: pictures cropped, masked and flipped, filtered by bucket; fields that are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pytest
from PIL import Image

from app import tabs, ui
from app.context import Context
from app.tabs import dataset
from tests import captioners, timing
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM, WIDE, launch
from tests.test_browser import playwright_api, unfold
from trainer.config import CaptionsConfig, DataConfig
from trainer.data import edits, opening, scanning

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [NEEDS_CHROMIUM, pytest.mark.timeout(400)]
expect = playwright_api.expect
CROP, MASK = "dialog.act-large .crop-frame", "dialog.act-large canvas"
USE = "dialog.act-large .act-use"


def drawn(width: int, height: int, number: int = 0) -> Image.Image:
    """A picture that no mirror leaves as it is, and that is like no other."""
    noise = numpy.random.default_rng(number).integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    home = tmp_path_factory.mktemp("edit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(home / "gradio"))
        patch.setattr(tabs, "registry", lambda: [dataset])
        made = ui.open_workspace(home / "workspace")
        made.captioners.mkdir()
        captioners.blip(made.captioners / "blip")
        captioners.llava(made.captioners / "llava")
        yield made


@pytest.fixture(scope="module")
def address(context: Context) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tabs, "registry", lambda: [dataset])
        made, at = launch(context)
    yield at
    made.close()


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Page:
    """A browser that has a touch screen too."""
    opened = chromium.new_context(viewport=WIDE, has_touch=True).new_page()
    opened.set_default_timeout(60_000)
    return opened


@pytest.fixture
def choose(page: Page, context: Context, address: str) -> Iterator[Callable[..., Path]]:
    """`choose("mine", sizes)`: a set of pictures `00.png` ... chosen on the page."""

    def make(name: str, sizes: list[tuple[int, int]], more: str = "") -> Path:
        folder = context.datasets / name
        folder.mkdir()
        for number, size in enumerate(sizes):
            drawn(*size, number).save(folder / f"{number:02}.png")
            (folder / f"{number:02}.txt").write_text(f"a thing of {name}{more}\n")
        page.goto(address)
        page.locator("#dataset input").click()
        page.get_by_role("option", name=name, exact=True).click()
        expect(page.locator("#dataset-gallery .card").filter(has_text=f"a thing of {name}")).to_have_count(len(sizes))
        return folder

    yield make
    assert page.evaluate("window.__owned") is None


def pick(page: Page, number: int) -> None:
    page.locator("#dataset-gallery .thumbnail-item").nth(number).click()
    expect(page.locator("#caption")).to_contain_text(f"{number:02}.png")
    expect(page.locator("#crop-picture")).to_be_enabled()


def begin(page: Page, tool: str) -> None:
    page.locator(f"#{tool}-picture").click()
    expect(page.locator(USE)).to_be_enabled()


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def wait(ready: Callable[[], bool], timeout_s: float = 30) -> None:
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def at(page: Page, selector: str, across: float, down: float) -> tuple[float, float]:
    """A place on a part of the page, in shares of it."""
    box = page.locator(selector).bounding_box()
    assert box
    return box["x"] + box["width"] * across, box["y"] + box["height"] * down


def drag(page: Page, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    first, last = at(page, selector, *start), at(page, selector, *end)
    page.mouse.move(*first)
    page.mouse.down()
    page.mouse.move(*last, steps=6)
    page.mouse.up()


def mask_of(folder: Path, number: int = 0) -> numpy.ndarray:
    """The mask of a picture as training loads it (h, w)."""
    data = DataConfig(folder=str(folder), mask="file")
    items = scanning.scan_folder(folder, "data.folder", data, CaptionsConfig(), "").items
    return scanning.load_mask(items[number], (items[number].width_px, items[number].height_px), 0, False).numpy()[0]


def test_a_crop_of_a_buckets_shape_is_undone_after_a_reload(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("cropped", [(640, 480), (480, 640), (480, 640)])
    before = (folder / "00.png").read_bytes()
    pick(page, 0)
    shown = page.locator("#dataset-picture img").get_attribute("src")
    begin(page, "crop")
    shape = page.locator("dialog.act-large select")
    expect(shape.locator("option", has_text="112 × 144 (2)")).to_have_count(1)
    shape.select_option("112 × 144")
    drag(page, CROP, (0.5, 0.5), (0.2, 0.5))
    page.locator(USE).click()
    wait(lambda: size(folder / "00.png") == (373, 480))
    left = opening.open_image(folder / "00.png")
    whole = numpy.asarray(drawn(640, 480, 0))
    assert any((whole[:, x : x + 373] == numpy.asarray(left)).all() for x in range(640 - 373)), "cut, not scaled"
    expect(page.locator("#dataset-picture img")).not_to_have_attribute("src", str(shown))
    chip = page.locator("#dataset-gallery .buckets .chip").filter(has_text="112 × 144")
    expect(chip).to_contain_text("3")

    page.reload()
    expect(page.locator("#dataset-gallery .card")).to_have_count(3)
    unfold(page, "Edits")
    expect(page.locator("#dataset-history")).to_contain_text("Crop of 00.png")
    page.locator("#undo-caption").click()
    wait(lambda: (folder / "00.png").read_bytes() == before)
    expect(chip).to_contain_text("2")


def test_a_crop_by_keys_and_numbers(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("keyed", [(640, 480)])
    pick(page, 0)
    page.locator("#dataset-gallery .thumbnail-item").focus()
    page.keyboard.press("c")
    expect(page.locator(USE)).to_be_enabled()
    expect(page.locator(CROP)).to_be_focused()
    for _ in range(10):
        page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")  # of no picture, while this is open
    page.get_by_label("Height").fill("200")
    page.get_by_label("Top").fill("33")
    page.keyboard.press("Control+Enter")
    wait(lambda: size(folder / "00.png") != (640, 480))
    wanted = drawn(640, 480, 0).crop((5, 33, 5 + 590, 233))
    assert opening.open_image(folder / "00.png").tobytes() == wanted.tobytes()
    expect(page.locator("dialog.act-large")).to_be_hidden()


def test_a_mask_is_painted_kept_and_trained_with(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("masked", [(320, 240), (320, 240)])
    pick(page, 0)
    begin(page, "mask")
    drag(page, MASK, (0.2, 0.5), (0.5, 0.5))
    page.locator("dialog.act-large").get_by_role("button", name="Erase").click()
    drag(page, MASK, (0.45, 0.1), (0.45, 0.9))
    page.locator(USE).click()
    wait(lambda: (folder / "00.mask.png").is_file())
    mask = mask_of(folder)
    assert mask[120, 80] == 0 and mask[120, 144] == 1 and mask[10, 10] == 1 and mask_of(folder, 1).min() == 1
    expect(page.locator("#dataset-summary textarea, #dataset-summary input").first).to_have_value(
        "2 of 2 pictures will train, all with captions, 1 with a mask."
    )
    expect(page.locator("#dataset-picture")).to_contain_text("counts less")

    # After a reload it is there to go on with: inverted, and what was undone is not.
    page.reload()
    pick(page, 0)
    begin(page, "mask")
    drag(page, MASK, (0.8, 0.8), (0.9, 0.9))
    page.keyboard.press("Control+z")
    page.locator("dialog.act-large").get_by_role("button", name="Invert").click()
    page.keyboard.press("Escape")  # what is not saved is not dropped by one key
    expect(page.locator("dialog.act-large .act-said")).to_contain_text("Not saved yet")
    page.locator(USE).click()
    wait(lambda: bool((abs(mask_of(folder) - (1 - mask)) < 0.02).all()))
    page.locator("#undo-caption").click()
    wait(lambda: bool((mask_of(folder) == mask).all()))
    page.locator("#undo-caption").click()
    wait(lambda: not (folder / "00.mask.png").exists())
    assert (mask_of(folder) == 1).all()

    # Cleared, it is gone.
    begin(page, "mask")
    drag(page, MASK, (0.2, 0.5), (0.5, 0.5))
    page.locator(USE).click()
    wait(lambda: (folder / "00.mask.png").is_file())
    expect(page.locator("#dataset-gallery .badge").filter(has_text="mask")).to_have_count(1)
    begin(page, "mask")
    page.locator("dialog.act-large").get_by_role("button", name="Clear").click()
    page.locator(USE).click()
    wait(lambda: not (folder / "00.mask.png").exists())


def test_finger_and_pen_paint_and_crop(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("touched", [(320, 240)])
    pick(page, 0)
    begin(page, "mask")
    page.touchscreen.tap(*at(page, MASK, 0.2, 0.2))
    client = page.context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    touch("touchStart", at(page, MASK, 0.5, 0.2))
    touch("touchMove", at(page, MASK, 0.5, 0.5))
    touch("touchMove", at(page, MASK, 0.5, 0.8), at(page, MASK, 0.9, 0.9))  # a second finger paints nothing
    touch("touchEnd")
    for kind, across in (("mousePressed", 0.75), ("mouseMoved", 0.8), ("mouseReleased", 0.8)):
        x, y = at(page, MASK, across, 0.3)
        pen = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": "pen"}
        client.send("Input.dispatchMouseEvent", pen)
    page.locator(USE).tap()
    wait(lambda: (folder / "00.mask.png").is_file())
    mask = mask_of(folder)
    assert mask[48, 64] == 0 and mask[120, 160] == 0 and mask[180, 160] == 0 and mask[72, 250] == 0
    assert mask[216, 288] == 1 and mask[120, 20] == 1

    expect(page.locator("#dataset-gallery .badge").filter(has_text="mask")).to_have_count(1)
    begin(page, "crop")
    touch("touchStart", at(page, CROP, 0.99, 0.99))
    touch("touchMove", at(page, CROP, 0.7, 0.7))
    x, y = at(page, "dialog.act-large .crop-stage", 0.5, 0.5)
    touch("touchMove", (x, y))
    touch("touchEnd")
    page.locator(USE).tap()
    wait(lambda: size(folder / "00.png") != (320, 240))
    width, height = size(folder / "00.png")
    assert abs(width - 160) <= 3 and abs(height - 120) <= 3
    assert size(folder / "00.mask.png") == (width, height) and (mask_of(folder) == mask[:height, :width]).all()


def test_marked_pictures_are_flipped_at_once_as_one_edit(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("flipped", [(96, 64)] * 11, f", facing left, {HOSTILE}")
    (folder / "10.png").write_bytes(b"no picture")
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    page.get_by_role("button", name="Mark all").click()
    page.get_by_role("button", name="Flip marked").click()
    said = page.locator("#dataset-gallery .done")
    expect(said).to_contain_text("10 pictures flipped. 1 not: 10.png is not a picture")
    expect(said).to_contain_text("10 captions say left or right")
    for number in range(10):
        flipped = Image.open(folder / f"{number:02}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert flipped.tobytes() == drawn(96, 64, number).tobytes()
    assert [edit.num_pictures for edit in edits.history(folder)] == [10]
    page.locator("#dataset-gallery .sided").click()
    assert page.locator("#dataset-gallery .card:visible").count() == 10
    page.locator("#undo-caption").click()
    wait(lambda: {path.name: path.read_bytes() for path in folder.glob("*.png")} == before)


def test_flipping_many_can_be_stopped(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("stopped", [(800, 600)] * 40)
    page.get_by_role("button", name="Mark all").click()
    page.get_by_role("button", name="Flip marked").click()
    expect(page.locator("#dataset-gallery progress")).to_be_visible()
    page.locator("#dataset-gallery .halt").click()
    expect(page.locator("#dataset-gallery .done")).to_contain_text("flipped")
    (edit,) = edits.history(folder)
    assert 0 < edit.num_pictures < 40
    expect(page.locator("#dataset-gallery .done")).to_have_text(f"{edit.num_pictures} pictures flipped.")


def test_a_picture_changed_elsewhere_is_not_written_over(page: Page, choose: Callable[..., Path]) -> None:
    folder = choose("elsewhere", [(320, 240)])
    pick(page, 0)
    begin(page, "crop")
    other = drawn(320, 240, 7)
    other.save(folder / "00.png")
    drag(page, CROP, (0.99, 0.99), (0.5, 0.5))
    page.locator(USE).click()
    expect(page.locator("dialog.act-large .act-said")).to_contain_text("was changed meanwhile")
    page.locator("dialog.act-large .act-cancel").click()
    assert opening.open_image(folder / "00.png").tobytes() == other.tobytes() and not edits.history(folder)


def test_five_hundred_pictures_are_there_in_two_seconds_and_filtered_by_bucket_in_half_a_one(
    page: Page, choose: Callable[..., Path], address: str
) -> None:
    sizes = [(96, 64), (64, 96), (80, 80), (96, 48)]
    choose("many", [sizes[number % 4] for number in range(500)])
    expect(page.locator("#dataset-gallery .count")).to_have_text("500 pictures", timeout=120_000)  # all are looked at
    took = []
    for _ in range(3):
        start = time.monotonic()
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('#dataset-gallery .card').length === 500")
        took.append((time.monotonic() - start, timing.slowness()))
    print(f"page of 500, seconds and slowness: {took}")
    assert min(seconds / slow for seconds, slow in took) < 2
    chips = page.locator("#dataset-gallery .buckets .chip")
    expect(chips).to_have_count(4)
    assert chips.locator("b").all_inner_texts() == ["125"] * 4
    measured = page.evaluate(
        """() => [0, 0, 1, 1, 2, 2, 3, 3].map(index => {
          const start = performance.now(), root = document.querySelector('#dataset-gallery');
          root.querySelectorAll('.buckets .chip')[index].click();
          const count = [...root.querySelectorAll('.card')].filter(card => !card.hidden).length;
          root.offsetHeight;
          return [count, performance.now() - start];
        })"""
    )
    print(f"filters of 500: {measured}")
    assert [count for count, _ in measured] == [125, 500] * 4 and all(took < 500 for _, took in measured)


def test_what_was_set_for_writing_captions_outlives_a_reload(page: Page, choose: Callable[..., Path]) -> None:
    choose("kept", [(96, 64)])
    unfold(page, "Write captions")
    page.locator("#captioner input").click()
    page.get_by_role("option", name="llava", exact=True).click()
    told = page.locator("#caption-instruction textarea")
    told.fill(HOSTILE)
    page.get_by_label("A style").click()
    expect(page.locator("#caption-leave-out textarea")).not_to_have_value("")
    page.locator("#caption-leave-out textarea").fill('red scarf, "quoted"')
    page.locator("#caption-bare input").uncheck()
    page.locator("#caption-leave-out textarea").blur()
    page.wait_for_timeout(2500)
    page.reload()
    expect(page.locator("#dataset-gallery .card")).to_have_count(1)
    unfold(page, "Write captions")
    expect(page.locator("#captioner input")).to_have_value("llava")
    expect(told).to_have_value(HOSTILE)
    expect(page.get_by_label("A style")).to_be_checked()
    expect(page.locator("#caption-leave-out textarea")).to_have_value('red scarf, "quoted"')
    expect(page.locator("#caption-bare input")).not_to_be_checked()
