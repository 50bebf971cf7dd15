"""Fixtures of the browser tests: a browser, and a page of this process or of a server; `conftest.py` hands them on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import gradio as gr
    from playwright.sync_api import Browser, Page

    from app.context import Context

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run"]
HOSTILE = "<img src=x onerror=window.__owned=1>"
NEEDS_CHROMIUM = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"no chromium at {CHROMIUM}: apt-get install chromium"
)
WIDE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a file. While it runs, asyncio can't be used otherwise: not for longer."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The file's browser; what a test opens in it is closed after the test."""
    before = list(chromium.contexts)
    yield chromium
    for context in chromium.contexts:
        if context not in before:
            context.close()


def launch(context: Context) -> tuple[gr.Blocks, str]:
    """The page of a workspace, served by this process as `velatura app` serves it, and its address."""
    from app import request_guard, theme, ui

    made = ui.compose(context)
    middleware = {"middleware": list(request_guard.middleware("127.0.0.1"))}
    return made, ui.launch(
        made, server_name="127.0.0.1", app_kwargs=middleware, theme=theme.theme(), css=theme.CSS
    )  # fmt: skip


@pytest.fixture
def open_page(context: Context, browser: Browser) -> Iterator[Callable[[], Page]]:
    """Opens the page of the test's `context`, as it is by then; no text of it may have run."""
    served: list[gr.Blocks] = []
    opened: list[Page] = []

    def open_it() -> Page:
        made, address = launch(context)
        served.append(made)
        page = browser.new_page(viewport=WIDE)  # type: ignore[arg-type]
        opened.append(page)
        page.set_default_timeout(120_000)
        page.goto(address)
        return page

    yield open_it
    for page in opened:
        assert page.evaluate("window.__owned") is None
        page.context.close()  # before its server, which it would miss
    for made in served:
        made.close()
