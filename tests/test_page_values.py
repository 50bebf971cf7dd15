"""What the page's fields hold reaches the events that ask for many of them, and a page that nothing happens to is idle.

In a real browser, against Gradio's own way of sending each field.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import ui
from app.context import Refresh
from app.page_values import PageValues
from tests import browsing
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_page_train import expect

pytestmark = NEEDS_CHROMIUM


class Small:
    """A page of every kind of field, some folded, with an event that reads them one by one and one that reads all."""

    def __init__(self) -> None:
        self.sent: list[dict[Any, Any]] = []
        self.kept: list[dict[str, Any]] = []
        self.looks: list[dict[Any, Any]] = []
        self.others: list[dict[Any, Any]] = []
        with gr.Blocks() as self.page:
            with gr.Tabs(), gr.Tab("One", elem_id="tab-one"):
                self.text = gr.Textbox("a", elem_id="text")
                with gr.Accordion("Folded", open=False):
                    self.folded = gr.Number(3, elem_id="folded", precision=0)
                    self.truth = gr.Checkbox(True, elem_id="truth")
                    others = [gr.Slider(0, 1, 0.5, label=f"s{number}") for number in range(10)]
                self.choice = gr.Dropdown(["x", "y"], value="y", elem_id="choice")
                self.several = gr.CheckboxGroup(["u", "v"], value=["v"])
                self.few = gr.Button("few", elem_id="few")
                self.many = gr.Button("many", elem_id="many")
                self.most = gr.Button("most", elem_id="most")
                self.fill = gr.Button("fill", elem_id="fill")
            self.fields = [self.text, self.folded, self.truth, *others, self.choice, self.several]
            self.few.click(lambda *values: self.sent.append(dict(zip(self.fields, values, strict=True))), self.fields)
            self.many.click(self.sent.append, {*self.fields})
            self.most.click(self.others.append, {*self.fields} - {self.text})
            self.fill.click(
                lambda: {self.folded: 7, self.truth: False, self.text: "filled"}, None, self.fields
            ).then(self.sent.append, {*self.fields})  # fmt: skip
            values = PageValues(self.page, {"one": self.fields}, self.fields)
            values.draw(self._keep, [self.choice], {"one": Refresh(self.looks.append, self.fields, [])})

    def _keep(self, values: Any, request: gr.Request) -> None:
        assert request.headers
        self.kept.append({field.elem_id: value for field, value in values.items()})


@pytest.fixture
def small(browser: Any) -> Iterator[tuple[Small, Any]]:
    made = Small()
    address = ui.launch(made.page, server_name="127.0.0.1")
    page = browser.new_page()
    page.goto(address)
    page.locator("#many").wait_for()
    page.wait_for_function("!!window.velaturaPack")  # the script comes after the parts; tests put others in its place
    yield made, page
    page.close()
    made.page.close()


def sent(made: Small, page: Any, button: str) -> dict[Any, Any]:
    before = len(made.sent)
    page.locator(f"#{button}").click()
    for _ in range(300):
        if len(made.sent) > before:
            return made.sent[-1]
        page.wait_for_timeout(100)
    raise AssertionError(f"{button} sent nothing")


def test_many_fields_reach_an_event_as_gradio_itself_sends_them(small: tuple[Small, Any]) -> None:
    """As drawn, as typed at the very moment of the press, and as the server filled those that are folded."""
    made, page = small
    assert sent(made, page, "many") == sent(made, page, "few")
    page.locator("#text textarea").fill("written")
    values = sent(made, page, "many")
    assert values[made.text] == "written" and values == sent(made, page, "few")
    values = sent(made, page, "fill")  # its `then` reads what was filled a moment before
    assert (values[made.folded], values[made.truth], values[made.text]) == (7, False, "filled")
    assert type(values[made.folded]) is int and values == sent(made, page, "few")


def test_a_changed_field_is_kept_and_looked_at_once_and_no_other_is(small: tuple[Small, Any]) -> None:
    made, page = small
    page.locator("#text textarea").fill("kept")
    for _ in range(100):
        if made.kept and made.looks:
            break
        page.wait_for_timeout(100)
    assert made.kept == [{"text": "kept"}] and [look[made.text] for look in made.looks] == ["kept"]
    page.mouse.click(5, 5)
    page.wait_for_timeout(2500)
    assert len(made.kept) == 1 and len(made.looks) == 1


def test_a_change_is_looked_at_though_another_event_gathers_it_first(small: tuple[Small, Any]) -> None:
    made, page = small
    page.evaluate(  # both at once, as a field does whose change shows and hides others
        """() => {
          const box = document.querySelector('#text textarea');
          box.value = 'both';
          box.dispatchEvent(new Event('input', {bubbles: true}));
          document.querySelector('#most').click();
        }"""
    )
    for _ in range(100):
        if made.looks and made.others:
            break
        page.wait_for_timeout(100)
    assert made.others and [look[made.text] for look in made.looks] == ["both"]


def test_a_press_before_the_script_is_there_is_not_lost(small: tuple[Small, Any]) -> None:
    made, page = small
    page.evaluate(
        """() => {
          const pack = window.velaturaPack;
          delete window.velaturaPack;
          setTimeout(() => { window.velaturaPack = pack; }, 1000);
        }"""
    )
    assert sent(made, page, "many") == sent(made, page, "few")


def test_a_change_is_kept_though_the_server_was_away_as_it_was_made(small: tuple[Small, Any]) -> None:
    made, page = small
    page.route("**/component_server/", lambda route: route.abort())
    page.locator("#text textarea").fill("kept")
    page.wait_for_timeout(1500)
    page.unroute("**/component_server/")
    for _ in range(100):
        if made.kept:
            break
        page.wait_for_timeout(100)
    browsing.taken()  # the browser says that it was not answered
    assert made.kept == [{"text": "kept"}]


def test_a_page_of_another_server_is_told_to_reload(small: tuple[Small, Any]) -> None:
    made, page = small
    page.evaluate("window.velaturaPack = async () => [{'1': 1}]")
    page.locator("#many").click()
    expect(page.get_by_text("The page is older than the server; reload it.")).to_be_visible()
    assert made.sent == []


def test_an_idle_page_asks_for_no_event_and_no_event_reads_many_fields(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event costs a browser much on a page of many parts; looks for news go past them."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace")
    made = ui.compose(context)
    assert max(len(event.inputs) for event in made.fns.values() if event.fn) <= 16
    for event in made.fns.values():  # a text box sends `input` for keys that write a letter alone
        for number, kind in event.targets:
            assert kind != "input" or not isinstance(made.blocks[number], gr.Textbox)
    address = ui.launch(made, server_name="127.0.0.1")
    page = browser.new_page()
    try:
        page.goto(address)
        page.get_by_role("tab", name="Train").click()
        page.wait_for_timeout(6000)
        events: list[str] = []
        page.on("request", lambda request: events.append(request.url))
        page.wait_for_timeout(5000)
        assert not [url for url in events if "component_server" not in url], events
        # Something happens.
        context.runner.submit("one", "", "rehearse")
        page.locator("#queue").get_by_text("one").wait_for(timeout=30_000)
    finally:
        page.close()
        made.close()
