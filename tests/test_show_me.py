"""Show me: from an empty page to two LoRAs stacked, in jobs that outlive the page; cancelled when asked to."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from PIL import Image

from app import show_me, tabs, ui
from app.context import Context
from app.start_here import StartHere
from app.tabs import library, stack
from tests import browsing
from tests.page_fixtures import NEEDS_CHROMIUM
from trainer.config import BatchConfig, TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.events import Sampled, Step, to_line
from trainer.render.batch_manifest import COLUMNS

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=60_000)


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def begun(context: Context) -> show_me.Shown:
    """The one that was begun."""
    shown = show_me.read(context)
    assert shown is not None
    return shown


def test_one_action_copies_the_samples_and_queues_a_style_a_character_and_both(context: Context) -> None:
    show_me.begin(context)
    assert {"outline-style", "grey-cat"} <= set(context.dataset_names())
    both, character, style = context.runner.every()
    assert [job.kind for job in (style, character, both)] == ["train", "train", "batch-toml"]
    for job in (style, character):
        config = parse(TrainConfig, from_toml(job.config, "a job"), "a job")
        assert config.max_steps == show_me.STEPS and Path(config.data.folder).parent == context.datasets
    (loras,) = parse(BatchConfig, from_toml(both.config, "a job"), "a job").stacks
    assert [Path(lora.file).stem for lora in loras] == [style.name, character.name]

    # Asked again while it is at work, it is the same; there is a picture to see before anything was computed.
    assert len([show_me.begin(context) for _ in range(2)]) == 2 and len(context.runner.every()) == 3
    scene = show_me.scene(context, begun(context))
    assert len(scene.pictures) == 2 and not scene.is_over and scene.progress.headline == "Learning a style"


def test_it_is_found_again_by_a_new_server_and_cancelled_as_a_whole(context: Context) -> None:
    show_me.begin(context)
    again = ui.open_workspace(context.workspace)
    assert not show_me.scene(again, begun(again)).is_over
    show_me.cancel(again)
    assert {job.state for job in again.runner.every()} == {"stopped"}
    scene = show_me.scene(again, begun(again))
    assert scene.is_over and scene.progress.headline == "Cancelled"
    show_me.begin(again)
    assert len(again.runner.every()) == 6 and not show_me.scene(again, begun(again)).is_over


def test_it_stays_until_it_is_closed_and_can_be_had_again(context: Context) -> None:
    """What was over was lost with a reload, and after a cancel there was no way back."""
    with gr.Blocks():
        start = StartHere(context)
        start.draw_door()
        start.draw()
    show_me.begin(context)
    show_me.cancel(context)
    for updates in (start.opened(), start.look({}, False)):  # as after a reload, and as before
        assert updates[start.scene]["visible"] and updates[start.again]["visible"] and updates[start.close]["visible"]
    again = start.begin()
    assert again[start.cancel]["visible"] and not again[start.again]["visible"]
    show_me.cancel(context)
    assert not start.closed()[start.scene]["visible"] and not start.opened()[start.scene]["visible"]
    assert not start.opened()[start.panel]["visible"]  # there are datasets by now

    # The panel is a press away, and another press puts it away.
    assert start.toggled(False)[start.panel]["visible"] and start.toggled(False)[start.asked]
    assert not start.toggled(True)[start.panel]["visible"]
    assert start.look({}, True)[start.panel]["visible"]
    assert show_me.scene(context, begun(context)).progress.state != "running"
    start.begin()
    assert start.opened()[start.scene]["visible"]


def test_the_picture_lies_where_stack_finds_it_once_the_job_ends_whoever_looks(context: Context) -> None:
    """It was put there by the page that showed it, and by no other."""
    shown = show_me.begin(context)
    folder = context.batches / context.runner.get(shown.both).name
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "1.png")
    values = ["done" if column == "state" else "1" for column in COLUMNS]
    (folder / "manifest.csv").write_text(f"{','.join(COLUMNS)}\n{','.join(values)}\n")
    context.runner.table.put(context.runner.get(shown.both), state="running")
    context.runner._settle(context.runner.get(shown.both))  # as the runner finds that its process is gone
    assert context.runner.get(shown.both).state == "finished"
    assert (context.renders / f"show-me-{shown.both}.png").is_file()


def test_it_says_how_long_it_takes_yet_once_there_are_steps(context: Context) -> None:
    shown = show_me.begin(context)
    style = context.runner.get(shown.style)
    assert show_me.scene(context, shown).progress.detail == "Waiting its turn"
    log = context.runs / style.name / "events.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(to_line(Step(step, 1.0, 1e-4, 0.1, 0.5)) for step in range(1, 41)))
    context.runner.table.put(style, state="running", started=time.time() - 50)
    # 120 steps of half a second, and twice the 30 s that it took beside its steps.
    assert show_me.scene(context, shown).progress.detail == "step 40 of 80 · about 2 min left"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"style": 1}',
        '{"style": "x", "character": 2, "both": 3}',
        '{"style":1,"a":2}',
        '{"style": 1, "character": 2, "both": "../x"}',
        '{"style": 1, "character": 2, "both": 3, "closed": "no"}',
    ],
)
def test_a_file_that_is_none_of_ours_shows_nothing(context: Context, content: str) -> None:
    (context.workspace / "show-me.json").write_text(content)
    assert show_me.read(context) is None


def test_the_panel_is_for_an_empty_workspace_alone(context: Context) -> None:
    with gr.Blocks():
        start = StartHere(context)
        start.draw_door()
        start.draw()
    assert start.opened()[start.panel]["visible"]
    (context.datasets / "mine").mkdir()
    assert not start.opened()[start.panel]["visible"]


# In a browser.


def drawn_so_far(context: Context, steps: int = 80) -> show_me.Shown:
    """A scene as it is when the style has drawn all its previews, without a training."""
    shown = show_me.begin(context)
    style = context.runner.get(shown.style)
    folder = context.runs / style.name / "samples"
    folder.mkdir(parents=True)
    log = [Step(step, 1.0, 1e-4, 0.1, 0.5) for step in range(1, steps + 1)]
    for step in range(0, steps + 1, 10):
        Image.new("RGB", (128, 128), (step, 120, 60)).save(folder / f"{step}.png")
        log.append(Sampled(step, "a red apple", f"samples/{step}.png"))
    (folder.parent / "events.jsonl").write_text("".join(map(to_line, log)))
    context.runner.table.put(style, state="running", started=time.time() - 50)
    return shown


@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("width", [1440, 420])
def test_the_scene_is_low_shows_captions_whole_and_leads_back(
    context: Context, monkeypatch: pytest.MonkeyPatch, open_page: Callable[[], Page], width: int
) -> None:
    """It pushed the tabs 400 px down, cut its captions, and was gone for good once it was cancelled."""
    monkeypatch.setattr(tabs, "registry", lambda: [stack, library])
    drawn_so_far(context)
    page = open_page()
    page.set_viewport_size({"width": width, "height": 900})
    scene = page.locator("#show-me-scene")
    expect(scene.locator("figure")).to_have_count(11)
    box = scene.bounding_box()
    assert box and box["height"] < (250 if width > 1000 else 310)
    whole = (
        "all => all.every(one => one.scrollWidth <= one.clientWidth + 1 && one.scrollHeight <= one.clientHeight + 1)"
    )
    assert scene.locator("figcaption").evaluate_all(whole)
    expect(scene).to_contain_text("before it learns")

    # Cancelled, it can be had again, also after a reload.
    page.locator("#show-me-cancel").click()
    expect(page.locator("#show-me-again")).to_be_visible()
    page.reload()
    page.locator("#show-me-again").click()
    expect(page.locator("#show-me-cancel")).to_be_visible()
    assert len(context.runner.every()) == 6

    # Closed, it stays so, and the three ways in are a press away.
    page.locator("#show-me-cancel").click()
    page.locator("#show-me-close").click()
    expect(scene).to_be_hidden()
    page.reload()
    expect(page.locator("#start-door")).to_be_visible()
    expect(scene).to_be_hidden()
    page.locator("#start-door").click()
    expect(page.locator("#my-pictures")).to_be_visible()
    page.locator("#start-door").click()
    expect(page.locator("#my-pictures")).to_be_hidden()


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_look_that_was_begun_before_a_press_hides_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch, open_page: Callable[[], Page]
) -> None:
    monkeypatch.setattr(tabs, "registry", lambda: [stack, library])
    look = StartHere.look
    looks: list[bool] = []

    def slow(self: StartHere, before: dict[str, Any], asked: bool) -> Any:
        said = look(self, before, asked)
        looks.append(asked)
        time.sleep(1.5)
        return said

    monkeypatch.setattr(StartHere, "look", slow)
    context.runner.table.put(context.runner.submit("cat", "", "train"), state="finished")  # no empty workspace
    page = open_page()
    browsing.until(page, lambda: bool(looks))
    page.locator("#start-door").click()
    expect(page.locator("#my-pictures")).to_be_visible()
    page.wait_for_timeout(3000)
    expect(page.locator("#my-pictures")).to_be_visible()
    assert looks[0] is False
