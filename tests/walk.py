"""The walk at the top of the README: `python -m tests.walk [FILE.webp]` plays it in a real browser and films it.

From an empty page: one click shows what is learned, the result is opened in Stack, a weight is moved, and everything
made lies in Library. What takes long is filmed less often; nothing is drawn that was not on the page but the line of
words under it.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from tests import test_browser as browsing

if TYPE_CHECKING:
    from playwright.sync_api import Page

OUT = Path(__file__).parents[1] / "app" / "screenshots" / "walk.webp"
SIZE = (1200, 800)  # of the page
WIDTH = 800  # of the film
WORDS_HEIGHT = 36
MOST_BYTES = 2_500_000
LEARNING_S = 600  # for both trainings and the stacked picture, on a busy machine


@dataclass
class Film:
    """Frames of a page, each with how long it is seen in milliseconds; what did not change is seen longer."""

    page: Page
    frames: list[Image.Image] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)

    def take(self, words: str, ms: int) -> None:
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        height = round(WIDTH * shot.height / shot.width)
        frame = Image.new("RGB", (WIDTH, height + WORDS_HEIGHT), "#1c1b22")
        frame.paste(shot.resize((WIDTH, height), Image.Resampling.LANCZOS))
        ImageDraw.Draw(frame).text(
            (WIDTH // 2, height + WORDS_HEIGHT // 2), words, "white", ImageFont.load_default(16), "mm"
        )
        if self.frames and self.frames[-1].tobytes() == frame.tobytes():
            self.durations[-1] += ms
        else:
            self.frames.append(frame)
            self.durations.append(ms)

    def until(self, is_over: Callable[[], bool], words: str, every_s: float, ms: int, most_s: float) -> None:
        """A frame every so many seconds until something is so, each seen for `ms`."""
        deadline = time.monotonic() + most_s
        while not is_over():
            assert time.monotonic() < deadline, f"not over in {most_s} s: {words}"
            self.take(words, ms)
            self.page.wait_for_timeout(1000 * every_s)

    def save(self, path: Path) -> None:
        """As an animated WebP of at most `MOST_BYTES`."""
        for quality in (70, 55, 40, 25):
            self.frames[0].save(
                path, "WEBP", save_all=True, append_images=self.frames[1:], duration=self.durations, loop=0,
                quality=quality, method=4, minimize_size=True,
            )  # fmt: skip
            if path.stat().st_size <= MOST_BYTES:
                return
        raise AssertionError(f"{path.stat().st_size} bytes; allowed: {MOST_BYTES}")


def play(page: Page, address: str) -> Film:
    """The whole walk."""
    page.goto(address)
    page.locator("#show-me").wait_for()
    page.wait_for_timeout(1500)
    film = Film(page)

    # One click: two LoRAs learn, and are drawn together.
    film.take("An empty page", 2500)
    page.locator("#show-me").hover()
    film.take("One click: Show me", 1500)
    page.locator("#show-me").click()
    began = time.monotonic()
    film.until(
        page.locator("#show-me-open").is_visible, "A style and a character learn; what they draw shows as they do",
        4, 350, LEARNING_S,
    )  # fmt: skip
    film.take(f"Both, one over the other: {time.monotonic() - began:.0f} seconds after the click", 3500)

    # The stack, opened from its picture; a slider moved.
    page.locator("#show-me-open").click()
    page.locator("#picture img").wait_for()
    page.locator("#show-me-close").click()
    page.locator("#show-me-scene").wait_for(state="hidden")
    page.wait_for_timeout(1500)
    film.take("The same picture in Stack, with its LoRAs and seed", 2500)
    picture = page.locator("#picture img")
    for weight in (0.4, 0.0, 0.9):
        source = picture.get_attribute("src")
        slider = page.locator("#weight-1 input[type=range]")
        slider.evaluate(
            """(slider, weight) => {
              slider.value = weight;
              slider.dispatchEvent(new Event('input', {bubbles: true}));
              slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true}));
            }""",
            weight,
        )
        film.until(
            lambda before=source: picture.get_attribute("src") != before and _is_idle(page),
            "A weight is moved, and the picture follows", 0.4, 250, 120,
        )  # fmt: skip
        film.take("A weight is moved, and the picture follows", 1500)

    # Full-screen.
    page.keyboard.press("v")
    page.wait_for_timeout(1500)
    film.take("V shows any picture full-screen, and against another", 2500)
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)

    # All of it in the Library.
    page.get_by_role("tab", name="Library").click()
    page.wait_for_timeout(2500)
    film.take("Everything made lies in Library", 3000)
    return film


def _is_idle(page: Page) -> bool:
    """Whether nothing is drawn."""
    return page.locator("#cancel-render:disabled").count() == 1


def main(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, browsing.playwright_api.sync_playwright() as playwright:
        server = browsing.Server(Path(folder) / "workspace")
        server.workspace.mkdir(parents=True)
        server.start()
        browser = playwright.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.ARGUMENTS)
        try:
            page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
            page.set_default_timeout(120_000)
            film = play(page, server.address)
        finally:
            browser.close()
            server.kill()
    film.save(path)
    seconds, mib = sum(film.durations) / 1000, path.stat().st_size / 2**20
    print(f"{path}: {len(film.frames)} pictures, {seconds:.0f} s, {mib:.2f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
