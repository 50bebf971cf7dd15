"""What takes a while says how far it is and can be cancelled."""

from __future__ import annotations

import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app import ui, zips
from app.cancel_line import Waiting
from app.context import Context
from app.render_requests import Cancelled, Rendering, mended_turns
from tests.page_fixtures import NEEDS_CHROMIUM
from tests.test_page_train import expect
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ConfigError


class Slow:
    """A page with a button for something of 40 parts, which `go` holds up."""

    def __init__(self, context: Context) -> None:
        self.ended: list[str] = []
        with gr.Blocks() as self.page:
            self.waiting = Waiting(context, "slow")
            self.told = gr.Textbox(elem_id="told")
            press = gr.Button("press", elem_id="press")
            refuse = gr.Button("refuse", elem_id="refuse")
            press.click(self.work, None, [self.told, *self.waiting.outputs()])
            refuse.click(self.refuse, None, [self.told, *self.waiting.outputs()])
            self.waiting.connect()

    @mended_turns
    def work(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from self.waiting.turns(request, "Counting", self._count, lambda text: {self.told: text})

    @mended_turns
    def refuse(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        def do(rendering: Rendering) -> str:
            raise ConfigError("it can't be counted.")

        yield from self.waiting.turns(request, "Counting", do, lambda text: {self.told: text})

    def _count(self, rendering: Rendering) -> str:
        try:
            for num in range(40):
                rendering.part_done(num, 40)
                time.sleep(0.15)
        except Cancelled:
            self.ended.append("cancelled")
            raise
        self.ended.append("whole")
        return "counted"


@pytest.fixture
def slow(browser: Any, tmp_path: Path) -> Iterator[tuple[Slow, Any]]:
    made = Slow(ui.open_workspace(tmp_path / "workspace"))
    page = browser.new_page()
    page.goto(ui.launch(made.page, server_name="127.0.0.1"))
    page.locator("#press").wait_for()
    yield made, page
    page.close()
    made.page.close()


@NEEDS_CHROMIUM
def test_work_says_how_far_it_is_and_how_long_it_takes_still(slow: tuple[Slow, Any]) -> None:
    made, page = slow
    page.locator("#press").click()
    expect(page.locator("#slow-progress")).to_contain_text(re.compile(r"Counting: \d+ of 40, \d+ s left"))
    expect(page.locator("#slow-progress [role=progressbar]")).to_have_attribute("aria-valuenow", re.compile(r"\d+"))
    expect(page.locator("#told textarea")).to_have_value("counted", timeout=30_000)
    expect(page.locator("#slow-progress")).to_be_hidden()
    expect(page.locator("#slow-cancel")).to_be_hidden()
    assert made.ended == ["whole"]


@NEEDS_CHROMIUM
def test_work_is_cancelled_and_can_be_begun_again(slow: tuple[Slow, Any]) -> None:
    made, page = slow
    page.locator("#press").click()
    page.locator("#slow-cancel").click()
    expect(page.locator("#slow-progress")).to_contain_text("Cancelled")
    expect(page.locator("#slow-cancel")).to_be_hidden()
    page.locator("#press").click()
    expect(page.locator("#told textarea")).to_have_value("counted", timeout=30_000)
    assert made.ended == ["cancelled", "whole"]


@NEEDS_CHROMIUM
def test_work_that_is_refused_says_why_and_leaves_no_line(slow: tuple[Slow, Any]) -> None:
    _, page = slow
    page.locator("#refuse").click()
    expect(page.locator(".toast-body")).to_contain_text("it can't be counted.")
    expect(page.locator("#slow-cancel")).to_be_hidden()


class Counted(Rendering):
    """Notes what it is told, and is cancelled after so many parts."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most, self.told = most, list[tuple[int, int]]()

    def part_done(self, num: int, num_parts: int) -> None:
        self.told.append((num, num_parts))
        if len(self.told) > self.most:
            self.cancel()
        super().part_done(num, num_parts)


@pytest.fixture(scope="module")
def two(trained: Path, trained_style: Path) -> StackConfig:
    adapters = tuple(AdapterChoice(file=str(path), name=path.stem) for path in (trained, trained_style))
    return StackConfig(adapters=adapters, steps=2)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return ui.open_workspace(tmp_path_factory.mktemp("waiting") / "workspace")


@pytest.mark.parametrize("rank", [0, 2])
def test_the_map_and_one_lora_tell_each_layer_and_end_when_cancelled(
    context: Context, two: StackConfig, rank: int
) -> None:
    for work in (context.analyse, lambda stack, rendering: context.bake(stack, "both", rank, rendering)):
        whole = Counted()
        work(two, whole)
        numbers, totals = [num for num, _ in whole.told], {total for _, total in whole.told}
        assert len(totals) == 1 and numbers == sorted(set(numbers)) and len(numbers) == max(totals) > 10
        loras = sorted(context.loras.iterdir())
        with pytest.raises(Cancelled):
            work(two, Counted(5))
        assert sorted(context.loras.iterdir()) == loras  # no half of a file
        assert work(two, Counted()) is not None


def test_a_zip_tells_each_file_and_is_not_there_when_cancelled(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{num}.png" for num in range(8)]
    for num, picture in enumerate(pictures):
        picture.write_bytes(bytes([num]) * 100)
    entries: list[zips.Entry] = [(picture.name, picture) for picture in pictures]
    with pytest.raises(Cancelled):
        zips.write(tmp_path / "a.zip", entries, Counted(3).part_done)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".png"]
    counted = Counted()
    with zipfile.ZipFile(
        zips.write(tmp_path / "a.zip", [*entries, ("b.txt", iter(["ä\n"]))], counted.part_done)
    ) as zipped:
        assert zipped.read("7.png") == pictures[7].read_bytes() and zipped.read("b.txt") == "ä\n".encode()
    assert counted.told == [(num, 9) for num in range(9)]


def test_what_is_begun_anew_ends_what_was_begun_before(context: Context) -> None:
    request: Any = SimpleNamespace(session_hash="one")
    with gr.Blocks():
        waiting = Waiting(context, "again")
    held, first = threading.Event(), []

    def hold(rendering: Rendering) -> str:
        first.append(rendering)
        while not held.wait(0.02):
            rendering.check()
        return "whole"

    turns = waiting.turns(request, "Holding", hold, lambda text: {"answer": text})
    begun = threading.Thread(target=lambda: list(turns))
    begun.start()
    while not first:
        time.sleep(0.01)
    answers = list(waiting.turns(request, "Holding", lambda rendering: "second", lambda text: {"answer": text}))
    begun.join(20)
    assert answers[-1]["answer"] == "second" and first[0].is_cancelled and not begun.is_alive()
    assert not context.desks.of("one").works
