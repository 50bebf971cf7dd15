"""What Stack's desk takes from a recent picture: all of it, its seed, prompt or settings alone, or nothing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from PIL import Image

from app import ui
from app.context import Context
from app.stack_taking import Chosen
from app.tabs import stack as stack_tab
from tests import test_browser as browsing
from tests.test_page_desk import choose, set_live
from trainer import lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
FIELDS = ("prompt", "negative_prompt", "seed", "width_px", "height_px", "steps", "guidance_scale")
DESK = ("a red apple", "dull", "1", "128", "128", "6", "3")
BOAT = ("a wooden boat", "grey", "11", "64", "96", "5", "4")
OWL = ("an owl", "", "22", "64", "64", "2", "2")


def picture(folder: Path, values: tuple[str, ...], loras: tuple[AdapterChoice, ...]) -> None:
    """A picture of ours with that recipe; nothing is drawn for it."""
    prompt, negative, *numbers = values
    seed, width, height, steps, guidance = map(int, numbers)
    stack = StackConfig(
        prompt=prompt, negative_prompt=negative, seed=seed, width_px=width, height_px=height, steps=steps,
        guidance_scale=guidance, sampler="euler", adapters=loras,
    )  # fmt: skip
    image = Image.new("RGB", (width, height), (seed * 7, 90, 120))
    picture_metadata.save(picture_metadata.Picture(image, stack), folder / f"{seed}-0123abcd.png")


@pytest.fixture
def server(tmp_path: Path, trained: Path, trained_style: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path / "workspace")
    for folder in ("loras", "renders"):
        (made.workspace / folder).mkdir(parents=True)
    for lora in (trained, trained_style):
        shutil.copy(lora, made.workspace / "loras" / lora.name)
    cat, gone = AdapterChoice(sha256=lora_file.inspect(trained).sha256, weight=0.4), AdapterChoice(sha256="0" * 64)
    picture(made.workspace / "renders", BOAT, (cat,))
    picture(made.workspace / "renders", OWL, (cat.model_copy(update={"weight": 0.9}),))
    picture(made.workspace / "renders", ("a horse", "", "33", "64", "64", "2", "2"), (gone,))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def desk(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """Stack without Live: the style soloed beside the cat, and settings of its own."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    page.goto(server.address)
    page.get_by_role("tab", name="Stack").click()
    set_live(page, False)
    choose(page, 1, "style")
    choose(page, 2, "cat")
    browsing.fill(page, "weight-1", "0.3")
    page.locator("#solo-1 input").check()
    for key, value in zip(FIELDS, DESK, strict=True):
        browsing.fill(page, f"stack-{key}", value)
    expect(page.locator("#recent img")).to_have_count(3)
    yield page
    assert "Traceback" not in server.log(), server.log()


def recent(page: Page, seed: int) -> Locator:
    return page.locator("#recent button").filter(has_text=f"seed {seed}").first


def take(page: Page, words: str) -> None:
    button = page.locator("#taking").get_by_role("button", name=words, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")


def holds(page: Page, values: tuple[str, ...]) -> None:
    for key, value in zip(FIELDS, values, strict=True):
        box = page.locator(f"#stack-{key} input, #stack-{key} textarea").first
        expect(box).to_have_value(value, timeout=WAIT_MS)


def own_rows(page: Page) -> None:
    """The rows as they were before any picture was chosen, solo too, which no picture knows."""
    expect(page.locator("#lora-1 input")).to_have_value("style")
    expect(page.locator("#lora-2 input")).to_have_value("cat")
    expect(page.locator("#weight-1 input[type=number]")).to_have_value("0.3")
    expect(page.locator("#solo-1 input")).to_be_checked()


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(900)
def test_a_part_of_a_recent_picture_is_taken_and_the_rest_stays(desk: Page) -> None:
    expect(desk.locator(".taking")).to_be_hidden()
    recent(desk, 11).click()
    holds(desk, BOAT)
    expect(desk.locator("#lora-1 input")).to_have_value("cat")
    expect(desk.get_by_role("group", name="What the desk takes of the picture with seed 11")).to_be_visible()
    expect(desk.locator("#taking").get_by_role("button", name="Everything")).to_have_attribute("aria-pressed", "true")

    take(desk, "Only seed")
    holds(desk, (*DESK[:2], "11", *DESK[3:]))
    own_rows(desk)
    take(desk, "Only prompt")
    holds(desk, (*BOAT[:2], *DESK[2:]))
    own_rows(desk)
    take(desk, "Only settings")
    holds(desk, (*DESK[:3], *BOAT[3:]))
    desk.get_by_role("button", name="Base model").click()
    expect(desk.locator("#stack-sampler input")).to_have_value("euler")
    own_rows(desk)
    take(desk, "Everything")
    holds(desk, BOAT)
    expect(desk.locator("#lora-1 input")).to_have_value("cat")
    take(desk, "Nothing")
    holds(desk, DESK)
    expect(desk.locator("#stack-sampler input")).to_have_value("the base's own")
    own_rows(desk)


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(900)
def test_looking_through_pictures_and_later_work_lose_nothing(desk: Page, server: browsing.Server) -> None:
    # By keys: the pictures and the row's buttons are in the order of tabs.
    recent(desk, 11).focus()
    desk.keyboard.press("Enter")
    holds(desk, BOAT)
    recent(desk, 22).click()
    holds(desk, OWL)
    button = desk.locator("#taking").get_by_role("button", name="Only seed")
    for _ in range(12):
        desk.keyboard.press("Tab")
        if button.evaluate("part => part === document.activeElement"):
            break
    desk.keyboard.press("Enter")
    holds(desk, (*DESK[:2], "22", *DESK[3:]))
    own_rows(desk)

    # What was changed by hand since is what a part is put into, and comes back by the same button.
    browsing.fill(desk, "stack-prompt", "a green apple")
    take(desk, "Only settings")
    changed = ("a green apple", DESK[1], "22", *OWL[3:])
    holds(desk, changed)
    browsing.fill(desk, "stack-steps", "9")
    take(desk, "Nothing")
    holds(desk, ("a green apple", DESK[1], "22", *DESK[3:]))
    take(desk, "Only seed")
    take(desk, "Nothing")
    holds(desk, ("a green apple", DESK[1], "22", *DESK[3:]))

    # Of a picture whose LoRA is gone the rest is had.
    recent(desk, 33).click()
    expect(desk.get_by_role("group", name="What the desk takes of the picture with seed 33")).to_be_visible()
    holds(desk, ("a green apple", DESK[1], "22", *DESK[3:]))
    take(desk, "Only prompt")
    holds(desk, ("a horse", "", "22", *DESK[3:]))
    own_rows(desk)

    # Another stack in the desk's place: nothing is left to put back.
    desk.locator("#recipe-png input[type=file]").set_input_files(next((server.workspace / "renders").glob("11-*.png")))
    holds(desk, BOAT)
    expect(desk.locator(".taking")).to_be_hidden()


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(900)
def test_live_draws_what_a_part_makes_of_the_desk(desk: Page) -> None:
    set_live(desk, True)
    made_from = desk.locator("#infotext textarea")
    expect(made_from).to_have_value(re.compile("<lora:style:0.3>.*Seed: 1,", re.DOTALL), timeout=WAIT_MS)
    recent(desk, 22).click()
    expect(made_from).to_have_value(re.compile("Seed: 22,"), timeout=WAIT_MS)
    take(desk, "Only seed")
    expect(made_from).to_have_value(re.compile("red apple.*<lora:style:0.3>.*Seed: 22,", re.DOTALL), timeout=WAIT_MS)
    take(desk, "Nothing")
    expect(made_from).to_have_value(re.compile("red apple.*<lora:style:0.3>.*Seed: 1,", re.DOTALL), timeout=WAIT_MS)


# What a browser may send.


@pytest.fixture
def tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stack_tab._Tab:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context: Context = ui.open_workspace(tmp_path / "workspace")
    picture(context.renders, BOAT, ())
    with gr.Blocks():
        return stack_tab._Tab(context)


def held(tab: stack_tab._Tab, chosen: Any) -> dict[Any, Any]:
    values = {part: getattr(part, "value", None) for part in tab.taking._parts()}
    return values | {tab.taking.chosen: chosen, tab.stage.files: ["11-0123abcd.png"]}


REQUEST: Any = SimpleNamespace(session_hash="a", headers={})


def event(**values: Any) -> Any:
    return SimpleNamespace(**values)


@pytest.mark.parametrize("what", ["", "lora", "prompt ", None, 7, ["seed"], {"what": "seed"}, "x" * 10_000, "\ud800"])
def test_what_is_no_part_is_refused_in_words(tab: stack_tab._Tab, what: Any) -> None:
    chosen = tab.taking.choose(held(tab, None), REQUEST, event(index=0))[tab.taking.chosen]
    assert isinstance(chosen, Chosen)
    for there in (chosen, None):
        with pytest.raises(gr.Error, match="not among the recent ones"):
            tab.taking.take(held(tab, there), REQUEST, event(what=what))


@pytest.mark.parametrize("index", [-1, 1, 10**30, "0", None, [0], 0.0])
def test_a_place_without_a_picture_changes_nothing(tab: stack_tab._Tab, index: Any) -> None:
    assert tab.taking.choose(held(tab, None), REQUEST, event(index=index)) == gr.skip()


def test_a_picture_that_is_gone_gives_nothing(tab: stack_tab._Tab) -> None:
    chosen = tab.taking.choose(held(tab, None), REQUEST, event(index=0))[tab.taking.chosen]
    next(tab.context.renders.glob("*.png")).unlink()
    with pytest.raises(gr.Error, match="not among the recent ones"):
        tab.taking.take(held(tab, chosen), REQUEST, event(what="seed"))
