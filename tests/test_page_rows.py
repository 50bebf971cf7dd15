"""The Stack tab's rows dragged into another order, by mouse, finger and keys; what they say goes with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
import torch

from app import ui
from app.stack_order import RowOrder
from app.stack_rows import ROWS, LoraRows
from tests import test_browser as browsing
from trainer import lora_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
pytestmark = [pytest.mark.slow, browsing.pytestmark, pytest.mark.timeout(900)]
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
NAMES = ("ash", "birch", "cedar")


def a_lora(path: Path, value: float) -> None:
    parts = {"lora_down.weight": torch.full((2, 8), 0.1), "lora_up.weight": torch.full((8, 2), value)}
    lora_file.save(path, {LAYER: parts}, {}, torch.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path_factory.mktemp("rows") / "workspace")
    (made.workspace / "loras").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        a_lora(made.workspace / "loras" / f"{name}.safetensors", 0.1 + number)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def desk(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """The Stack tab with three LoRAs, each with its own weight, the second soloed and the third told where it acts."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(server.address)
    page.get_by_role("tab", name="Stack").click()
    page.locator("#live input").set_checked(False)
    for number, name in enumerate(NAMES, 1):
        page.locator(".shelf-card").filter(has=page.get_by_text(name, exact=True)).click()
        expect(page.locator(f"#lora-{number} input")).to_have_value(name, timeout=WAIT_MS)
        browsing.fill(page, f"weight-{number}", f"0.{number}")
    page.locator("#solo-2 input").set_checked(True)
    page.locator("#more-3 button").first.click()
    page.locator("#texts-3").click()
    browsing.fill(page, "layer-3-region", "box 0 0 0.5 1")
    page.locator("#more-3 button").first.click()
    yield page
    assert "Traceback" not in server.log(), server.log()
    context.close()


def stands(page: Page, *names: str) -> None:
    """Each name in its row, with what it came with."""
    for place, name in enumerate(names, 1):
        number = NAMES.index(name) + 1
        expect(page.locator(f"#lora-{place} input")).to_have_value(name, timeout=WAIT_MS)
        weight = page.locator(f"#weight-{place} input").first
        expect(weight).to_have_value(f"0.{number}", timeout=WAIT_MS)
        solo = expect(page.locator(f"#solo-{place} input"))
        solo.to_be_checked() if number == 2 else solo.not_to_be_checked()
    row = names.index("cedar") + 1
    page.locator(f"#more-{row} button").first.click()
    expect(page.locator(f"#layer-{row}-region").locator("textarea, input").first).to_have_value("box 0 0 0.5 1")
    page.locator(f"#more-{row} button").first.click()


def middle(part: Locator) -> tuple[float, float]:
    part.scroll_into_view_if_needed()
    part.hover()  # it stands still and nothing lies over it
    box = part.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def below(page: Page, number: int) -> float:
    """A place in the lower part of a row."""
    box = page.locator(f"#layer-{number}").bounding_box()
    assert box
    return box["y"] + 0.9 * box["height"]


def test_a_row_is_dragged_by_mouse_and_stays_there_after_a_reload(desk: Page) -> None:
    x, y = middle(desk.locator("#layer-1 .grip"))
    desk.mouse.move(x, y)
    desk.mouse.down()
    desk.mouse.move(x, below(desk, 3), steps=8)
    expect(desk.locator("#layer-1")).to_have_class(re.compile("lifted"))
    expect(desk.locator("#layer-3")).to_have_class(re.compile("drop-below"))
    desk.mouse.up()
    expect(desk.locator("#layer-3 .grip")).to_be_focused()
    expect(desk.locator("#row-order .order-said")).to_have_text("LoRA 1 is now LoRA 3 of 3.", timeout=WAIT_MS)
    stands(desk, "birch", "cedar", "ash")
    desk.wait_for_timeout(3000)  # what changed is on its way to be kept
    desk.reload()
    stands(desk, "birch", "cedar", "ash")


def test_escape_and_a_drop_on_itself_change_nothing(desk: Page) -> None:
    x, y = middle(desk.locator("#layer-1 .grip"))
    for key in ("Escape", None):
        desk.mouse.move(x, y)
        desk.mouse.down()
        desk.mouse.move(x, below(desk, 2) if key else y + 3, steps=4)
        if key:
            desk.keyboard.press(key)
        desk.mouse.up()
    desk.wait_for_timeout(1000)
    stands(desk, *NAMES)


def test_a_row_is_dragged_by_a_finger(desk: Page) -> None:
    session = desk.context.new_cdp_session(desk)
    x, y = middle(desk.locator("#layer-3 .grip"))
    box = desk.locator("#layer-1").bounding_box()
    assert box
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for share in (0.3, 0.6, 1.0):
        point = {"x": x, "y": y + (box["y"] + 4 - y) * share}
        session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    stands(desk, "cedar", "ash", "birch")


def test_a_row_is_moved_by_keys_also_faster_than_the_server_answers(desk: Page) -> None:
    desk.locator("#layer-1 .grip").focus()
    desk.keyboard.press("Alt+ArrowDown")
    desk.keyboard.press("Alt+ArrowDown")
    stands(desk, "birch", "cedar", "ash")
    desk.locator("#solo-3 input").focus()
    desk.keyboard.press("Alt+ArrowUp")
    stands(desk, "birch", "ash", "cedar")
    desk.locator("#layer-1 .grip").focus()
    desk.keyboard.press("Alt+ArrowUp")  # there is no place above
    desk.wait_for_timeout(500)
    stands(desk, "birch", "ash", "cedar")


def test_every_handle_has_a_name_and_a_place_in_the_order_of_tabs(desk: Page) -> None:
    for number in (1, 2, 3):
        grip = desk.get_by_role("button", name=f"Move LoRA {number}: drag, or Alt and an arrow")
        expect(grip).to_have_attribute("tabindex", "0")


# The rule, with hostile input.


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoraRows:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = LoraRows(ui.open_workspace(tmp_path / "workspace"))
    with gr.Blocks():
        made.draw()
    return made


def holding(rows: LoraRows, num: int) -> dict[Any, Any]:
    held: dict[Any, Any] = {
        part: f"{row}/{place}" for row in range(ROWS) for place, part in enumerate(rows._parts(row))
    }
    return held | {rows.num_shown: num}


@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 0), (1, 1), (0, ROWS - 1), (ROWS - 1, 0)])
def test_a_moved_row_takes_everything_along_and_the_others_keep_their_order(
    rows: LoraRows, start: int, end: int
) -> None:
    held = holding(rows, ROWS)
    after = held | rows.moved(start, end, held)
    order = [str(after[rows.choices[row]]).partition("/")[0] for row in range(ROWS)]
    wanted = [str(row) for row in range(ROWS) if row != start]
    wanted.insert(end, str(start))
    assert order == wanted
    for row in range(ROWS):
        assert [after[part] for part in rows._parts(row)] == [
            f"{order[row]}/{place}" for place in range(len(rows._parts(row)))
        ]


NO_MOVES: list[dict[str, Any]] = [
    {}, {"from": 0}, {"from": -1, "to": 0}, {"from": 0, "to": 3}, {"from": 0, "to": 10**30}, {"from": "0", "to": 1},
    {"from": 0.5, "to": 1}, {"from": True, "to": 0}, {"from": None, "to": 1}, {"from": [0], "to": {}},
]  # fmt: skip


@pytest.mark.parametrize("data", NO_MOVES)
def test_a_move_that_cannot_be_changes_nothing(rows: LoraRows, data: dict[str, Any]) -> None:
    with gr.Blocks():
        order = RowOrder(rows)
        order.draw()
    held = holding(rows, 3) | {order.count: 4}
    answer = RowOrder.move.__wrapped__(order, held, SimpleNamespace(**data))
    assert answer == {order.count: 5, order.html: {"text": "", "count": 5}}
