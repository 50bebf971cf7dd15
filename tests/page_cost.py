"""What the page costs a browser: `python -m tests.page_cost [CHECKOUT]`, seconds and shares of the main thread.

With two checkouts: seconds until the tabs are there, of both in turns, for a ratio on a machine whose speed changes.

An empty workspace in a real browser at 1440 x 900: until the tabs are there (first visit and again), each tab while
nothing happens, and choosing another preset. Another checkout is measured by its own code, for before and after.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import test_browser as browsing

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

ROOT = Path(__file__).parents[1]
IDLE_S = 10
TURNS = 4


def measure(checkout: Path) -> dict[str, float]:
    """By what was done: seconds, or percent of the main thread's time."""
    with tempfile.TemporaryDirectory() as folder, browsing.playwright_api.sync_playwright() as playwright:
        server, address = _serve(checkout, Path(folder) / "workspace")
        browser = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(120_000)
            results = {f"tabs_s_visit_{visit}": _opened_s(page, address) for visit in (1, 2)}
            client = page.context.new_cdp_session(page)
            client.send("Performance.enable")
            page.get_by_role("tab", name="Dataset").click()
            page.locator("#copy-sample").click()
            for tab in ("Dataset", "Train", "Stack"):
                page.get_by_role("tab", name=tab).click()
                page.wait_for_timeout(5000)
                results[f"idle_percent_{tab.lower()}"] = _busy_s(client, page, IDLE_S) / IDLE_S * 100
            page.get_by_role("tab", name="Train").click()
            page.wait_for_timeout(2000)
            page.locator("#preset input").click()
            page.get_by_role("option").nth(1).click()
            results["preset_s"] = _busy_s(client, page, 8)
            return {name: round(value, 2) for name, value in results.items()}
        finally:
            browser.close()
            server.kill()


def in_turns(checkouts: list[Path]) -> dict[str, dict[str, float]]:
    """By checkout: median seconds until the tabs are there, in a new browser and again in the same."""
    seconds: dict[str, dict[str, list[float]]] = {str(one): {"first": [], "again": []} for one in checkouts}
    with tempfile.TemporaryDirectory() as folder, browsing.playwright_api.sync_playwright() as playwright:
        served = [_serve(one, Path(folder) / str(number)) for number, one in enumerate(checkouts)]
        try:
            for _ in range(TURNS):
                for times, (_, address) in zip(seconds.values(), served, strict=True):
                    browser = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.ARGUMENTS)
                    page = browser.new_page(viewport={"width": 1440, "height": 900})
                    for of_visit in times.values():
                        of_visit.append(_opened_s(page, address))
                    browser.close()
        finally:
            for server, _ in served:
                server.kill()
    return {
        name: {visit: round(statistics.median(values), 2) for visit, values in times.items()}
        for name, times in seconds.items()
    }


def _serve(checkout: Path, workspace: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of that checkout that has loaded what it loads in the background."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "trainer", "app", "--workspace", str(workspace), "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    server = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    while "Velatura is at" not in (line := server.stdout.readline()):
        assert line, "the server ended"
    time.sleep(10)
    return server, f"http://127.0.0.1:{port}/"


def _opened_s(page: Page, address: str) -> float:
    began = time.monotonic()
    page.goto(address)
    page.get_by_role("tab", name="Train").wait_for()
    return time.monotonic() - began


def _busy_s(client: CDPSession, page: Page, seconds: float) -> float:
    """How long the main thread was at work during so many seconds."""

    def worked_s() -> float:
        metrics: list[dict[str, Any]] = client.send("Performance.getMetrics")["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

    before = worked_s()
    page.wait_for_timeout(seconds * 1000)
    return worked_s() - before


if __name__ == "__main__":
    asked = [Path(argument).resolve() for argument in sys.argv[1:]]
    print(json.dumps(in_turns(asked) if len(asked) > 1 else measure(asked[0] if asked else ROOT), indent=1))
