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
# Moves a slider as a hand does, waits until the picture is drawn whole, and answers with the milliseconds until another
# picture was there. All in the page: a look from outside can come when the whole picture is over already.
MEASURE = """
async weight => {
  const slider = document.querySelector('#weight-1 input[type=range]');
  const image = () => document.querySelector('#picture img');
  const source = () => image() && image().complete && image().src;
  const isDrawing = () => !document.querySelector('#cancel-render').disabled;
  const before = source(), began = performance.now();
  slider.value = weight;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
  let first = 0, hasDrawn = false;
  while (!first || !hasDrawn || isDrawing()) {
    await new Promise(requestAnimationFrame);
    if (performance.now() - began > 180000) throw new Error(`after 180 s: first ${first}, drawn ${hasDrawn}`);
    hasDrawn ||= isDrawing();
    first ||= source() && source() !== before && performance.now() - began;
  }
  return first;
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
            browsing.fill(page, "stack-prompt", "a red apple")
            page.locator("#render").click()
            page.locator("#cancel-render:not(:disabled)").wait_for()
            page.locator("#cancel-render:disabled").wait_for()
            seconds = []
            for stop in range(STOPS):
                seconds.append(page.evaluate(MEASURE, round(0.1 + 0.05 * stop, 2)) / 1000)
            return seconds
        finally:
            browser.close()
            server.kill()


if __name__ == "__main__":
    times = measure(Path(sys.argv[1]))
    print(f"{len(times)} stops: median {statistics.median(times):.2f} s, worst {max(times):.2f} s")
