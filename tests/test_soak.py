"""Four tabs of one browser for minutes, a training and rendering: the server's memory stays, and no event is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest

from tests import browsing, test_browser
from tests.test_browser import Server, server  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, test_browser.pytestmark]
expect = test_browser.playwright_api.expect
MOST_GROWTH = 0.05
MIB = 2**20


@pytest.fixture
def pages(browser: Browser, server: Server) -> Iterator[list[Page]]:  # noqa: F811
    """Four tabs, which share what is kept of their browser."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    opened = [context.new_page() for _ in range(4)]
    for page in opened:
        page.set_default_timeout(120_000)
        page.goto(server.address)
        page.get_by_role("tab", name="Train").wait_for()
    yield opened
    assert "Traceback" not in server.log(), server.log()


def memory_mib(server: Server) -> float:  # noqa: F811
    """What the server alone holds, not its trainings."""
    assert server.process is not None
    return psutil.Process(server.process.pid).memory_info().rss / MIB


def render(page: Page, seed: int) -> None:
    before = page.locator("#infotext textarea").input_value() if page.locator("#infotext").is_visible() else ""
    test_browser.fill(page, "stack-seed", str(seed))
    page.locator("#render").click()
    expect(page.locator("#infotext textarea")).to_have_value(re.compile(rf"Seed: {seed},"), timeout=240_000)
    assert page.locator("#infotext textarea").input_value() != before


def step_shown(page: Page) -> int:
    match = re.search(r"step (\d+) of", page.locator("#progress .progress").inner_text())
    return int(match.group(1)) if match else 0


@pytest.mark.parametrize("minutes", [1, 10])
@pytest.mark.timeout(2400)
def test_memory_stays_and_no_event_is_lost(pages: list[Page], server: Server, minutes: int) -> None:  # noqa: F811
    train, stack, watching, library = pages

    # A training that lasts, looked at by two tabs; a stack that is drawn; the library.
    browsing.open_tab(train, "Dataset")
    test_browser.copy_sample(train)
    test_browser.begin_training(train, steps=100_000)
    test_browser.see(train, r"step [1-9]\d* of", timeout_s=240)
    watching.get_by_role("tab", name="Train").click()
    library.get_by_role("tab", name="Library").click()
    browsing.open_tab(stack, "Stack")
    stack.locator("#live input").set_checked(False)
    test_browser.fill(stack, "stack-steps", "4")
    test_browser.fill(stack, "stack-prompt", "a red apple")

    # Until all is warm, then for minutes.
    seed, samples = 1, []
    for until_s in (30, 60 * minutes):
        end = time.monotonic() + until_s
        samples = []
        while time.monotonic() < end:
            seed += 1
            render(stack, seed)
            samples.append(memory_mib(server))
            assert step_shown(train) > 0
            stack.wait_for_timeout(500)
    quarter = max(1, len(samples) // 4)
    first, last = sum(samples[:quarter]) / quarter, sum(samples[-quarter:]) / quarter
    growth = last / first - 1

    # What the run wrote is what each tab shows.
    train.locator("#stop-training").click()
    for page in (train, watching):
        test_browser.see(page, "Stopped; it can go on", timeout_s=240)
    (run,) = (server.workspace / "runs").glob("[!.]*")
    steps = [line["step"] for line in map(json.loads, (run / "events.jsonl").read_text().splitlines())
             if line["event"] == "step"]  # fmt: skip
    assert steps == list(range(1, len(steps) + 1))
    for page in (train, watching):
        expect(page.locator("#progress .progress")).to_contain_text(f"step {steps[-1]} of")
    pictures = len(list((server.workspace / "renders").glob("*.png")))
    print(f"{minutes} min: {first:.0f}, then {last:.0f} MiB ({growth:+.1%}), {len(steps)} steps, {pictures} pictures")
    assert pictures == seed - 1
    assert growth < MOST_GROWTH, samples
