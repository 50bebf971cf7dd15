"""What lies on Stack's desk is drawn in Batch as it is, under no name; over reload, restart and beside a second tab."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageChops

from app import batch_likes, batches, desk_stacks, masks, path_gate, ui
from app.context import Context
from tests import browsing as until_so
from tests import test_browser as browsing
from tests.test_page_desk import choose, serving, set_live
from tests.test_page_rows import a_lora
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError
from trainer.render import jobs_file, picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one


@pytest.fixture
def server(tmp_path: Path, trained: Path, trained_style: Path) -> Iterator[browsing.Server]:
    with serving(tmp_path / "workspace", trained, trained_style) as made:
        yield made


def opened(page: Page, address: str) -> None:
    """Stack with two LoRAs that differ in all that a row says, and settings of its own."""
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.get_by_role("tab", name="Stack").click()
    set_live(page, False)
    for row, name in enumerate(("cat", "style"), 1):
        choose(page, row, name)
        browsing.fill(page, f"weight-{row}", f"0.{row + 5}")
    page.locator("#more-1 button").first.click()
    page.locator("#texts-1").click()
    browsing.fill(page, "layer-1-region", "box 0 0 0.5 1")
    browsing.fill(page, "layer-1-schedule", "linear 1 0")
    browsing.fill(page, "layer-2-text_weight", "0.3")
    browsing.fill(page, "stack-prompt", "a red apple")
    browsing.fill(page, "stack-negative_prompt", "blurry")
    for key, value in (("seed", "7"), ("steps", "3"), ("width_px", "64"), ("height_px", "96")):
        browsing.fill(page, f"stack-{key}", value)


def send(page: Page) -> None:
    page.get_by_role("tab", name="Stack").click()
    page.locator("#draw-many").click()
    expect(page.get_by_role("tab", name="Batch")).to_have_attribute("aria-selected", "true", timeout=WAIT_MS)
    expect(page.locator("#batch-like input")).to_have_value(re.compile(r"^From Stack's desk at \d\d:\d\d$"))
    expect(page.locator("#start-batch")).to_be_enabled()


def drawn(page: Page, server: browsing.Server) -> Path:
    """The one picture of the first batch, with the desk's own seed."""
    browsing.fill(page, "batch-seeds", "7")
    page.locator("#start-batch").click()
    expect(page.locator("#batch-plan")).to_contain_text("1 picture")
    folder = server.workspace / "batches" / "batch"
    until_so.until(page, lambda: any(folder.glob("*.png")), 240)
    return next(folder.glob("*.png"))


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(900)
def test_the_desk_is_drawn_as_it_is_and_is_there_after_reload_and_restart(
    browser: Browser, server: browsing.Server
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    opened(page, server.address)
    page.locator("#render").click()
    expect(page.locator("#recent img")).to_have_count(1, timeout=WAIT_MS)
    (rendered,) = (server.workspace / "renders").glob("7-*.png")
    send(page)
    says = page.locator("#batch-says")
    for words in ("cat at 0.6 (schedule, region)", "style at 0.7 (text weight 0.3)", "64 × 96 px", "3 steps", "blurry"):
        expect(says).to_contain_text(words)
    expect(page.locator("#batch-sample img")).to_be_visible()
    assert not list((server.workspace / "stacks").glob("*")), "nothing was named"

    page.wait_for_timeout(2500)  # what changed is on its way to be kept
    page.reload()
    expect(page.locator("#batch-like input")).to_have_value(re.compile("From Stack's desk"))
    page.goto("about:blank")
    server.kill()
    server.start()
    until_so.come_back(page, server.address)
    expect(page.locator("#batch-like input")).to_have_value(re.compile("From Stack's desk"))
    expect(says).to_contain_text("cat at 0.6 (schedule, region)")

    picture = drawn(page, server)
    assert_same(picture, rendered)
    assert "Traceback" not in server.log(), server.log()


def assert_same(picture: Path, rendered: Path) -> None:
    """The same pixels and, but for where the files lie, the same recipe."""
    both = [Image.open(path).convert("RGB") for path in (picture, rendered)]
    assert both[0].size == (64, 96) and ImageChops.difference(*both).getbbox() is None
    recipes = [picture_metadata.read(path).recipe for path in (picture, rendered)]
    assert recipes[0] == recipes[1]


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(900)
def test_two_tabs_each_keep_the_desk_that_they_sent(browser: Browser, server: browsing.Server) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    first, second = context.new_page(), context.new_page()
    opened(first, server.address)
    send(first)
    first.get_by_label("Prompts, one a line").fill("a fox")
    first.get_by_label("Prompts, one a line").press("Tab")
    second.set_default_timeout(WAIT_MS)
    second.goto(server.address)
    second.get_by_role("tab", name="Stack").click()
    browsing.fill(second, "weight-1", "0.1")
    send(second)
    expect(second.locator("#batch-says")).to_contain_text("cat at 0.1")
    # What was typed in Batch is not taken away.
    told = second.locator(".toast-body")
    expect(told).to_contain_text("The prompts that stand in Batch stay", timeout=WAIT_MS)
    expect(second.locator("#batch-prompts textarea")).to_have_value("a fox")

    expect(first.locator("#batch-says")).to_contain_text("cat at 0.6")
    first.locator("#batch-prompts textarea").fill("")
    first.locator("#batch-prompts textarea").press("Tab")
    picture = drawn(first, server)
    recipe = picture_metadata.read(picture).recipe or {}
    assert [lora["weight"] for lora in recipe["adapters"]] == [0.6, 0.7] and recipe["prompt"] == "a red apple"
    assert len(list((server.workspace / "desks").glob("*.toml"))) == 2
    assert not first.locator(".toast-body.error").count() and not second.locator(".toast-body.error").count()
    assert "Traceback" not in server.log(), server.log()


# What is kept.


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def test_a_stack_is_kept_once_whoever_sends_it_and_other_stacks_beside_it(context: Context) -> None:
    stacks = [StackConfig(prompt=words, seed=3) for words in ("a fox", "an owl", "a fox")]
    keys = [desk_stacks.keep(context, stack) for stack in stacks]
    assert keys[0] == keys[2] != keys[1]
    assert [batch_likes.stack(context, key).prompt for key in keys] == ["a fox", "an owl", "a fox"]
    assert batch_likes.choices(context, None) == [], "a desk is offered to the page that sent it"
    assert [name for _, name in batch_likes.choices(context, keys[1])] == [keys[1]]
    assert [name for _, name in batch_likes.choices(context, *keys, "desk:x", None)] == keys[:2]


def test_every_setting_of_the_desk_reaches_the_batch(context: Context, tmp_path: Path) -> None:
    mask = tmp_path / "half.png"
    Image.linear_gradient("L").save(mask)
    a_lora(context.loras / "ash.safetensors", 0.1)
    (sha256,) = context.find_loras()
    lora = AdapterChoice(
        sha256=sha256, weight=2.5, text_weight=-0.3, blocks=("IN=0.5", "MID=0"), schedule="points 0:0 0.3:1 1:0.5",
        region=f"mask {masks.add(context, mask)}", trigger=True,
    )  # fmt: skip
    stack = StackConfig(
        adapters=(lora,), mode="switch", wide_weights=True, prompt="a red apple,\nat dusk", negative_prompt="grey",
        seed=77, sampler="euler", steps=9, guidance_scale=4.5, guidance_rescale=0.4, width_px=96, height_px=160,
    )  # fmt: skip
    wanted = path_gate.checked(context, stack)
    left_out = {"version", "base", "family", "true_guidance_scale"}  # of one value here
    of_lora = {"file", "name", "enabled"}
    assert not [key for key in StackConfig.model_fields if key not in left_out and not changed(stack, key)]
    assert not [key for key in AdapterChoice.model_fields if key not in of_lora and not changed(lora, key)]
    found = batch_likes.stack(context, desk_stacks.keep(context, wanted))
    assert found == wanted

    # As `velatura batch` reads what Batch begins.
    path = tmp_path / "jobs.toml"
    path.write_text(batches.composed(context, found, "", "1", "", "").text, encoding="utf-8")
    (row,) = jobs_file.read(path, jobs_file.Defaults())
    assert row.stack == wanted, row.problem


def changed(settings: AdapterChoice | StackConfig, key: str) -> bool:
    return bool(getattr(settings, key) != type(settings).model_fields[key].default)


def test_the_eldest_are_forgotten_first(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_stacks, "_MOST", 3)
    keys = [desk_stacks.keep(context, StackConfig(seed=seed)) for seed in (1, 2, 3, 1, 4)]
    here = [key for key in dict.fromkeys(keys) if desk_stacks.path_of(context, key)]
    assert here == [keys[0], keys[2], keys[4]]


@pytest.mark.parametrize(
    "key", ["", None, "desk:", "desk:../jobs.sqlite", "desk:/etc/passwd", "desk:*", "desk:\0", "\ud800", "x.toml"]
)
def test_what_is_no_key_of_a_stack_is_refused_in_words(context: Context, key: str | None) -> None:
    desk_stacks.keep(context, StackConfig())
    with pytest.raises(ConfigError, match="no picture or stack"):
        batch_likes.stack(context, key)
    assert batch_likes.html(context, key) == "" and batch_likes.thumbnail(context, key) is None


def test_what_a_stack_says_is_only_text(context: Context) -> None:
    hostile = "<img src=x onerror=1>"
    key = desk_stacks.keep(context, StackConfig(prompt=hostile, negative_prompt=hostile))
    assert "<img" not in batch_likes.html(context, key) and "&lt;img" in batch_likes.html(context, key)
    kept = StackConfig(adapters=(AdapterChoice(name=hostile, sha256="0" * 64),))
    assert batch_likes.html(context, desk_stacks.keep(context, kept)) == "", "its LoRA isn't here"
