"""How long "Show me" takes from the click to the first stacked picture: `python -m tests.show_me_time`, seconds.

An empty workspace in a real browser, the server's models loaded; what else uses the machine counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests import browsing
from tests import test_browser as server_side

MOST_S = 900


def measure() -> dict[str, float]:
    """Seconds from the click to what is seen first, to the first picture that was drawn, and to the stacked one."""
    with tempfile.TemporaryDirectory() as folder, server_side.playwright_api.sync_playwright() as playwright:
        server = server_side.Server(Path(folder) / "workspace")
        server.start()
        browser = playwright.chromium.launch(executable_path=server_side.CHROMIUM, args=server_side.ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(MOST_S * 1000)
            browsing.watch(page.context)
            page.goto(server.address)
            button = page.locator("#show-me")
            button.wait_for()
            page.wait_for_timeout(15_000)  # what the server loads in the background once it is up
            began = time.monotonic()
            button.click()
            seconds = {}
            for name, words in (
                ("anything", "#show-me-pictures img"),
                ("first drawn", "#show-me-pictures :text('before it learns')"),
                ("stacked", "#show-me-pictures :text('both together')"),
            ):
                page.locator(words).first.wait_for(state="attached")
                seconds[name] = time.monotonic() - began
            problems = browsing.taken()
            assert not problems, problems
            return seconds
        finally:
            browser.close()
            server.kill()
            for process in server.trainers():
                process.kill()


if __name__ == "__main__":
    load = os.getloadavg()[0]
    times = measure()
    print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in times.items()))
    print(f"load of the machine before {load:.1f}, after {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
