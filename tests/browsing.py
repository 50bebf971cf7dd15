"""What every browser test stands on: each page that a test opens is watched, by `conftest.py` without being asked to.

An error on its console or in its scripts, an answer of 500 and a request that leaves this machine are problems, and a
test that ends with one fails. Also a workspace with one of everything, for tests that walk the whole page.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from PIL import Image

if TYPE_CHECKING:
    import pytest
    from playwright.sync_api import BrowserContext, Page

TABS = ("Dataset", "Train", "Stack", "Batch", "Library")
problems: list[str] = []  # of all pages, since the test before
_HOSTS = ("127.0.0.1", "localhost", "::1")
# What Chromium says of a server that the test has killed, Gradio of a page that is left or reloaded, and what the test
# of the policy has refused on purpose.
_GONE = re.compile(
    r"net::ERR_(CONNECTION_(REFUSED|RESET|CLOSED)|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING|SOCKET\w*)"
    r"|AbortError: signal is aborted|TypeError: (Failed to fetch|network error)|Unexpected error Connection errored out"
    r"|http://localhost:9/"
)


def leaves(url: str) -> bool:
    """Whether asking for it would go to another machine."""
    parts = urlsplit(url)
    return parts.scheme not in ("data", "blob", "about") and parts.hostname not in _HOSTS


def watch(context: BrowserContext) -> None:
    """Write down what goes wrong in the pages of a context."""

    def said(message: Any) -> None:
        if message.type == "error" and not _GONE.search(message.text):
            problems.append(f"on the console: {message.text[:600]} at {message.location.get('url')}")

    def raised(error: Any) -> None:
        problems.append(f"in a script: {error.error}"[:1500])

    def asked(request: Any) -> None:
        if leaves(request.url):
            problems.append(f"asked for {request.url[:300]}")

    def answered(response: Any) -> None:
        if response.status >= 500:
            problems.append(f"{response.status} for {response.url[:300]}")

    context.on("console", said)
    context.on("weberror", raised)
    context.on("request", asked)
    context.on("response", answered)


def watch_pages(patch: pytest.MonkeyPatch) -> None:
    """Have every page of Playwright watched that is opened from now on."""
    from playwright.sync_api import Browser

    new_context, new_page = Browser.new_context, Browser.new_page

    def watched_context(browser: Browser, *args: Any, **settings: Any) -> BrowserContext:
        context = new_context(browser, *args, **settings)
        watch(context)
        return context

    def watched_page(browser: Browser, *args: Any, **settings: Any) -> Page:
        page = new_page(browser, *args, **settings)
        watch(page.context)
        return page

    patch.setattr(Browser, "new_context", watched_context)
    patch.setattr(Browser, "new_page", watched_page)


def taken() -> list[str]:
    """The problems until now, which are then forgotten."""
    now = problems.copy()
    problems.clear()
    return now


def open_tab(page: Page, title: str) -> None:
    """That tab, once it is shown."""
    tab = page.get_by_role("tab", name=title, exact=True)
    tab.click()
    page.locator(f"#tab-{title.lower()}").first.wait_for(state="attached")


def come_back(page: Page, address: str) -> None:
    """Open the page after its server was away; it may load itself anew just then, which ends a first try."""
    from playwright.sync_api import Error

    for _ in range(5):
        try:
            page.goto(address)
        except Error as error:
            if "ERR_ABORTED" not in str(error):
                raise
            page.wait_for_timeout(500)
        else:
            return
    raise AssertionError("the page was loaded anew again and again")


def until(page: Page, is_so: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something outside the page is so. Raises: AssertionError."""
    for _ in range(int(seconds * 10)):
        if is_so():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not so after {seconds:.0f} s")


def unfold_all(page: Page) -> None:
    """Open what is folded in the tab that is shown, also what was folded within it."""
    for _ in range(4):
        folded = page.locator("button.label-wrap:not(.open):visible, details:not([open]) > summary:visible")
        if not (count := folded.count()):
            return
        for _ in range(count):
            if folded.count():
                folded.first.click()
        page.wait_for_timeout(300)


def fill_workspace(workspace: Path) -> None:
    """Two datasets, three LoRAs, a run with its log, a picture with its recipe and a batch, none of it computed."""
    import json

    from PIL.PngImagePlugin import PngInfo

    from tests.test_library_keeping import lora
    from trainer import lora_file, presets
    from trainer.config import StackConfig
    from trainer.events import Sampled, Started, Step, to_line
    from trainer.render.picture_metadata import RECIPE_KEY, travelling

    # Datasets.
    for name, colours in (("mine", ("navy", "teal", "brown")), ("other", ("red",))):
        folder = workspace / "datasets" / name
        folder.mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (96, 96), colour).save(folder / f"{number}.png")
            if number != 1:
                (folder / f"{number}.txt").write_text(f"a {colour} square, plain\n")

    # LoRAs, and a run whose job is gone.
    info = lora_file.inspect(lora(workspace / "loras" / "fox.safetensors", 0.4))
    lora(workspace / "loras" / "owl.safetensors", 0.2)
    run = workspace / "runs" / "cat"
    (run / "samples").mkdir(parents=True)
    config = presets.load("imprimatura-style", {"data.folder": str(workspace / "datasets" / "mine")})
    presets.save(config, run / "config.toml")
    lora(run / "cat.safetensors", 0.6)
    log: list[Any] = [Started("cat", 20, 0, 3, 0, 9, "cpu", "float32", "imprimatura")]
    for step in range(1, 21):
        log.append(Step(step, 1 / step, 1e-4, 0.1, 0.5))
    for step in (0, 20):
        picture = f"samples/step-{step:06d}-1.png"
        Image.new("RGB", (128, 128), (step * 7, 120, 60)).save(run / picture)
        log.append(Sampled(step, "a square", picture))
    (run / "events.jsonl").write_text("".join(map(to_line, log)))

    # A picture, and a batch.
    stack = StackConfig.model_validate(
        {"prompt": "a fox", "adapters": [{"sha256": info.sha256, "name": "fox", "weight": 0.7}]}
    )
    text = PngInfo()
    text.add_text(RECIPE_KEY, json.dumps(travelling(stack)))
    for folder in (workspace / "renders", workspace / "batches" / "few"):
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (128, 128), "orange").save(folder / "1-abc.png", pnginfo=text)
