"""How long it takes from a slider's stop on the Stack tab to the first pixels: `python -m tests.slider_stops`.

Thirty stops on Imprimatura at 128 px in a real browser, each once the one before is drawn whole; median and worst.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from tests import test_browser as browsing

STOPS = 30
# Moves a slider as a hand does and answers with the milliseconds until another picture is there.
MEASURE = """
async weight => {
  const slider = document.querySelector('#weight-1 input[type=range]');
  const image = () => document.querySelector('#picture img');
  const source = () => image() && image().complete && image().src;
  const before = source(), began = performance.now();
  slider.value = weight;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
  while (source() === before || !source()) await new Promise(requestAnimationFrame);
  return performance.now() - began;
}
"""


def measure(lora: Path) -> list[float]:
    """Seconds of each stop, with this LoRA in the first row."""
    with tempfile.TemporaryDirectory() as folder, browsing.playwright_api.sync_playwright() as playwright:
        server = browsing.Server(Path(folder) / "workspace")
        (server.workspace / "loras").mkdir(parents=True)
        (server.workspace / "loras" / lora.name).write_bytes(lora.read_bytes())
        server.start()
        browser = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(180_000)
            page.goto(server.address)
            page.get_by_role("tab", name="Stack").click()
            page.locator("#lora-1 input").click()
            page.get_by_role("option", name=lora.stem, exact=True).last.click()
            browsing.fill(page, "field-prompt", "a red apple")
            page.locator("#render").click()
            seconds = []
            for stop in range(STOPS):
                # The picture before is whole, and nothing is drawn.
                page.locator("#cancel-render:disabled").wait_for()
                seconds.append(page.evaluate(MEASURE, round(0.1 + 0.05 * stop, 2)) / 1000)
                page.locator("#cancel-render:not(:disabled)").wait_for()
            return seconds
        finally:
            browser.close()
            server.kill()


if __name__ == "__main__":
    times = measure(Path(sys.argv[1]))
    print(f"{len(times)} stops: median {statistics.median(times):.2f} s, worst {max(times):.2f} s")
