"""The fifteen harms that a first-time artist met on the page, by number, each with the browser test that holds it off.

1  pictures without a caption were dropped quietly
   test_page_train::test_pictures_that_will_not_train_are_counted_before_a_start_and_a_button_brings_them_in
2  Train did not follow the dataset chosen in Dataset
   test_page_kept::test_the_form_the_tab_and_the_dataset_outlive_a_reload_and_a_killed_server
3  a preset whose base is not here changed the name, not the form, and could be started
   test_page_train::test_a_preset_whose_base_is_not_here_says_so_and_changes_the_whole_form_or_offers_its_like
4  Render, picture and progress were never on screen together
   test_page_desk::test_picture_progress_buttons_and_sliders_are_on_screen_together
5  an error stood at the wrong field, and problems came one at a time
   test_page_train::test_all_that_is_wrong_is_said_at_once_each_on_its_own_field_and_cured_by_its_button
6  a caption typed and not saved was lost on the next click
   test_page_dataset::test_a_typed_caption_is_saved_and_never_lost_on_the_next_click
7  a job that must fail was queued
   test_page_train::test_nothing_that_must_fail_is_queued
8  there were no keys, no edits of many captions, no filters, no automatic captions and no way to delete
   test_page_dataset::test_keys_walk_save_and_undo_and_never_fire_into_what_is_typed
   test_page_dataset::test_bulk_edits_say_what_changed_and_are_one_step
   test_page_dataset::test_five_hundred_pictures_are_filtered_in_half_a_second
   test_page_dataset::test_deleted_pictures_lie_in_the_trash_and_come_back
   test_page_captions::test_captions_come_as_they_are_written_and_one_undo_takes_them_back
9  nothing could be deleted, renamed, rated or noted
   test_page_library::test_cards_are_pictures_and_what_is_said_of_them_stays
   test_page_library::test_the_trash_gives_back_and_asks_twice
10 a region offered a mask and refused every file
   test_page_desk::test_a_region_can_be_a_mask_picture
11 a kohya config gave nine errors
   test_page_library::test_what_is_dropped_opens_where_it_belongs
12 form, tab and job were lost on reload
   test_page_kept::test_the_form_the_tab_and_the_dataset_outlive_a_reload_and_a_killed_server
13 a sheet promised a recipe, and its cells couldn't be clicked
   test_page_desk::test_a_cell_of_a_sheet_gives_its_stack_and_a_sheet_promises_no_recipe
14 advice spoke the command line's language
   test_page_harms::test_no_word_of_the_command_line_is_on_the_page
15 "Training, step 0" for tens of seconds
   test_page_harms::test_what_is_done_before_the_first_step_is_named
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import browsing, test_browser
from tests.page_fixtures import WIDE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, test_browser.pytestmark, pytest.mark.timeout(600)]
expect = test_browser.playwright_api.expect
HERE = Path(__file__).parent
# Words that only a command, a settings file or a log has.
_COMMAND = re.compile(
    r"--\w[\w-]+|\bvelatura \w+|\bpip install\b|\b[a-z_]+\.[a-z_.]+\s?=\s?\S|\btoml\.|\b\w+\.\w+\(|Traceback|"
    r"\bNone\b|\bNaN\b"
)
# Every text that is seen, and what a hovered or empty field would say.
_TEXTS = """() => [...document.querySelectorAll('#tabs, .top, .start')].map(one => one.innerText)
  .concat([...document.querySelectorAll('[placeholder], [title]')].map(one => `${one.placeholder || ''} ${one.title}`))
  .join('\\n')"""
# What the progress says, each time it says something else, from now on.
_HEAR = """() => {
  window.__said = [];
  const hear = () => {
    const text = document.querySelector('#progress .progress')?.innerText.replace(/\\s+/g, ' ');
    if (text && text !== window.__said.at(-1)) window.__said.push(text);
  };
  new MutationObserver(hear).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[test_browser.Server]:
    made = test_browser.Server(tmp_path_factory.mktemp("page") / "workspace")
    browsing.fill_workspace(made.workspace)
    made.start()
    yield made
    made.kill()
    for process in made.trainers():
        process.kill()


@pytest.fixture(scope="module")
def opened(server: test_browser.Server, chromium: Browser) -> Page:
    page = chromium.new_page(viewport=WIDE)
    page.set_default_timeout(60_000)
    page.goto(server.address)
    return page


def test_each_harm_has_a_test_that_exists() -> None:
    text = __doc__ or ""
    assert re.findall(r"^(\d+) ", text, re.MULTILINE) == [str(number) for number in range(1, 16)]
    for file, name in re.findall(r"(test_\w+)::(test_\w+)", text):
        names = {
            node.name for node in ast.parse((HERE / f"{file}.py").read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in names, f"{file}::{name}"


@pytest.mark.parametrize("title", browsing.TABS)
def test_no_word_of_the_command_line_is_on_the_page(opened: Page, title: str) -> None:
    """Harm 14, over every tab with all of it unfolded, and with something to mend."""
    browsing.open_tab(opened, title)
    if title == "Train":
        opened.locator("#train-dataset input").click()
        opened.get_by_role("option", name="mine", exact=True).last.click()
        test_browser.fill(opened, "field-learning_rate", "50")
        expect(opened.locator("#forecast")).to_contain_text("to mend")
    browsing.unfold_all(opened)
    found = sorted({match.group() for match in _COMMAND.finditer(opened.evaluate(_TEXTS))})
    if title == "Train":
        test_browser.fill(opened, "field-learning_rate", "0.001")
    assert not found, found


def test_what_is_done_before_the_first_step_is_named(opened: Page, server: test_browser.Server) -> None:
    """Harm 15: from the click to the first step the progress says what is done, and never counts a step 0."""
    browsing.open_tab(opened, "Dataset")
    opened.locator("#copy-sample").click()
    expect(opened.locator("#dataset-summary").locator("textarea, input").first).to_have_value(re.compile("44 pictures"))
    browsing.open_tab(opened, "Train")
    test_browser.fill(opened, "field-max_steps", "3")
    test_browser.fill(opened, "field-batch_size", "2")
    expect(opened.locator("#start-training")).to_be_enabled()
    opened.evaluate(_HEAR)
    opened.locator("#start-training").click()
    test_browser.see(opened, "Finished", timeout_s=300)
    said = opened.evaluate("window.__said")
    assert any(re.search("Starting|Loading|Preparing|Reading", text) for text in said), said
    assert not [text for text in said if re.search(r"^(Training|Queued).*step 0", text)], said
