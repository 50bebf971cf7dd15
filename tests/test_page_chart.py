"""A look into the chart of losses in a real browser: by mouse, by keys, by buttons, and what stays of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app import tabs, ui
from app.context import Context
from app.tabs import train
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_chart_look import losses
from tests.test_page_runs import a_run, append
from trainer.events import Step

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=60_000)  # the suite's other files train beside this one
pytestmark = NEEDS_CHROMIUM


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train])
    made = ui.open_workspace(tmp_path / "workspace")
    a_run(made, "mine", losses(400), state="running")
    return made


def drag(page: Page, chart: Locator, start: float, end: float) -> None:
    """Drag across a chart, from one share of its plot to another."""
    svg = chart.locator("svg").first
    svg.scroll_into_view_if_needed()
    plot = svg.evaluate(
        """svg => { const at = x => new DOMPoint(x, 100).matrixTransform(svg.getScreenCTM());
        return [at(50).x, at(428).x, at(50).y]; }"""
    )
    places = [plot[0] + share * (plot[1] - plot[0]) for share in (start, end)]
    page.mouse.move(places[0], plot[2])
    page.mouse.down()
    page.mouse.move(sum(places) / 2, plot[2])
    expect(chart.locator("rect.stretch")).to_have_count(1)
    page.mouse.move(places[1], plot[2])
    page.mouse.up()
    expect(chart.locator("rect.stretch")).to_have_count(0)


def shown(chart: Locator) -> tuple[int, int]:
    figure = chart.locator("figure").first
    return int(figure.get_attribute("data-from") or -1), int(figure.get_attribute("data-to") or -1)


def sees(chart: Locator, first: int, last: int) -> None:
    figure = chart.locator(f'figure[data-from="{first}"][data-to="{last}"]')
    expect(figure.first).to_be_visible()


def test_a_stretch_is_dragged_out_and_outlasts_the_next_step_and_a_reload(
    context: Context, open_page: Callable[[], Page]
) -> None:
    page = open_page()
    chart = page.locator("#loss")
    sees(chart, 0, 400)
    drag(page, chart, 0.25, 0.5)
    expect(chart).to_contain_text(re.compile(r"Steps \d+ to \d+ of 400"))
    first, last = shown(chart)
    assert abs(first - 100) <= 2 and abs(last - 200) <= 2
    assert chart.locator(".zoomable").count() == 2  # the learning rate is of the same steps
    held = chart.locator("circle.held title").all_text_contents()
    assert held == [f"step {step}: {0.4 + 1 / step:.3g}" for step in range(50, 401, 50) if first <= step <= last]

    # The next steps come; what is looked at stays, and so it does over a reload.
    append(context, "mine", [Step(step, 0.3, 1e-4, 0.1, 0.5) for step in range(401, 421)])
    page.wait_for_timeout(4500)  # a look at what grows, and by when a field is kept
    sees(chart, first, last)
    page.reload()
    sees(page.locator("#loss"), first, last)
    expect(page.locator("#loss")).to_contain_text(f"Steps {first} to {last} of 420.")
    page.locator("#loss svg").first.dblclick(position={"x": 200, "y": 80})
    sees(page.locator("#loss"), 0, 420)
    expect(page.locator("#loss")).not_to_contain_text("Steps")


def test_keys_and_buttons_do_what_a_drag_does_and_the_focus_stays(
    context: Context, open_page: Callable[[], Page]
) -> None:
    page = open_page()
    chart = page.locator("#loss")
    sees(chart, 0, 400)
    keyed = chart.get_by_role("group", name=re.compile("Loss by step"))
    keyed.focus()
    for key, stretch in (("+", (100, 300)), ("+", (150, 250)), ("ArrowRight", (175, 275)), ("ArrowLeft", (150, 250)),
                         ("-", (100, 300)), ("Escape", (0, 400))):  # fmt: skip
        page.keyboard.press(key)
        sees(chart, *stretch)
        expect(keyed).to_be_focused()
    for button, stretch in (("Closer", (100, 300)), ("Earlier steps", (50, 250)), ("Later steps", (100, 300)),
                            ("Wider", (0, 400))):  # fmt: skip
        page.locator("#loss-tools").get_by_role("button", name=button).click()
        sees(chart, *stretch)
    # Pressed faster than the server draws, none is lost.
    closer = page.locator("#loss-tools").get_by_role("button", name="Closer")
    closer.evaluate("button => { for (let press = 0; press < 4; press++) button.click(); }")
    sees(chart, 188, 213)
    page.locator("#loss-tools").get_by_role("button", name="All steps").click()
    sees(chart, 0, 400)


def test_smoothing_changes_the_mean_and_not_what_was_measured(context: Context, open_page: Callable[[], Page]) -> None:
    page = open_page()
    chart = page.locator("#loss")
    expect(chart).to_contain_text("Mean over about 20 steps")
    held = chart.locator("circle.held").evaluate_all("dots => dots.map(dot => dot.outerHTML)")
    mean = chart.locator("polyline.own").first.get_attribute("points")
    page.locator("#loss-smoothing").get_by_text("Smoothed much").click()
    expect(chart).to_contain_text("Mean over about 100 steps")
    assert chart.locator("polyline.own").first.get_attribute("points") != mean
    page.locator("#loss-smoothing").get_by_text("Raw").click()
    expect(chart).to_contain_text("Each step as it was.")
    expect(chart.locator("polyline.quiet")).to_have_count(0)
    assert chart.locator("circle.held").evaluate_all("dots => dots.map(dot => dot.outerHTML)") == held
    page.wait_for_timeout(1500)  # by when a field is kept
    page.reload()
    expect(page.locator("#loss")).to_contain_text("Each step as it was.")


@pytest.mark.slow
def test_compared_runs_are_looked_into_together(context: Context, open_page: Callable[[], Page]) -> None:
    a_run(context, "other", losses(200))
    page = open_page()
    page.locator("#run-comparison > button").click()
    for name in ("mine", "other"):
        page.locator("#compare-runs input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    chart = page.locator("#comparison-chart")
    expect(chart.locator("polyline.run-2")).to_have_count(2)
    sees(chart, 0, 400)
    drag(page, chart, 0.5, 0.75)
    expect(chart).to_contain_text(re.compile(r"Steps (199|200|201) to (299|300|301) of 400"))
    page.locator("#compare-smoothing").get_by_text("Raw").click()
    expect(chart).to_contain_text("Training loss: each step.")
    assert abs(shown(chart)[0] - 200) <= 2
    chart.get_by_role("group").focus()
    page.keyboard.press("Home")
    sees(chart, 0, 400)
    sees(page.locator("#loss"), 0, 400)  # the other chart is looked at as it was


@pytest.mark.slow
def test_it_can_be_used_in_a_narrow_window(context: Context, open_page: Callable[[], Page]) -> None:
    page = open_page()
    page.set_viewport_size({"width": 420, "height": 900})
    chart = page.locator("#loss")
    sees(chart, 0, 400)
    drag(page, chart, 0.1, 0.6)
    expect(chart).to_contain_text(re.compile(r"Steps (39|40|41) to (239|240|241) of 400"))
    tools = page.locator("#loss-tools button")
    boxes = [box for button in tools.all() if (box := button.bounding_box())]
    assert len(boxes) == 5 and all(box["x"] >= 0 and box["x"] + box["width"] <= 420 for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
