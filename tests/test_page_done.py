"""What the browser says outside the page: the window's title, a notice and a sound, and how seldom it asks for that.

Pages are put behind another for real. A headless browser hides none of its pages, so that `document.hidden` is set by
hand where it matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
import tomli_w

from app import scripts, tabs, ui
from app.change_polling import News
from app.context import Context
from app.tabs import train
from tests import plain
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM, launch
from trainer import presets, session

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]

# Writes down what is sounded and shown, and lets it be.
WATCH = """
window.__notices = []; window.__tones = []; window.__asked = 0;
window.Notification = class extends Notification {
  constructor(title, options) { super(title, options); window.__notices.push([title, options.body]); }
  static requestPermission() { window.__asked++; return super.requestPermission(); }
};
const start = OscillatorNode.prototype.start;
OscillatorNode.prototype.start = function (...when) {
  window.__tones.push([this.frequency.value, this.context.state]);
  return start.apply(this, when);
};
"""
HIDE = """is_hidden => {
  Object.defineProperty(document, 'hidden', {get: () => is_hidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def behind(page: Page) -> Page:
    """Another page in front of this one, which nobody looks at then."""
    page.context.new_cdp_session(page).send("Emulation.setFocusEmulationEnabled", {"enabled": False})
    other = page.context.new_page()
    other.bring_to_front()
    page.wait_for_function("!document.hasFocus()")
    return other


class Told:
    """A page that is told what a test says of jobs."""

    def __init__(self) -> None:
        self.doing: dict[str, Any] = {"busy": False, "running": None, "ended": []}
        news = News(lambda request: self.doing)
        with gr.Blocks(title="Velatura") as self.page:
            gr.HTML("<button>Tell</button>", js_on_load=scripts.read("done_notice.js"), elem_id="tell")
            news.listen("always", lambda request: 0, ui.Refresh(lambda: None, [], []))
            news.draw()


@pytest.fixture
def told(browser: Browser) -> Iterator[tuple[Told, Page]]:
    made = Told()
    address = ui.launch(made.page, server_name="127.0.0.1")
    context = browser.new_context()
    context.grant_permissions(["notifications"], origin=address.rstrip("/"))
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(address)
    page.locator("#tell button[aria-pressed]").wait_for()
    yield made, page
    context.close()
    made.page.close()


def ended(name: str, at: float, failed: bool = False) -> dict[str, Any]:
    return {"name": name, "at": at, "failed": failed}


def test_the_title_says_how_far_it_is_and_the_end_until_somebody_looks(told: tuple[Told, Page]) -> None:
    made, page = told
    expect(page).to_have_title("Velatura")
    made.doing = {"busy": True, "running": {"name": HOSTILE, "percent": 37}, "ended": [ended("old", 1)]}
    expect(page).to_have_title(f"37 % {HOSTILE} - Velatura")
    made.doing = {"busy": False, "running": None, "ended": [ended("seen", 2), ended("old", 1)]}
    expect(page).to_have_title("Velatura")  # whoever looks at the page sees it there
    other = behind(page)
    made.doing = {"busy": False, "running": None, "ended": [ended(HOSTILE, 3), ended("seen", 2)]}
    expect(page).to_have_title(f"{HOSTILE} is done - Velatura")
    made.doing = {"busy": True, "running": {"name": "b", "percent": 4}, "ended": [ended("a", 4, True), ended("x", 3)]}
    expect(page).to_have_title("4 % b · a failed - Velatura")
    other.close()
    page.bring_to_front()
    expect(page).to_have_title("4 % b - Velatura")
    assert page.evaluate("[window.__notices, window.__tones, window.__asked, window.__owned ?? 0]") == [[], [], 0, 0]


def test_a_notice_and_a_sound_come_once_they_were_asked_for(told: tuple[Told, Page]) -> None:
    made, page = told
    control = page.locator("#tell button")
    expect(control).to_have_attribute("aria-pressed", "false")
    control.click()
    expect(control).to_have_attribute("aria-pressed", "true")
    page.wait_for_function("window.__tones.length == 2")  # as it will sound
    made.doing = {"busy": False, "running": None, "ended": [ended("seen", 1)]}
    page.wait_for_timeout(2500)
    assert page.evaluate("window.__tones.length") == 2, "somebody looks"

    other = behind(page)
    made.doing = {"busy": False, "running": None, "ended": [ended(HOSTILE, 2), ended("seen", 1)]}
    page.wait_for_function("window.__tones.length == 4")
    assert page.evaluate("window.__tones") == [[660, "running"], [880, "running"]] * 2
    made.doing = {"busy": False, "running": None, "ended": [ended("b", 3, True)]}
    page.wait_for_function("window.__tones.length == 6")
    assert page.evaluate("window.__tones.slice(4).map(([pitch]) => pitch)") == [660, 440]
    assert page.evaluate("Notification.permission") == "granted"
    assert page.evaluate("window.__notices") == [["Velatura", f"{HOSTILE} is done"], ["Velatura", "b failed"]]

    # Kept for this browser, off again when it is pressed again.
    other.close()
    page.reload()
    expect(control).to_have_attribute("aria-pressed", "true")
    control.click()
    expect(control).to_have_attribute("aria-pressed", "false")
    behind(page)
    made.doing = {"busy": False, "running": None, "ended": [ended("c", 4)]}
    expect(page).to_have_title("c is done - Velatura")
    assert page.evaluate("window.__notices") == [] and page.evaluate("window.__tones") == []


def test_of_two_pages_of_a_browser_one_tells(told: tuple[Told, Page]) -> None:
    made, page = told
    page.locator("#tell button").click()
    page.wait_for_function("window.__tones.length == 2")
    twin = page.context.new_page()
    twin.goto(page.url)
    expect(twin.locator("#tell button")).to_have_attribute("aria-pressed", "true")
    twin.context.new_cdp_session(twin).send("Emulation.setFocusEmulationEnabled", {"enabled": False})
    behind(page)
    made.doing = {"busy": False, "running": None, "ended": [ended("a", 5)]}
    for each in (page, twin):
        expect(each).to_have_title("a is done - Velatura")
    assert sum(each.evaluate("window.__notices.length") for each in (page, twin)) == 1


def test_a_page_that_nobody_sees_asks_seldom_while_a_job_is_at_work_and_never_while_none_is(
    told: tuple[Told, Page],
) -> None:
    made, page = told
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(request.url)

    page.wait_for_timeout(2500)  # long enough to be sure that nothing is at work
    page.evaluate(HIDE, True)
    page.wait_for_timeout(1500)
    page.on("request", note)
    made.doing = {"busy": True, "running": {"name": "a", "percent": 5}, "ended": []}
    page.wait_for_timeout(17_000)
    assert asked == [], "it did not know of the job, and asks for nothing"

    page.evaluate(HIDE, False)
    expect(page).to_have_title("5 % a - Velatura")
    page.evaluate(HIDE, True)
    page.wait_for_timeout(1500)
    asked.clear()
    made.doing = {"busy": False, "running": None, "ended": [ended("a", 1)]}
    page.wait_for_timeout(10_000)
    assert asked == []
    expect(page).to_have_title("a is done - Velatura", timeout=8_000)
    assert len(asked) == 1
    page.wait_for_timeout(33_000)
    assert len(asked) == 2, "once more, as another job may have followed, and then no more"


# The whole page.


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train])
    made = ui.open_workspace(tmp_path / "workspace")
    yield made
    made.runner.halt()


def test_a_real_training_is_followed_in_the_title_to_its_end(
    context: Context, browser: Browser, tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    made, address = launch(context)
    opened = browser.new_context()
    opened.add_init_script(WATCH)
    page = opened.new_page()
    page.set_default_timeout(120_000)
    page.goto(address)
    control = page.get_by_role("button", name="Tell me when done", exact=True)
    control.click()
    page.wait_for_function("window.__tones.length == 2")
    behind(page)

    values = {
        "base": str(tiny), "resolution_px": 32, "batch_size": 2, "preview_every_steps": 0, "learning_rate": 1e-2,
        "data.folder": str(draw_dots(tmp_path / "dots", "dot, a {colour} one", num=5, wider_px=30)), "max_steps": 300,
    }  # fmt: skip
    config = session.absolute(presets.load(plain.CHARACTER, values))
    context.runner.submit("cat", tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    context.runner.start()
    page.wait_for_function("/^[1-9]\\d? % cat - Velatura$/.test(document.title)")
    page.wait_for_function("document.title === 'cat is done - Velatura'")
    page.wait_for_function("window.__tones.length == 4")
    opened.close()
    made.close()
