"""A batch in a real browser: a table pasted, its pictures kept, rejected and rated, thrown away and gone on from."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import item_notes, tabs, ui
from app.context import Context
from app.library_items import Shelf
from app.tabs import batch, library, stack
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM
from tests.viewed_pictures import at, enlarge
from trainer.config import StackConfig
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Page

SMALL = "64x64\t2"  # size and steps

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=240_000)  # the suite's other files train beside this one
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), NEEDS_CHROMIUM]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [stack, batch, library])
    made = ui.open_workspace(tmp_path / "workspace")
    made.runner.start()
    yield made
    made.runner.halt()


@pytest.fixture
def page(open_page: Callable[[], Page]) -> Page:
    return show(open_page())


def show(page: Page) -> Page:
    """The Batch tab of this page."""
    page.get_by_role("tab", name="Batch").click()
    expect(page.locator("#batch-source")).to_be_visible()
    return page


def box(page: Page, elem_id: str) -> Any:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def paste(page: Page, text: str) -> None:
    page.locator("#batch-source").get_by_text("A table", exact=True).click()
    box(page, "batch-table").fill(text)


def draw(page: Page, num: int) -> None:
    page.locator("#start-batch").click()
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(f"Finished.*{num} of {num} pictures", re.DOTALL))
    expect(page.locator("#batch-pictures .grid button")).to_have_count(num)


def chip(page: Page, view: str) -> Any:
    return page.locator(f"#batch-pictures .chip[data-view={view}]")


def rows(num: int) -> str:
    return "prompt\tseed\tsize\tsteps\n" + "".join(f'"a fox {HOSTILE}"\t{seed}\t{SMALL}\n' for seed in range(num))


def a_batch(context: Context, num: int) -> None:
    """A batch that was drawn: its job, and its pictures with their recipes."""
    job = context.runner.submit("batch", "prompt\n", "batch-csv")
    context.runner.table.put(job, state="finished")
    out = context.batches / "batch"
    out.mkdir()
    for seed in range(num):
        recipe = PngInfo()
        made = StackConfig.model_validate({"prompt": f"a fox {HOSTILE}", "seed": seed, "width_px": 64, "height_px": 64})
        recipe.add_text(picture_metadata.RECIPE_KEY, json.dumps(picture_metadata.travelling(made)))
        Image.new("RGB", (64, 64), (60 * seed % 255, 120, 90)).save(out / f"{seed:05d}.png", pnginfo=recipe)


def test_a_table_of_a_spreadsheet_says_what_it_is_and_what_is_wrong_at_once(page: Page, context: Context) -> None:
    paste(page, f'Seed\tCFG\tprompt\tcolour\n7\tmuch\t"a fox\nin snow {HOSTILE}"\tred\nx\t3\tan owl\t\n')
    pasted = page.locator("#batch-pasted")
    for words in ("3 problems", "column 4 is 'colour'", "row 1, guidance: guidance_scale is 'much'", "row 2, seed"):
        expect(pasted).to_contain_text(words)
    expect(pasted.locator("th", has_text="CFG")).to_contain_text("→ guidance")
    expect(pasted.locator("th", has_text="colour")).to_contain_text("not known")
    page.locator("#start-batch").click()
    expect(page.locator("#batch-plan")).to_contain_text("Column 4 is 'colour'")
    assert context.runner.every() == []

    # What was typed outlives a reload.
    paste(page, rows(2))
    expect(pasted).to_contain_text("2 pictures")
    expect(pasted).to_contain_text("is known after a first picture")
    page.wait_for_timeout(1000)
    page.reload()
    show(page)
    expect(box(page, "batch-table")).to_have_value(rows(2))


def test_pictures_are_kept_rejected_and_rated_where_the_library_keeps_ratings(
    context: Context, open_page: Callable[[], Page]
) -> None:
    a_batch(context, 4)
    page = show(open_page())
    pictures = page.locator("#batch-pictures")
    expect(pictures.locator(".grid button")).to_have_count(4)
    expect(pictures.locator(".seen img")).to_be_visible()

    # By keys: the next picture comes by itself.
    pictures.locator(".grid button").first.click()
    for key in ("k", "x", "x", "4", "ArrowRight"):
        page.keyboard.press(key)
    expect(pictures.locator(".grid .mark").nth(3)).to_have_text("★★★★")
    expect(chip(page, "kept")).to_have_text("Kept1")
    expect(chip(page, "rejected")).to_have_text("Rejected2")
    expect(chip(page, "unrated")).to_have_text("Unrated0")
    said = item_notes.read(context.workspace / "notes", "pictures")
    told = sorted((note.verdict, note.rating) for note in said.values())
    assert told == [("", 4), ("kept", 0), ("rejected", 0), ("rejected", 0)]

    # By buttons, and taken back by the same.
    pictures.locator("[data-rating='2']").click()
    expect(pictures.locator(".grid .mark").nth(3)).to_have_text("★★")
    (keep := pictures.get_by_role("button", name=re.compile("^Keep"))).click()
    expect(chip(page, "kept")).to_have_text("Kept2")
    keep.click()
    expect(chip(page, "kept")).to_have_text("Kept1")

    # The filter and what was said are there after a reload; the zip has the kept alone, with its recipe.
    chip(page, "kept").click()
    expect(pictures.locator(".grid button")).to_have_count(1)
    page.reload()
    show(page)
    expect(pictures.locator(".grid button")).to_have_count(1)
    expect(chip(page, "kept")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as waiting:
        pictures.get_by_role("button", name="Zip the kept").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        (name,) = archive.namelist()
        recipe = picture_metadata.read(Path(archive.extract(name, context.workspace / "cache"))).recipe
    assert recipe and recipe["prompt"] == f"a fox {HOSTILE}"

    # One truth: the Library shows the same, and what it says is seen here.
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-kind").get_by_text("Pictures", exact=True).click()
    expect(page.locator("#library-cards .card")).to_have_count(2)
    page.locator("#library-cards .card", has_text="★★").click()
    page.locator("#library-rating").get_by_text("★★★★★", exact=True).click()
    expect(page.locator("#library-cards .stars")).to_have_text("★★★★★")
    page.reload()
    show(page)
    chip(page, "all").click()
    expect(pictures.locator(".grid .mark").nth(3)).to_have_text("★★★★★")

    # A picture's stack is taken to Stack.
    pictures.locator(".grid button").nth(2).click()
    pictures.get_by_role("button", name="Open in Stack").click()
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(box(page, "stack-prompt")).to_have_value(f"a fox {HOSTILE}")


def test_a_table_is_drawn_rejected_ones_go_and_come_back_and_one_button_goes_on(page: Page, context: Context) -> None:
    paste(page, rows(3))
    draw(page, 3)
    pictures = page.locator("#batch-pictures")
    assert pictures.locator(".seen img").evaluate("image => image.naturalWidth") == 64
    pictures.locator(".grid button").first.click()
    page.keyboard.press("x")
    page.keyboard.press("3")
    expect(chip(page, "rejected")).to_have_text("Rejected1")
    pictures.get_by_role("button", name="Trash rejected").click()
    expect(pictures.locator(".said")).to_contain_text("1 picture in the trash")
    expect(pictures.locator(".grid button")).to_have_count(2)
    out = context.batches / "batch"
    assert len(list(out.glob("*.png"))) == 2

    # Stopped and gone on from by one button: what is thrown away is not drawn again, ratings stay.
    (job,) = context.runner.every()
    context.runner.table.put(job, state="stopped")
    page.reload()
    show(page)
    expect(page.locator("#batch-pasted")).to_contain_text("3 pictures")
    page.locator("#resume-batch").click()
    expect(page.locator("#batch-progress")).to_contain_text("Finished")
    events = [json.loads(line) for line in context.runner.log_file(job).read_text().splitlines() if line[:1] == "{"]
    assert [event["there"] for event in events if event["event"] == "planned"] == [0, 3]
    assert len(list(out.glob("*.png"))) == 2
    expect(pictures.locator(".grid .mark").first).to_have_text("★★★")

    pictures.get_by_role("button", name="Restore 1").click()
    expect(pictures.locator(".grid button")).to_have_count(3)
    expect(chip(page, "rejected")).to_have_text("Rejected1")
    assert len(list(out.glob("*.png"))) == 3


@pytest.mark.parametrize("width", [1440, 420])
def test_pictures_of_a_batch_fit_the_window_and_can_be_reached(
    context: Context, open_page: Callable[[], Page], width: int
) -> None:
    a_batch(context, 5)
    page = show(open_page())
    page.set_viewport_size({"width": width, "height": 900})
    paste(page, rows(2))
    page.locator("#batch-pictures .grid button").first.click()
    for key in ("k", "5", "ArrowRight", "x"):
        page.keyboard.press(key)
    expect(chip(page, "rejected")).to_have_text("Rejected1")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    unnamed = page.locator("#batch-pictures button").evaluate_all(
        "buttons => buttons.filter(one => !one.getAttribute('aria-label') && !one.textContent.trim()).length"
    )
    assert unnamed == 0


def test_a_batchs_pictures_are_kept_rejected_and_rated_full_screen(
    open_page: Callable[[], Page], context: Context
) -> None:
    """What is said there is on disk, in the list beneath, and taken back by the same key; the next comes by itself."""
    a_batch(context, 4)
    page = show(open_page())
    grid, judged = page.locator("#batch-pictures .grid .thumbnail-item"), page.locator(".view-judge")
    expect(grid).to_have_count(4)
    enlarge(page, grid.first)
    expect(judged).to_be_visible()
    page.keyboard.press("k")
    at(page, "2 of 4")
    judged.get_by_role("button", name="Reject").click()
    at(page, "3 of 4")
    page.keyboard.press("4")
    at(page, "3 of 4")  # a rated one stays to be looked at
    expect(judged.locator("[data-rating][aria-pressed=true]")).to_have_count(4)
    expect(chip(page, "rejected").locator("b")).to_have_text("1")
    page.keyboard.press("End")
    page.keyboard.press("x")
    at(page, "4 of 4")  # and so does the last
    expect(judged.locator("[data-verdict=rejected]")).to_have_attribute("aria-pressed", "true")
    expect(chip(page, "unrated").locator("b")).to_have_text("0")

    # A second press takes it back, on a picture that is gone back to.
    page.keyboard.press("x")
    expect(judged.locator("[data-verdict=rejected]")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Home")
    at(page, "1 of 4")
    expect(judged.locator("[data-verdict=kept]")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("k")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("0")
    expect(chip(page, "unrated").locator("b")).to_have_text("4")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    # The list has them too, with the one that was seen last chosen.
    expect(chip(page, "kept").locator("b")).to_have_text("1")
    expect(page.locator("#batch-pictures .grid [data-verdict=kept]")).to_have_count(1)
    noted = item_notes.read(Shelf(context).notes, "pictures")
    assert [note.verdict for note in noted.values() if note.verdict] == ["kept"]
    page.locator("#batch-pictures .grid [data-verdict=kept]").click()
    page.keyboard.press("k")
    expect(chip(page, "unrated").locator("b")).to_have_text("4")

    # Where nothing is judged, it isn't offered.
    page.get_by_role("tab", name="Library").click()
    page.locator("#library-kind").get_by_text("Pictures", exact=True).click()
    enlarge(page, page.locator("#library-cards .card").first)
    expect(judged).to_be_hidden()
