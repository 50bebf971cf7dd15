"""The Stack tab as a mixing desk, in a real browser: shelf of LoRAs, region painted, schedule drawn, blocks set."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy
import pytest
import torch
from PIL import Image

from app import masks, stack_blocks, ui
from app.stack_rows import LoraRows
from app.stack_shelf import LoraShelf
from tests import test_browser as browsing
from trainer import lora_file
from trainer.config import AdapterChoice
from trainer.errors import DataError
from trainer.render import picture_metadata, regions, strength

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.slow, browsing.pytestmark]
expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def other(path: Path, metadata: dict[str, str]) -> Path:
    """A LoRA file that holds little."""
    parts = {"lora_down.weight": torch.full((2, 8), 0.1), "lora_up.weight": torch.full((8, 2), len(path.stem) / 100)}
    lora_file.save(path, {LAYER: parts}, metadata, torch.float32)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, trained: Path, trained_style: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path_factory.mktemp("mixing") / "workspace")
    loras = made.workspace / "loras"
    loras.mkdir(parents=True)
    for lora in (trained, trained_style):
        shutil.copy(lora, loras / lora.name)
    other(loras / f"{browsing.HOSTILE}.safetensors", {"modelspec.trigger_phrase": browsing.HOSTILE})
    other(loras / "elsewhere.safetensors", {"ss_sd_model_name": "anotherModel.safetensors"})
    made.start()
    yield made
    made.kill()


@pytest.fixture
def desk(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """The Stack tab with `cat` in its first row."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(server.address)
    page.get_by_role("tab", name="Stack").click()
    page.locator("#live input").set_checked(False)
    card(page, "cat").click()
    expect(page.locator("#lora-1 input")).to_have_value("cat")
    yield page
    assert page.evaluate("window.__owned") is None
    assert "Traceback" not in server.log(), server.log()
    context.close()


def card(page: Page, name: str) -> Locator:
    return page.locator(".shelf-card").filter(has=page.get_by_text(name, exact=True))


def field(page: Page, key: str) -> Locator:
    return page.locator(f"#layer-1-{key}").locator("textarea, input").first


def draw(page: Page, act: str) -> Locator:
    """The overlay, opened for the first row."""
    if not page.locator(f"#draw-{act}-1").is_visible():
        page.locator("#more-1 button").first.click()
        page.locator("#texts-1").click()
    page.locator(f"#draw-{act}-1").click()
    overlay = page.get_by_role("dialog")
    expect(overlay).to_be_visible()
    return overlay


def use(page: Page) -> None:
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("dialog.act[data-act]")).to_be_hidden()


def drag(page: Page, area: Locator, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A stroke of the mouse between two places, as shares of an area."""
    box = area.bounding_box()
    assert box
    (x, y), (to_x, to_y) = [(box["x"] + px * box["width"], box["y"] + py * box["height"]) for px, py in (start, end)]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=8)
    page.mouse.up()


def recipe(page: Page, server: browsing.Server) -> dict[str, Any]:
    """What the first LoRA of a picture that is drawn now was told."""
    before = set((server.workspace / "renders").glob("*.png"))
    browsing.fill(page, "stack-steps", "2")
    page.locator("#render").click()
    expect(page.locator("#drawing")).to_contain_text("Ctrl+Enter", timeout=WAIT_MS)
    page.wait_for_function("document.querySelector('#picture img')", timeout=WAIT_MS)
    (path,) = set((server.workspace / "renders").glob("*.png")) - before
    settings: dict[str, Any] = (picture_metadata.read(path).recipe or {})["adapters"][0]
    return settings


def test_a_card_fills_the_first_free_row_once_and_the_shelf_is_searched_here(desk: Page) -> None:
    expect(desk.locator(".shelf-card")).to_have_count(4)
    hostile = desk.locator(".shelf-card").filter(has_text="<img")
    expect(hostile).to_have_count(1)
    expect(card(desk, "elsewhere")).to_have_class(re.compile("unfit"))
    expect(card(desk, "elsewhere")).to_contain_text("for another model")
    expect(card(desk, "cat")).not_to_have_class(re.compile("unfit"))

    # In a row already: nothing is added, the row is shown.
    card(desk, "cat").click()
    expect(desk.locator("#layer-1")).to_have_class(re.compile("flashed"))
    expect(desk.locator("#lora-2 input")).to_have_value("")

    # Found without a word to the server, put by Enter.
    asked: list[str] = []
    desk.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    desk.get_by_label("Find a LoRA").fill("STY")
    expect(desk.locator(".shelf-card:visible")).to_have_count(1)
    assert asked == []
    desk.get_by_label("Find a LoRA").press("Enter")
    expect(desk.locator("#lora-2 input")).to_have_value("style")
    expect(desk.locator("#weight-2 input[type=number]")).to_have_value("1")
    desk.get_by_label("Find a LoRA").fill("")
    hostile.click()
    expect(desk.locator("#lora-3 input")).to_have_value(re.compile("<img"))


def test_a_painted_region_is_the_mask_that_acts_and_comes_back(desk: Page, server: browsing.Server) -> None:
    overlay = draw(desk, "region")
    canvas = overlay.locator("canvas")
    overlay.get_by_label("Brush size").fill("128")
    drag(desk, canvas, (0.2, 0.1), (0.2, 0.9))
    drag(desk, canvas, (0.8, 0.5), (0.9, 0.5))
    overlay.get_by_role("button", name="Undo").click()
    use(desk)
    expect(field(desk, "region")).to_have_value(re.compile(r"^mask painted-[0-9a-f]{8}\.png$"))
    path = server.workspace / "masks" / field(desk, "region").input_value().removeprefix("mask ")
    mask = numpy.asarray(Image.open(path))
    assert mask.ndim == 2 and mask.shape == (512, 512)
    assert (mask[60:450, 60:140] == 255).all() and not mask[:, 200:].any()

    # It is what the picture is drawn with.
    expected = regions.resolved(AdapterChoice(region=f"mask {path}"), (8, 8))
    assert recipe(desk, server)["region"] == expected
    acting = regions.mask(AdapterChoice(region=expected), (8, 8))
    assert acting is not None and acting[4, 1] == 1 and not acting[:, 4:].any()

    # It comes back, and is only changed by Use.
    overlay = draw(desk, "region")
    opaque = "(x) => document.querySelector('dialog canvas').getContext('2d').getImageData(x, 256, 1, 1).data[3]"
    desk.wait_for_function(f"({opaque})(100) === 255")
    assert desk.evaluate(opaque, 400) == 0
    expect(overlay.locator(".act-stage")).to_have_css("background-image", re.compile(r"^url\("))
    overlay.get_by_role("button", name="Invert").click()
    assert [desk.evaluate(opaque, x) for x in (100, 400)] == [0, 255]
    overlay.get_by_role("button", name="Clear").click()
    desk.get_by_role("button", name="Use", exact=True).click()
    expect(overlay.get_by_role("status")).to_contain_text("Nothing is painted")
    desk.keyboard.press("Escape")
    expect(overlay).to_be_hidden()
    expect(field(desk, "region")).to_have_value(f"mask {path.name}")
    assert desk.evaluate("document.activeElement.id") == "draw-region-1"


def test_a_drawn_schedule_is_spelled_as_it_is_read(desk: Page, server: browsing.Server) -> None:
    overlay = draw(desk, "schedule")
    overlay.get_by_role("button", name="Fade in").click()
    use(desk)
    expect(field(desk, "schedule")).to_have_value("linear 0 1")

    # A point by a click, moved by the mouse and by keys.
    overlay = draw(desk, "schedule")
    drag(desk, overlay.locator("svg"), (0.53, 0.2), (0.53, 0.6))
    dots = overlay.get_by_role("slider")
    expect(dots).to_have_count(3)
    dots.nth(2).press("ArrowDown")
    use(desk)
    text = field(desk, "schedule").input_value()
    points = strength.schedule(AdapterChoice(schedule=text)).points
    assert re.fullmatch(r"points 0:0 0\.\d+:0?\.\d+ 1:0\.95", text), text
    assert 0.45 < points[1][0] < 0.55 and 0.5 < points[1][1] < 0.9

    # It comes back as it was; a double click takes the point away again.
    overlay = draw(desk, "schedule")
    expect(dots.nth(1)).to_have_attribute("aria-valuenow", f"{points[1][1]:g}")
    dots.nth(1).dblclick()
    expect(dots).to_have_count(2)
    use(desk)
    expect(field(desk, "schedule")).to_have_value("linear 0 0.95")
    assert recipe(desk, server)["schedule"] == "linear 0 0.95"

    # What it can't show stays.
    browsing.fill(desk, "layer-1-schedule", "points 0:-1 1:3")
    overlay = draw(desk, "schedule")
    expect(overlay.get_by_role("status")).to_contain_text("is left alone")
    use(desk)
    expect(field(desk, "schedule")).to_have_value("points 0:-1 1:3")
    draw(desk, "schedule").get_by_role("button", name="Start anew").click()
    overlay.get_by_role("button", name="First half").click()
    use(desk)
    expect(field(desk, "schedule")).to_have_value("steps 0:1 0.5:0")


def test_blocks_are_sliders_and_keys_stay_in_the_overlay(desk: Page, server: browsing.Server) -> None:
    overlay = draw(desk, "blocks")
    sliders = overlay.get_by_role("slider")
    expect(sliders).to_have_count(5)
    overlay.get_by_role("button", name="Only up blocks").click()
    overlay.get_by_role("slider", name="MID").press("ArrowUp")
    use(desk)
    written = "IN0=0\nIN1=0\nMID=0.05"
    expect(field(desk, "blocks")).to_have_value(written)
    assert recipe(desk, server)["blocks"] == written.split("\n")

    browsing.fill(desk, "layer-1-blocks", "IN=0.5\nOUT1=2")
    overlay = draw(desk, "blocks")
    expect(overlay.locator(".act-factor")).to_have_text(["0.5", "0.5", "1", "1", "2"])
    for _ in range(30):
        desk.keyboard.press("Tab")
        assert desk.evaluate("document.activeElement.closest('dialog') !== null")
    desk.keyboard.press("Escape")
    browsing.fill(desk, "layer-1-blocks", "attn2=0")
    overlay = draw(desk, "blocks")
    expect(overlay.get_by_role("status")).to_contain_text("is left alone")
    desk.keyboard.press("Escape")
    expect(field(desk, "blocks")).to_have_value("attn2=0")


def png(size: tuple[int, int]) -> str:
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_what_is_no_painted_region_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace")
    name = masks.add_painted(context, png((64, 32)))
    assert Image.open(io.BytesIO(base64.b64decode(masks.as_url(context, name).partition(",")[2]))).size == (64, 32)
    (context.masks / ".hidden.png").write_bytes(b"x")
    for asked in ("../jobs.sqlite", ".hidden.png", "*", str(context.masks / name), None, ["x"]):
        with pytest.raises(DataError, match="not here any more"):
            masks.as_url(context, asked)
    for url, problem in (
        ("data:image/svg+xml;base64,PHN2Zz4=", "is no PNG"),
        (None, "is no PNG"),
        ("data:image/png;base64,@@@", "damaged"),
        ("data:image/png;base64," + base64.b64encode(b"nothing").decode(), "painted region"),
        ("data:image/png;base64," + "A" * 2_000_001, "up to 2 MB"),
        (png((9000, 9000)), "megapixels"),
    ):
        with pytest.raises(DataError, match=problem):
            masks.add_painted(context, url)
    assert masks.names(context) == [name]


def test_what_sliders_write_is_what_strength_reads() -> None:
    """For a UNet with content and style apart, and for a transformer whose blocks share sliders."""

    def info(family: str, blocks: list[str]) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(family=family, blocks=dict.fromkeys(blocks))

    unet = [f"unet.{part}" for part in ("down_blocks.1", "mid_block.attentions.0", "up_blocks.0", "up_blocks.1")]
    sliders = stack_blocks.groups(info("sdxl", ["text_encoder.layers.3", *unet]))
    assert [group.label for group in sliders] == ["IN1", "MID", "OUT0", "OUT0 content", "OUT0 style", "OUT1"]
    factors = dict(stack_blocks.presets(sliders))["Only style layers"]
    lines = tuple(f"{group.patterns[0]}={factor:g}" for group, factor in zip(sliders, factors, strict=True))
    paths = [f"{block}.attentions.{number}.to_q" for block in unet for number in (0, 1)]
    acting = strength.block_factors(AdapterChoice(blocks=lines), paths)
    assert [path for path, factor in acting.items() if factor] == ["unet.up_blocks.0.attentions.1.to_q"]

    names = [f"transformer.{kind}.{number}" for kind in ("transformer_blocks", "single_transformer_blocks")
             for number in range(19)]  # fmt: skip
    sliders = stack_blocks.groups(info("flux", names))
    assert 2 < len(sliders) <= stack_blocks.MOST
    paths = [f"{name}.attn.to_q" for name in names]
    for group in sliders:
        lines = tuple(f"{pattern}=0" for pattern in group.patterns)
        acting = strength.block_factors(AdapterChoice(blocks=lines), paths)
        assert sum(not factor for factor in acting.values()) == len(lines)


def test_a_press_that_cannot_be_fills_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace")
    other(context.loras / "one.safetensors", {})
    (sha256,) = context.find_loras()
    with gr.Blocks():
        rows = LoraRows(context)
        rows.draw()
        shelf = LoraShelf(context, rows)

    def put(key: Any, chosen: list[str | None]) -> Any:
        held = {rows.num_shown: 2, **dict(zip(rows.choices, chosen, strict=True))}
        return shelf.put(held, gr.EventData(None, {"key": key}))

    none: list[str | None] = [None] * 5
    update = put(sha256, ["x", *none])
    assert update[rows.choices[1]]["value"] == sha256 and update[rows.weights[1]] == 1.0
    assert rows.choices[0] not in update and rows.choices[2] not in update
    assert put(sha256, [sha256, *none]) == gr.skip()
    for key in ("../../etc/passwd", "", None, "f" * 64, ["x"]):
        with pytest.raises(gr.Error, match="not here any more"):
            put(key, [None, *none])
    with pytest.raises(gr.Error, match="all 6 rows hold a LoRA"):
        put(sha256, ["x"] * 6)
