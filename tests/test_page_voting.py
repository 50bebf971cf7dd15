"""Votes over a run's checkpoints in a real browser: from a run to its grid, to a winner that is taken to Stack."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import voting
from app.context import Context
from tests import plain
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM
from tests.test_page_batch_rating import box, context, expect, show  # noqa: F401
from tests.viewed_pictures import at, enlarge
from trainer import file_names, lora_file, presets, session
from trainer.config import StackConfig
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), NEEDS_CHROMIUM]
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def step_file(context: Context, step: int) -> lora_file.LoraInfo:  # noqa: F811
    folder = context.runs / "cat" / file_names.STEPS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cat-step-{step:06d}.safetensors"
    parts = {"lora_down.weight": torch.full((1, 32), step / 1000), "lora_up.weight": torch.ones(32, 1)}
    lora_file.save(path, {LAYER: parts}, {"ss_steps": str(step)}, torch.float32)
    return lora_file.inspect(path)


def a_grid(context: Context) -> dict[str, int]:  # noqa: F811
    """A finished batch of three steps in two scenes; the step that each picture is of, by its address' last part."""
    job = context.runner.submit("cat-steps", "prompt\n", "batch-csv")
    context.runner.table.put(job, state="finished")
    out, steps = context.batches / "cat-steps", {}
    out.mkdir()
    for step in (100, 300, 400):
        info = step_file(context, step)
        for seed in (1, 2):
            recipe, name = PngInfo(), f"{step}-{seed}"
            lora = {"sha256": info.sha256, "name": f"cat-step-{step:06d}", "weight": 0.8}
            stack = StackConfig.model_validate({"prompt": f"a cat {HOSTILE}", "seed": seed, "adapters": [lora]})
            recipe.add_text(picture_metadata.RECIPE_KEY, json.dumps(picture_metadata.travelling(stack)))
            Image.new("RGB", (64, 64), (step // 2, 80, 40 * seed)).save(out / f"{name}.png", pnginfo=recipe)
            steps[name] = step
    return steps


def shown(page: Page) -> tuple[str, str]:
    """The names of the two pictures that are shown."""
    sources = page.locator("#batch-vote .side img").evaluate_all("images => images.map(one => one.src)")
    left, right = (source.rpartition("/")[2].removesuffix(".png") for source in sources)
    return left, right


def voted(page: Page, key: str) -> None:
    before = page.locator("#batch-vote .vote").get_attribute("data-turn")
    page.keyboard.press(key)
    expect(page.locator("#batch-vote .vote")).not_to_have_attribute("data-turn", before or "")


@pytest.mark.parametrize("width", [1440, 420])
def test_two_are_voted_on_until_one_wins_and_it_is_taken_to_stack(
    context: Context,  # noqa: F811
    open_page: Callable[[], Page],
    width: int,
) -> None:
    steps = a_grid(context)
    page = show(open_page())
    page.set_viewport_size({"width": width, "height": 900})
    vote = page.locator("#batch-vote .vote")
    expect(vote).to_contain_text("No vote yet: 3 to choose from.")
    text = vote.inner_text()
    assert "step" not in text and "cat-step" not in (vote.locator(".pair").inner_html())
    left, right = shown(page)
    assert left[-1] == right[-1] and steps[left] != steps[right]  # of one seed

    # The same two after a reload; ties, skips and undo.
    page.reload()
    show(page)
    expect(vote).to_be_visible()
    assert shown(page) == (left, right)
    vote.locator(".side").first.focus()
    voted(page, "ArrowDown")
    voted(page, "s")
    voted(page, "u")
    voted(page, "u")
    assert shown(page) == (left, right)
    expect(vote.locator("[data-won=undo]")).to_be_disabled()

    # Seen full-screen, nothing says which is which, and nothing is voted.
    enlarge(page, vote.locator(".side").first)
    at(page, "1 of 2")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    at(page, "2 of 2")
    said = page.locator("dialog.viewer").inner_text()
    assert "the right picture" in said and "step" not in said and "0.8" not in said and "Prompt" not in said
    page.keyboard.press("Escape")
    assert shown(page) == (left, right)
    expect(vote.locator("[data-won=undo]")).to_be_disabled()

    # Whoever prefers later steps votes until one wins.
    for _ in range(60):
        left, right = shown(page)
        voted(page, "ArrowLeft" if steps[left] > steps[right] else "ArrowRight")
        if "wins" in vote.locator(".result").inner_text():
            break
    expect(vote.locator(".result")).to_contain_text(re.compile(r"step 400 at 0.8 wins: with \d+ votes"))
    expect(vote.locator(".strengths li").first).to_contain_text("step 400 at 0.8")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    num = len(voting.read(context.batches / "cat-steps")[0])

    # The votes are there after a reload, and the winner goes to Stack with its weight, and so into the library.
    page.reload()
    show(page)
    expect(vote.locator(".result")).to_contain_text(f"wins: with {num} votes")
    vote.get_by_role("button", name="Use this").click()
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(box(page, "lora-1")).to_have_value("cat-step-000400")
    assert page.locator("#weight-1 input[type=number]").input_value() == "0.8"
    assert (context.loras / "cat-step-000400.safetensors").is_file()


def test_a_runs_steps_at_two_weights_are_drawn_from_the_page(
    context: Context,  # noqa: F811
    open_page: Callable[[], Page],
) -> None:
    pictures = context.datasets / "cat"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (50 * number, 90, 60)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text("a cat")
    small: dict[str, Any] = {
        "family": "sd", "base": "imprimatura", "resolution_px": 64, "max_steps": 2, "batch_size": 1,
        "checkpoint_every_steps": 1, "preview_every_steps": 0, "preview.steps": 2, "preview.prompts": ["a cat"],
        "data.folder": str(pictures),
    }  # fmt: skip
    _, stream = session.start(presets.load(plain.CHARACTER, small), context.runs, "cat", None)
    assert list(stream)

    page = show(open_page())
    page.locator("#batch-source").get_by_text("Checkpoints", exact=True).click()
    expect(box(page, "batch-run")).to_have_value("cat")
    for elem_id, text in (("batch-steps", "9"), ("batch-seeds", "1"), ("batch-weights", "0.5, 1")):
        box(page, elem_id).fill(text)
    page.locator("#start-batch").click()
    expect(page.locator("#batch-plan")).to_contain_text("Steps: 9 can't be drawn; allowed: 1, 2")
    box(page, "batch-steps").fill("")
    page.locator("#start-batch").click()
    expect(page.locator("#batch-progress")).to_contain_text(re.compile(r"Finished.*4 of 4 pictures", re.DOTALL))
    expect(page.locator("#batch-vote .vote")).to_contain_text("No vote yet: 4 to choose from.")
