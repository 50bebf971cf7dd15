"""A workspace with pictures in every place of the page, and what a person does with one that is seen full-screen."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.context import Context
from tests import browsing
from tests.page_fixtures import HOSTILE
from trainer import presets
from trainer.config import StackConfig
from trainer.events import Sampled, Started, Step, to_line
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect

SIZE = (512, 384)  # larger than a thumbnail, so that the whole picture is told from it
COLOURS = [(200, 30, 30), (30, 160, 40), (30, 60, 200), (220, 190, 40)]
PREVIEWS = [(120, 40 + 60 * number, 90) for number in range(3)]


def draw(path: Path, seed: int) -> None:
    """A picture of one colour with its recipe, whose prompt is HTML."""
    recipe = PngInfo()
    made = StackConfig.model_validate({"prompt": f"a fox {HOSTILE}", "seed": seed})
    recipe.add_text(picture_metadata.RECIPE_KEY, json.dumps(picture_metadata.travelling(made)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, COLOURS[seed]).save(path, pnginfo=recipe)


def fill(context: Context) -> None:
    """Pictures in every place: drawn by hand and in a batch, previews of two runs, and a dataset's."""
    for seed in range(len(COLOURS)):
        draw(context.renders / f"{seed}-abc.png", seed)
        draw(context.batches / "few" / f"{seed:05d}.png", seed)
    job = context.runner.submit("few", "prompt\n", "batch-csv")
    context.runner.table.put(job, state="finished")
    (context.datasets / "mine").mkdir()
    Image.new("RGB", (3000, 2000), "teal").save(context.datasets / "mine" / "a.png")
    (context.datasets / "mine" / "a.txt").write_text("a square")
    for run in ("cat", "dog"):
        samples = context.runs / run / "samples"
        samples.mkdir(parents=True)
        config = presets.load("imprimatura-style", {"data.folder": str(context.datasets / "mine")})
        presets.save(config, samples.parent / "config.toml")
        log: list[Any] = [Started(run, 20, 0, 3, 0, 9, "cpu", "float32", "imprimatura"), Step(1, 1.0, 1e-4, 0.1, 0.5)]
        for step, colour in enumerate(PREVIEWS):
            name = f"samples/step-{step:06d}-1.png"
            Image.new("RGB", (128, 128), colour).save(samples.parent / name)
            log.append(Sampled(step, f"a square {HOSTILE}", name))
        (samples.parent / "events.jsonl").write_text("".join(map(to_line, log)))
        job = context.runner.submit(run, (samples.parent / "config.toml").read_text())
        context.runner.table.put(job, name=run, state="finished")


# On the page.


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog").and_(page.locator(".viewer"))


def seen(page: Page, pane: str = "b") -> dict[str, float]:
    """Where the picture that is seen lies on the page; of two, `a` is the one that was kept."""
    image = page.locator(f".view-stage .{pane} img")
    found: dict[str, float] = image.evaluate("image => image.getBoundingClientRect().toJSON()")
    return found


def is_whole(page: Page, width: int = SIZE[0]) -> None:
    """The whole picture has come in the place of its thumbnail; `width` is its own."""
    browsing.until(page, lambda: page.locator(".view-stage .b img").evaluate("one => one.naturalWidth") == width, 20)


def colours(page: Page, *points: tuple[float, float]) -> list[tuple[int, int, int]]:
    """What is painted on the page at these points."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return [image.getpixel((round(x), round(y))) for x, y in points]  # type: ignore[misc]


def alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(abs(a - b) <= 6 for a, b in zip(one, other, strict=True))


def recent(page: Page) -> Locator:
    browsing.open_tab(page, "Stack")
    cells = page.locator("#recent .thumbnail-item")
    expect(cells).to_have_count(len(COLOURS))
    return cells


def enlarge(page: Page, card: Locator) -> None:
    """Open a card's picture by the sign that is on it under the pointer."""
    card.hover()
    card.locator(".enlarge").click()
    expect(dialog(page)).to_be_visible()


def at(page: Page, text: str) -> None:
    expect(page.locator(".view-at")).to_have_text(text)


def leave(page: Page, back: Locator) -> None:
    """Close the picture; the focus is back where it came from."""
    page.keyboard.press("Escape")
    expect(dialog(page)).to_be_hidden()
    expect(back).to_be_focused()


def swipe(page: Page, across: int) -> None:
    """A finger's swipe over the middle of the picture, as fast as a finger: after a faster one Chromium drops a tap."""
    session, (x, y) = page.context.new_cdp_session(page), (200, 400)
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for part in range(1, 6):
        points = [{"x": x + across * part // 5, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": points})
        page.wait_for_timeout(30)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
