"""The Dataset tab in a real browser: captions that are never lost, keys, filters, bulk edits, the trash, the cures."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM, WIDE
from tests.test_browser import Server, fill, playwright_api, unfold

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]
expect = playwright_api.expect


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("page") / "workspace")
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def opened(server: Server, chromium: Browser) -> Page:
    page = chromium.new_page(viewport=WIDE)
    page.set_default_timeout(60_000)
    page.goto(server.address)
    return page


@pytest.fixture
def choose(opened: Page, server: Server) -> Iterator[Callable[..., Path]]:
    """`choose("mine", captions)`: a set of small pictures `00.png` ... on the disk, chosen on the page."""

    def make(name: str, captions: list[str], prepare: Callable[[Path], object] | None = None) -> Path:
        folder = server.workspace / "datasets" / name
        folder.mkdir()
        for number, caption in enumerate(captions):
            image = Image.new("RGB", (96, 96), "white")
            draw = ImageDraw.Draw(image)
            for bit in range(9):  # no picture is like another
                if number >> bit & 1:
                    draw.rectangle((bit % 3 * 32, bit // 3 * 32, bit % 3 * 32 + 31, bit // 3 * 32 + 31), fill="navy")
            draw.line((0, number % 96, 95, 95 - number % 96), fill="red", width=3)
            image.save(folder / f"{number:02}.png")
            if caption:
                (folder / f"{number:02}.txt").write_text(f"{caption}\n")
        if prepare:
            prepare(folder)
        opened.goto(server.address)
        opened.get_by_role("tab", name="Dataset").click()
        opened.locator("#dataset input").click()
        opened.get_by_role("option", name=name, exact=True).click()
        expect(opened.locator("#dataset-gallery .card")).to_have_count(len(captions))
        return folder

    yield make
    assert opened.evaluate("window.__owned") is None
    assert "Traceback" not in server.log(), server.log()


def card(page: Page, number: int) -> None:
    """Open a picture, and wait until its caption's box is its own."""
    page.locator("#dataset-gallery .thumbnail-item").nth(number).click()
    expect(page.locator("#caption")).to_contain_text(f"{number:02}.png")


def box(page: Page) -> str:
    return page.locator("#caption textarea").input_value()


def shown(page: Page) -> int:
    return page.locator("#dataset-gallery .card:visible").count()


def says(path: Path, text: str, timeout_s: float = 30) -> None:
    """Wait until the file says that."""
    end = time.monotonic() + timeout_s
    while not path.is_file() or path.read_text().strip() != text:
        assert time.monotonic() < end, path.read_text() if path.is_file() else f"no {path.name}"
        time.sleep(0.05)


def test_a_typed_caption_is_saved_and_never_lost_on_the_next_click(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 6: a caption typed and not saved was lost on the next click."""
    folder = choose("typed", ["one", "two", "three"])
    card(opened, 0)
    opened.locator("#caption textarea").fill("typed and left alone")
    says(folder / "00.txt", "typed and left alone")
    opened.locator("#caption textarea").fill("typed, then another picture")
    card(opened, 1)
    says(folder / "00.txt", "typed, then another picture")
    assert box(opened) == "two" and (folder / "01.txt").read_text() == "two\n"
    opened.locator("#caption textarea").fill("typed, then another tab")
    opened.get_by_role("tab", name="Library").click()
    says(folder / "01.txt", "typed, then another tab")
    assert (folder / "02.txt").read_text() == "three\n"


def test_each_edit_is_undone_alone_and_the_history_outlives_a_reload(
    opened: Page, choose: Callable[..., Path], server: Server
) -> None:
    """Harm 6: undo was for the whole set; each edit is one step now, also after a reload."""
    folder = choose("undone", ["one", "two"])
    for number, text in ((0, "first"), (1, "second"), (0, "third")):
        card(opened, number)
        opened.locator("#caption textarea").fill(text)
        opened.locator("#save-caption").click()
        says(folder / f"{number:02}.txt", text)
    opened.reload()
    expect(opened.locator("#dataset-gallery .card")).to_have_count(2)
    opened.locator("#undo-caption").click()
    says(folder / "00.txt", "first")
    unfold(opened, "Edits")
    expect(opened.locator("#dataset-history li")).to_have_count(3)
    opened.locator("#dataset-history li").last.get_by_role("button").click()  # the oldest, of the first picture
    says(folder / "00.txt", "one")
    assert (folder / "01.txt").read_text() == "second\n"


def test_keys_walk_save_and_undo_and_never_fire_into_what_is_typed(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 8: there was no captioning workflow."""
    folder = choose("keys", ["one", "two", "three"])
    card(opened, 0)
    opened.keyboard.press("ArrowRight")
    expect(opened.locator("#caption")).to_contain_text("01.png")
    opened.keyboard.press("ArrowLeft")
    expect(opened.locator("#caption")).to_contain_text("00.png")
    opened.keyboard.press("e")
    expect(opened.locator("#caption textarea")).to_be_focused()
    opened.keyboard.press("End")
    opened.keyboard.type(", jkxe")  # keys elsewhere, letters here
    assert box(opened) == "one, jkxe"
    opened.keyboard.press("Control+Enter")
    says(folder / "00.txt", "one, jkxe")
    expect(opened.locator("#caption")).to_contain_text("01.png")
    opened.locator("#check-trigger").locator("input, textarea").first.fill("mok")
    opened.keyboard.press("Delete")
    opened.keyboard.press("ArrowRight")
    assert (folder / "01.png").exists()
    opened.keyboard.press("Alt+n")
    expect(opened.locator("#caption")).to_contain_text("02.png")
    opened.locator("#caption textarea").blur()
    opened.locator("#dataset-gallery .thumbnail-item").nth(2).focus()
    opened.keyboard.press("Delete")
    expect(opened.locator("#dataset-gallery .card")).to_have_count(2)
    assert not (folder / "02.png").exists() and not (folder / "02.txt").exists()
    opened.keyboard.press("Control+z")
    expect(opened.locator("#dataset-gallery .card")).to_have_count(3)
    assert (folder / "02.png").exists() and (folder / "02.txt").read_text() == "three\n"


def test_bulk_edits_say_what_changed_and_are_one_step(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 8: nothing could be done to many captions at once."""
    folder = choose("bulk", ["a cat, red", "a dog", "a CAT"])
    unfold(opened, "Edit many captions")
    fill(opened, "bulk-first", "cat")
    fill(opened, "bulk-second", "fox")
    opened.locator("#bulk-apply").click()
    expect(opened.get_by_text("Replace: 2 of 3 captions changed.")).to_be_visible()
    says(folder / "02.txt", "a fox")

    # To those that are marked alone.
    opened.locator("#dataset-gallery .card input").nth(1).check()
    fill(opened, "check-trigger", "mokka")
    opened.locator("#bulk-operation input").click()
    opened.get_by_role("option", name="Add trigger").click()
    expect(opened.locator("#bulk-first")).to_be_hidden()
    opened.locator("#bulk-apply").click()
    says(folder / "01.txt", "mokka, a dog")
    assert (folder / "00.txt").read_text() == "a fox, red\n"
    for texts in (["a fox, red", "a dog", "a fox"], ["a cat, red", "a dog", "a CAT"]):
        opened.locator("#undo-caption").click()
        for number, text in enumerate(texts):
            says(folder / f"{number:02}.txt", text)


def test_the_tab_says_how_many_will_train_and_cures_it(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 1: pictures without a caption were dropped quietly."""

    def damage(folder: Path) -> None:
        (folder / "04.png").write_bytes(b"no picture")

    folder = choose("cured", ["one", "", "", "", "four"], damage)
    line = opened.locator("#dataset-summary textarea, #dataset-summary input").first
    expect(line).to_have_value(re.compile("^1 of 5 pictures will train"))
    bare = opened.locator(".reason").filter(has_text="3 have no caption")
    bare.get_by_role("button", name="Show them").click()
    assert shown(opened) == 3
    fill(opened, "check-trigger", "mokka")
    bare.get_by_role("button", name="Caption with").click()
    expect(line).to_have_value(re.compile("^4 of 5 pictures will train"))
    assert (folder / "02.txt").read_text() == "mokka\n"
    opened.locator(".reason").filter(has_text="1 does not open").get_by_role("button", name="Delete").click()
    expect(line).to_have_value("4 of 4 pictures will train, all with captions.")
    expect(opened.locator(".reason")).to_have_count(0)


def test_deleted_pictures_lie_in_the_trash_and_come_back(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 9: nothing could be deleted."""
    folder = choose("trash", ["one", "two", "three"])
    for number in (0, 2):
        opened.locator("#dataset-gallery .card input").nth(number).check()
    opened.get_by_role("button", name="Delete marked").click()
    expect(opened.locator("#dataset-gallery .card")).to_have_count(1)
    assert sorted(path.name for path in folder.glob("[0-9]*")) == ["01.png", "01.txt"]
    opened.locator("#dataset-gallery .chip").filter(has_text="Trash").click()
    expect(opened.locator("#dataset-gallery .card")).to_have_count(2)
    opened.locator("#dataset-gallery .card input").first.check()
    opened.get_by_role("button", name="Restore", exact=True).click()
    expect(opened.locator("#dataset-gallery .card")).to_have_count(1)  # one is left in the trash
    opened.locator("#dataset-gallery .chip[data-key='kind all']").click()
    expect(opened.locator("#dataset-gallery .card")).to_have_count(2)
    assert (folder / "00.txt").read_text() == "one\n"


def test_cards_of_the_check_select_their_pictures(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 14 and 8: the check was a text that named files."""

    def copy(folder: Path) -> None:
        (folder / "01.png").write_bytes((folder / "00.png").read_bytes())

    folder = choose("checked", ["one", "two", "three"], copy)
    unfold(opened, "Check before training")
    opened.locator("#check-dataset").click()
    copies = opened.locator("#findings .finding").filter(has_text="Copies")
    copies.get_by_role("button", name="Show").click()
    assert shown(opened) == 2
    copies.get_by_role("button", name="Delete copies").click()
    expect(opened.locator("#dataset-gallery .chip").filter(has_text="Trash")).to_contain_text("1")
    assert (folder / "00.png").exists() and not (folder / "01.png").exists()


def test_five_hundred_pictures_are_filtered_in_half_a_second(opened: Page, choose: Callable[..., Path]) -> None:
    """Harm 8: nothing could be filtered."""
    choose("many", ["" if number % 5 == 0 else f"tag{number % 7}, a thing {number}" for number in range(500)])
    measured = opened.evaluate(
        """() => {
          const root = document.querySelector('#dataset-gallery'), took = [];
          const visible = () => [...root.querySelectorAll('.card')].filter(card => !card.hidden).length;
          const chips = () => [...root.querySelectorAll('.chip')];
          const press = text => chips().find(chip => chip.textContent.startsWith(text)).click();
          for (const text of ['No caption', 'All', 'tag3', 'tag3']) {
            const start = performance.now();
            press(text);
            const count = visible();
            root.offsetHeight;
            took.push([text, count, performance.now() - start]);
          }
          return took;
        }"""
    )
    print(measured)
    assert [count for _, count, _ in measured] == [100, 500, 57, 500]
    assert all(milliseconds < 500 for _, _, milliseconds in measured), measured


def test_an_edit_made_outside_is_seen_and_not_written_over(opened: Page, choose: Callable[..., Path]) -> None:
    """The files beside the pictures stay the truth."""
    folder = choose("outside", ["one", "two"])
    card(opened, 0)
    (folder / "00.txt").write_text("written elsewhere\n")
    card(opened, 1)
    assert (folder / "00.txt").read_text() == "written elsewhere\n"
    (folder / "01.txt").write_text("also elsewhere\n")
    opened.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(opened.locator("#caption textarea")).to_have_value("also elsewhere")
    expect(opened.locator("#dataset-gallery")).to_contain_text("written elsewhere")


def test_hostile_captions_tags_and_names_are_only_text(opened: Page, choose: Callable[..., Path]) -> None:
    def rename(folder: Path) -> None:
        (folder / "00.png").rename(folder / f"{HOSTILE.replace('/', '')}.png")
        (folder / "00.txt").rename(folder / f"{HOSTILE.replace('/', '')}.txt")

    choose("hostile", [f"{HOSTILE}, ${{alert(1)}}, {{{{value}}}}", HOSTILE], rename)
    unfold(opened, "Check before training")
    fill(opened, "check-trigger", HOSTILE)
    opened.locator("#check-dataset").click()
    opened.locator("#findings .finding").first.wait_for()
    opened.locator("#dataset-gallery .thumbnail-item").last.click()  # "<" comes after "0"
    expect(opened.locator("#caption textarea")).to_be_enabled()
    opened.locator("#caption textarea").press("End")
    opened.locator("#caption textarea").type("<b>x</b>")
    opened.locator("#save-caption").click()
    unfold(opened, "Edits")
    expect(opened.locator("#dataset-history")).to_contain_text("Caption of <img")
    assert opened.locator("#dataset-gallery .card img[src=x], #dataset-history img, #findings img").count() == 0


def test_a_set_is_exported_as_a_zip(opened: Page, choose: Callable[..., Path]) -> None:
    choose("packed", ["one", "two"])
    with opened.expect_download() as waiting:
        opened.locator("#export-dataset").click()
    assert waiting.value.suggested_filename == "packed.zip"
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert sorted(archive.namelist()) == ["00.png", "00.txt", "01.png", "01.txt"]


@pytest.mark.parametrize("width", [1440, 1024, 420])
def test_every_control_has_a_name_and_nothing_scrolls_sideways(
    opened: Page, server: Server, width: int, tmp_path: Path
) -> None:
    opened.set_viewport_size({"width": width, "height": 900})
    opened.goto(server.address)
    opened.locator("#dataset-gallery .card").first.wait_for()
    assert opened.evaluate("document.documentElement.scrollWidth") <= width + 1
    nameless = opened.evaluate(
        """() => {
          const named = one => one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length;
          const controls = '#dataset-gallery :is(button, input), #dataset-editor :is(button, textarea)';
          return [...document.querySelectorAll(controls)].filter(one => one.offsetParent && !named(one))
            .map(one => one.outerHTML.slice(0, 200));
        }"""
    )
    # What brings in more pictures stands below those that are here where there is no room beside them.
    top = opened.locator("#dataset-gallery .card").first.evaluate("card => card.getBoundingClientRect().top + scrollY")
    upload = opened.locator("#dataset-files").evaluate("one => one.getBoundingClientRect().top + scrollY")
    assert top < 900 - 96 and (width > 420 or upload > top), (top, upload)
    opened.set_viewport_size({"width": 1440, "height": 900})
    assert not nameless, json.dumps(nameless)
