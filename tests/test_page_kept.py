"""What a person set in the page is there again after a reload, in another tab, and after the server was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest

from app import browser_state, kept_fields
from tests import test_browser
from tests.browsing import come_back
from tests.test_browser import Server, copy_sample, fill, page, server  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.timeout(300)
expect = test_browser.playwright_api.expect
ID = "0123456789abcdef" * 2


def box(page: Page, elem_id: str) -> Any:  # noqa: F811
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def kept_file(server: Server) -> Path:  # noqa: F811
    (path,) = (server.workspace / "browsers").glob("*.json")
    return path


def wait_kept(page: Page, server: Server, text: str) -> None:  # noqa: F811
    """Until the server has it on its disk."""
    for _ in range(200):
        if list((server.workspace / "browsers").glob("*.json")) and text in kept_file(server).read_text():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{text} was not kept")


@test_browser.pytestmark
def test_the_form_the_tab_and_the_dataset_outlive_a_reload_and_a_killed_server(
    page: Page,  # noqa: F811
    server: Server,  # noqa: F811
) -> None:
    """Harms 12 and 2: form, tab and dataset were lost on reload; Train did not follow the dataset chosen in Dataset."""
    copy_sample(page)
    page.locator("#sample-set input").click()
    page.get_by_role("option", name="grey-cat").click()
    page.locator("#copy-sample").click()
    expect(box(page, "dataset")).to_have_value("grey-cat")
    page.get_by_role("tab", name="Stack").click()
    fill(page, "stack-prompt", "a red crab")
    page.get_by_role("tab", name="Train").click()
    expect(box(page, "train-dataset")).to_have_value("grey-cat")
    fill(page, "run-name", "my cat")
    fill(page, "field-max_steps", "77")
    wait_kept(page, server, "77")

    def is_back() -> None:
        expect(box(page, "run-name")).to_have_value("my cat")
        expect(box(page, "run-name")).to_be_visible()
        expect(box(page, "field-max_steps")).to_have_value("77")
        expect(box(page, "train-dataset")).to_have_value("grey-cat")
        page.get_by_role("tab", name="Stack").click()
        expect(box(page, "stack-prompt")).to_have_value("a red crab")
        wait_kept(page, server, '"tab": "stack"')
        page.get_by_role("tab", name="Train").click()
        wait_kept(page, server, '"tab": "train"')

    page.reload()
    is_back()
    page.goto("about:blank")
    server.kill()
    server.start()
    come_back(page, server.address)
    is_back()

    # Another tab of this browser changes one field; what this one changes then takes nothing back.
    assert page.context.browser is not None
    other = page.context.browser.new_context(storage_state=page.context.storage_state()).new_page()
    other.goto(server.address)
    expect(box(other, "field-max_steps")).to_have_value("77")
    fill(other, "field-max_steps", "55")
    wait_kept(page, server, "55")
    fill(page, "run-name", "my own cat")
    wait_kept(page, server, "my own cat")
    assert json.loads(kept_file(server).read_text())["train"]["field-max_steps"] == 55

    # A file that was tampered with brings nothing that the form would refuse.
    groups = json.loads(kept_file(server).read_text())
    groups["train"] |= {"preset": "../../etc", "field-max_steps": "many", "run-name": "x" * 5000}
    groups["page"] |= {"dataset": "../../runs"}
    kept_file(server).write_text(json.dumps(groups))
    other.reload()
    expect(box(other, "train-dataset")).to_have_value("grey-cat")
    expect(box(other, "run-name")).to_have_value("")
    assert "etc" not in box(other, "preset").input_value() and box(other, "field-max_steps").input_value() != "many"


def test_only_what_changed_is_written_and_a_hostile_file_holds_nothing(tmp_path: Path) -> None:
    states = browser_state.BrowserStates(tmp_path / "browsers")
    states.change(ID, "train", {"name": "one", "steps": 3})
    states.change(ID, "train", {"name": "two"})
    assert states.read(ID, "train") == {"name": "two", "steps": 3} and states.read(ID, "stack") == {}
    states.change(ID, "train", {"name": "x" * 2_000_000})
    assert states.read(ID, "train")["name"] == "two"
    states.change("", "train", {"name": "nobody's"})
    assert [path.name for path in (tmp_path / "browsers").iterdir()] == [f"{ID}.json"]
    for content in (b"[1]", b"{", b'{"train": {"name": {"a": 1}, "steps": NaN}}', b"[" * 100_000, b"\xff"):
        (tmp_path / "browsers" / f"{ID}.json").write_bytes(content)
        assert states.read(ID, "train") == {}, content[:20]


def test_the_browsers_longest_untouched_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_state, "_MOST_BROWSERS", 2)
    states = browser_state.BrowserStates(tmp_path)
    for number in range(5):
        states.change(f"{number:032x}", "page", {"tab": "train"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{3:032x}.json", f"{4:032x}.json"]


@pytest.mark.parametrize(
    "header", ["", None, "velatura_browser=../../x", f"velatura_browser={ID}0", "velatura_browser=\x00", "a" * 9000]
)
def test_an_id_that_is_not_ours_is_none(header: str | None) -> None:
    assert browser_state.id_in(header) == ""
    assert browser_state.id_in(f"other=1; velatura_browser={ID}") == ID


@pytest.mark.parametrize(
    ("component", "good", "bad"),
    [
        (lambda: gr.Textbox(max_length=5), "abc", "abcdef"),
        (lambda: gr.Slider(0, 2), 1.5, 3),
        (lambda: gr.Number(), 4, True),
        (lambda: gr.Number(), 4, float("nan")),
        (lambda: gr.Checkbox(), True, 1),
        (lambda: gr.Dropdown(["a", "b"]), "b", "c"),
        (lambda: gr.Dropdown([("A", "a")], multiselect=True), ["a"], ["a", "b"]),
        (lambda: gr.Radio(["a"]), "a", ["a"]),
    ],
)
def test_a_value_comes_back_if_its_field_would_take_it(component: Any, good: Any, bad: Any) -> None:
    field = component()
    assert kept_fields.fits(field, good) and not kept_fields.fits(field, bad)
