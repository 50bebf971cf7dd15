"""What is seen while a picture is drawn, and what stays of a sheet that was cancelled: by the tab's own generators on
Imprimatura, and in a real browser.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from app import drawing_preview, sheets, ui
from app.context import Context
from app.drawing_preview import Looking
from app.render_requests import Desk, Rendering
from app.stack_pictures import Stage, Update
from app.tabs.stack import weight_sheet
from tests import test_browser as browsing
from tests.page_fixtures import NEEDS_CHROMIUM
from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata, step_pictures

WAIT_MS = 120_000  # the suite's other files train beside this one
PAGE: Any = SimpleNamespace(session_hash="a", headers={})


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A workspace on the base that ships, opened once for the tests below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield ui.open_workspace(tmp_path_factory.mktemp("live") / "workspace", [])


@pytest.fixture
def stage(context: Context) -> Stage:
    made = Stage(context)
    with gr.Blocks():
        made.draw()
    return made


@pytest.fixture
def desk(context: Context) -> Iterator[Desk]:
    made = context.desks.of(PAGE.session_hash)
    made.shown = made.pinned = made.sheet = made.stack = None
    made.is_passing = False
    yield made
    wait_for_drawing()
    for path in context.renders.glob("*.png"):
        path.unlink()


def wait_for_drawing() -> None:
    """Until the threads that draw have seen that nobody wants it."""
    for thread in threading.enumerate():
        if thread.name.startswith("drawing"):
            thread.join()


@pytest.fixture
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is time for a look after each step."""
    for name, value in {"LEAST_S": 0.0, "_SOON_S": 0.0, "EACH_S": 0.0, "MOST_SHARE": 1e9}.items():
        monkeypatch.setattr(drawing_preview, name, value)
    monkeypatch.setattr("app.stack_pictures.EACH_S", 0.0)


def stack(**changes: Any) -> StackConfig:
    return StackConfig(**({"prompt": "a fox", "width_px": 64, "height_px": 64, "steps": 12} | changes))


def passing(context: Context, stage: Stage, answers: list[Update]) -> list[Path]:
    """The files of pictures that were seen for a while."""
    placed = [Path(answer[stage.picture].get("value") or "") for answer in answers if stage.picture in answer]
    return [path for path in placed if path.parent == context.cache / "passing"]


# A picture.


def test_a_picture_is_seen_while_it_is_drawn_and_its_file_is_the_same_byte_for_byte(
    context: Context, stage: Stage, desk: Desk, always_looking: None, tmp_path: Path
) -> None:
    request = stack(guidance_scale=3.0)
    plain = picture_metadata.save(context.render(request), tmp_path)
    shown, answers = [], []
    for answer in stage.pictures(desk, request, quick=False):
        answers.append(answer)
        if seen := passing(context, stage, [answer]):
            shown.append(Image.open(seen[0]).size)
            assert desk.shown is None and desk.is_passing and not answer[stage.pin]["interactive"]
            assert stage.download not in answer and stage.shown not in answer
    assert shown and set(shown) == {(64, 64)}
    (drawn,) = context.renders.glob("*.png")
    assert desk.shown == drawn and not desk.is_passing and drawn.read_bytes() == plain.read_bytes()
    assert len(list((context.cache / "passing").iterdir())) <= 2, "those before are gone"


def test_a_cancelled_picture_gives_way_to_the_last_whole_one(
    context: Context, stage: Stage, desk: Desk, always_looking: None
) -> None:
    list(stage.pictures(desk, stack(steps=2), quick=False))
    whole = desk.shown
    answers = []
    for answer in stage.pictures(desk, stack(seed=2, steps=200), quick=False):
        answers.append(answer)
        if passing(context, stage, [answer]):
            stage.stop(PAGE)
    assert passing(context, stage, answers) and whole is not None
    assert answers[-1][stage.picture]["value"] == str(context.published(whole)) and desk.shown == whole
    assert len(list(context.renders.glob("*.png"))) == 1 and desk.rendering is None


def test_a_base_without_memory_for_a_look_draws_the_picture_all_the_same(
    context: Context, stage: Stage, desk: Desk, always_looking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def short(*args: Any) -> None:
        tried.append(args)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(step_pictures, "decode_small", short)
    answers = list(stage.pictures(desk, stack(steps=4), quick=False))
    assert len(tried) == 1 and not passing(context, stage, answers) and desk.shown is not None


@pytest.mark.parametrize(
    ("num_over", "steps", "drawn_s", "cost_steps", "due"),
    [
        (13, 25, 0.6, 0.1, False),  # over in 1.2 s
        (13, 25, 1.2, 0.1, True),  # in 2.5 s
        (13, 25, 1.2, 1.0, True),
        (13, 25, 1.2, 1.5, False),  # more than a tenth of what was drawn
        (9, 25, 0.9, 0.1, False),  # less than a second after the first step
        (24, 25, 2.3, 0.1, False),  # over in a moment
        (25, 25, 60.0, 0.0, False),  # the last step's is the picture itself
        (3, 4, 20.0, 0.1, True),  # few, slow steps
    ],
)
def test_a_look_is_taken_only_where_there_is_time_for_it(
    num_over: int, steps: int, drawn_s: float, cost_steps: float, due: bool
) -> None:
    rendering, request = Rendering(), stack(steps=steps)
    looks = Looking(None, rendering, {(request.base, 64, 64): cost_steps})  # type: ignore[arg-type]
    assert not looks.is_due(num_over, request, 1000.0 + drawn_s), "nothing was drawn yet"
    rendering.began = 1000.0
    assert looks.is_due(num_over, request, 1000.0 + drawn_s) is due
    rendering.expect(2)
    assert not looks.is_due(num_over, request, 1000.0 + drawn_s), "of a sheet the pictures are seen"


def test_looks_take_no_more_than_their_share_and_the_pace_leaves_them_out(context: Context) -> None:
    """On the clock that is there: whatever a look takes, the next one waits until it was a tenth of the drawing."""
    made: list[Looking] = []
    rendering = Rendering()

    def look(engine: Any) -> Any:
        made.append(Looking(engine, rendering, {}))
        return made[-1].look

    rendering.look = look
    context.render(stack(steps=150), rendering)
    (looks,) = made
    drawn_s = rendering.step_pace_s * 149 if rendering.step_pace_s else 0.0
    assert rendering.step_pace_s is not None and looks.num_looks > 0
    last_s = looks._last_s or 0.0
    assert looks.looked_s - last_s <= drawing_preview.MOST_SHARE * drawn_s


# A sheet.


def grid(num: int, trained: Path, **changes: Any) -> tuple[StackConfig, Any]:
    request = stack(adapters=(AdapterChoice(file=str(trained)),), **changes)
    return request, weight_sheet(request, [number / num for number in range(num)])


def drawn(stage: Stage, desk: Desk, asked: tuple[StackConfig, Any], act: Callable[[Rendering], None]) -> list[Update]:
    """What a grid answers; `act` is called in each of its turns."""
    answers = []
    for answer in stage.sheet(desk, *asked, "grid-1"):
        answers.append(answer)
        if desk.rendering is not None:
            act(desk.rendering)
    return answers


def test_a_cancelled_grid_keeps_what_is_drawn_with_empty_places_for_the_rest(
    context: Context, stage: Stage, desk: Desk, trained: Path
) -> None:
    def act(rendering: Rendering) -> None:
        if rendering.num_drawn and not rendering.is_cancelled:
            assert stage.progress in stage.stop(PAGE)

    answers = drawn(stage, desk, grid(12, trained), act)
    (path,) = context.renders.glob("*.png")
    cells = sheets.cells_of(path)
    assert cells and len(cells.labels) == 12 and 1 <= (num := len(cells.paths)) < 12
    assert passing(context, stage, answers), "the newest cell was seen meanwhile"
    assert f">{num} of 12 drawn, cancelled<" in answers[-1][stage.progress]
    assert not answers[-1][stage.cancel]["interactive"] and desk.sheet == path and desk.rendering is None

    # Each place has its label, and each cell that is there its stack.
    (shown,) = [answer[stage.cells] for answer in answers if stage.cells in answer and "value" in answer[stage.cells]]
    assert shown["visible"] and [label for _, label in shown["value"]] == cells.labels
    assert [isinstance(picture, Image.Image) for picture, _ in shown["value"]] == [False] * num + [True] * (12 - num)
    assert [_weight(cell) for cell in cells.paths] == pytest.approx([number / 12 for number in range(num)])

    # The sheet has the size of a whole one, and paper in its empty places.
    sheet = Image.open(path)
    assert sheet.width > 12 * 128
    right = sheet.crop((sheet.width - 120, sheet.height - 100, sheet.width - 20, sheet.height - 20))
    assert len(right.getcolors() or []) == 1


def _weight(cell: Path) -> float:
    recipe = picture_metadata.read(cell).recipe
    assert recipe is not None
    return float(recipe["adapters"][0]["weight"])


@pytest.mark.parametrize("who", ["the next request", "a picture that is chosen", "the page that closes"])
def test_a_grid_that_nobody_waits_for_any_more_leaves_nothing(
    context: Context, stage: Stage, desk: Desk, trained: Path, who: str
) -> None:
    asked, answers = stage.sheet(desk, *grid(12, trained), "grid-1"), []
    for answer in asked:
        answers.append(answer)
        if desk.rendering is not None and desk.rendering.num_drawn:
            break
    if who == "the page that closes":
        asked.close()  # type: ignore[attr-defined]
    elif who == "the next request":
        desk.begin(None)
        assert list(asked) == []
    else:
        desk.stop()
        desk.cancel()
        assert not any(stage.cells in answer and "value" in answer[stage.cells] for answer in asked)
    wait_for_drawing()
    assert not list(context.renders.glob("*.png"))


def test_a_grid_cancelled_before_its_first_cell_is_just_cancelled(
    context: Context, stage: Stage, desk: Desk, trained: Path
) -> None:
    def act(rendering: Rendering) -> None:
        if rendering.step and not rendering.num_drawn:
            stage.stop(PAGE)

    answers = drawn(stage, desk, grid(2, trained, steps=100), act)
    assert ">Cancelled<" in answers[-1][stage.progress] and not list(context.renders.glob("*.png"))


def test_each_kind_of_sheet_keeps_what_it_has(
    context: Context, trained: Path, trained_style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "_TOGETHER", 1)
    loras = tuple(AdapterChoice(file=str(path)) for path in (trained, trained_style))
    request = stack(adapters=loras, steps=3)
    for make in (sheets.of_each, sheets.of_modes):
        rendering = Rendering()
        tell = rendering.drew

        def drew(image: Image.Image, rendering: Rendering = rendering, tell: Any = tell) -> None:
            tell(image)
            rendering.stop()

        rendering.drew = drew  # type: ignore[method-assign]
        with context.engine(request, rendering) as engine:
            sheet = make(engine, request, rendering)
        assert 1 <= len(sheet.pictures) < len(sheet.labels) == rendering.num_pictures
        path = sheets.save(sheet, context.renders, "strip-1")
        cells = sheets.cells_of(path)
        assert cells and cells.labels == sheet.labels and len(cells.paths) == len(sheet.pictures)
        path.unlink()


# In a browser.


@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_long_picture_is_seen_and_a_cancelled_grid_stays(browser: Any, tmp_path: Path) -> None:
    expect = browsing.playwright_api.expect
    server = browsing.Server(tmp_path / "workspace")
    server.start()
    try:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        page.goto(server.address)
        page.get_by_role("tab", name="Stack").click()
        page.locator("#live input").set_checked(False)
        browsing.fill(page, "stack-prompt", "a red apple")

        # A picture of many steps is seen while it is drawn, in one and the same element, and cancelled it is gone.
        browsing.fill(page, "stack-steps", "500")
        page.locator("#render").click()
        image = page.locator("#picture img")
        expect(image).to_have_attribute("src", re.compile("/passing/"), timeout=WAIT_MS)
        first = image.get_attribute("src")
        image.evaluate("image => { image.dataset.same = 'yes' }")
        page.wait_for_function(
            "before => document.querySelector('#picture img').src !== before", arg=image.evaluate("image => image.src")
        )
        assert first != image.get_attribute("src") and image.get_attribute("data-same") == "yes", "it never went away"
        page.wait_for_function("document.querySelector('#picture img').naturalWidth > 0")
        expect(page.locator("#pin")).to_be_disabled()
        page.locator("#cancel-render").click()
        expect(image).to_have_count(0)

        # A grid over seeds, cancelled on its way.
        browsing.fill(page, "stack-steps", "12")
        page.locator("#grids button").first.click()
        page.locator("#axis-1 input").click()
        page.get_by_role("option", name="Steps", exact=True).last.click()
        expect(page.locator("#axis-values-1 textarea")).to_have_value("10-30 [3]")
        expect(page.locator("#num-axes")).to_have_text("3 pictures")
        browsing.fill(page, "axis-values-1", ", ".join(str(10 + number) for number in range(40)))
        page.locator("#render-axes").click()
        expect(page.locator("#drawing")).to_contain_text(re.compile(r"[3-9] of 40 pictures"), timeout=WAIT_MS)
        page.locator("#cancel-render").click()
        expect(page.locator("#drawing")).to_contain_text(re.compile(r"\d+ of 40 drawn, cancelled"), timeout=WAIT_MS)
        expect(page.locator("#cells img")).to_have_count(40)
        page.locator("#cells img").nth(1).click()
        expect(page.locator("#infotext textarea")).to_have_value(re.compile("Steps: 11,"), timeout=WAIT_MS)
        assert "Traceback" not in server.log(), server.log()
    finally:
        server.kill()
