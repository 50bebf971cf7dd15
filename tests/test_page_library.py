"""The Library in a real browser: cards, notes and ratings that stay, the trash, and whatever is dropped."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests import test_browser
from tests.test_app_retrained import VERDICT
from tests.test_browser import HOSTILE, Server, server  # noqa: F401  # fixtures
from tests.test_library_keeping import lora
from trainer import lora_file, presets
from trainer.config import StackConfig
from trainer.other_trainers import importing
from trainer.report import compared

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.timeout(400), test_browser.pytestmark]
expect = test_browser.playwright_api.expect
expect.set_options(timeout=60_000)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:  # noqa: F811
    """The Library of a workspace with two LoRAs, a run, a picture and a dataset."""
    fill_workspace(server.workspace)
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.set_default_timeout(60_000)
    show(opened, server)
    yield opened
    assert opened.evaluate("window.__owned") is None
    assert "Traceback" not in server.log(), server.log()


def fill_workspace(workspace: Path) -> None:
    from trainer.render.picture_metadata import RECIPE_KEY, travelling

    folder = workspace / "runs" / "cat"
    (folder / "samples").mkdir(parents=True)
    presets.save(presets.load(presets.names()[0], {"data.folder": str(workspace / "datasets" / "mine")}),
                 folder / "config.toml")  # fmt: skip
    Image.new("RGB", (64, 64), "teal").save(folder / "samples" / "step-000010-1.png")
    lora(folder / "cat.safetensors", 0.2)
    info = lora_file.inspect(lora(workspace / "loras" / "fox.safetensors", 0.4))
    lora(workspace / "loras" / f"{HOSTILE.replace('/', '')}.safetensors", 0.6)
    picture = PngInfo()
    stack = StackConfig.model_validate(
        {"prompt": f"a fox {HOSTILE}", "adapters": [{"sha256": info.sha256, "name": "fox", "weight": 0.7}]}
    )
    picture.add_text(RECIPE_KEY, json.dumps(travelling(stack)))
    Image.new("RGB", (64, 64), "orange").save(workspace / "renders" / "1-abc.png", pnginfo=picture)
    (workspace / "datasets" / "mine").mkdir()
    Image.new("RGB", (64, 64), "red").save(workspace / "datasets" / "mine" / "a.png")


def show(page: Page, server: Server) -> None:  # noqa: F811
    page.goto(server.address)
    page.get_by_role("tab", name="Library").click()
    expect(page.locator("#library-cards .card")).to_have_count(3)


def kind(page: Page, name: str) -> None:
    page.locator("#library-kind").get_by_text(name, exact=True).click()


def choose(page: Page, name: str) -> None:
    page.locator("#library-cards .card", has_text=name).first.click()
    expect(page.locator("#library-details h3")).to_contain_text(name)


def box(page: Page, elem_id: str) -> Any:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def drop(page: Page, *paths: Path) -> None:
    page.locator("#library-drop input[type=file]").set_input_files([str(path) for path in paths])


def wait_said(page: Page, server: Server, kind: str, *words: str) -> None:  # noqa: F811
    """Until the notes of a kind hold these words on the server's disk."""
    path = server.workspace / "notes" / f"{kind}.json"
    for _ in range(300):
        text = path.read_text() if path.is_file() else ""
        if all(word in text for word in words):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{words} are not in {path}")


def test_cards_are_pictures_and_what_is_said_of_them_stays(page: Page, server: Server) -> None:  # noqa: F811
    """Harm 9: nothing could be rated, noted or renamed; the Library showed raw JSON."""
    choose(page, "fox")
    details = page.locator("#library-details")
    expect(details).to_contain_text("1 picture drawn with it")
    assert details.locator(".uses img").evaluate("image => image.complete && image.naturalWidth") > 0
    expect(page.locator("#library-raw")).to_be_hidden()

    # A note as it is typed, and a rating; another tab writes beside it.
    assert page.context.browser is not None
    second = page.context.browser.new_page()
    show(second, server)
    choose(second, "fox")
    box(page, "library-note").press_sequentially("soft light", delay=20)
    box(second, "library-note").press_sequentially("too strong at 1", delay=20)
    wait_said(page, server, "loras", "soft light", "too strong at 1")
    second.close()
    page.locator("#library-rating").get_by_text("★★★★", exact=True).click()
    expect(page.locator(".card", has_text="fox").locator(".stars")).to_have_text("★★★★")

    # A new name, which every tab then has.
    box(page, "library-name").fill("Red fox")
    page.locator("#library-rename").click()
    expect(details.locator("h3")).to_have_text("Red-fox")
    assert (server.workspace / "loras" / "Red-fox.safetensors").is_file()
    show(page, server)
    choose(page, "Red-fox")
    expect(box(page, "library-note")).to_have_value("soft light\ntoo strong at 1")

    # Search finds words of the note; cards are reached by keyboard.
    box(page, "library-search").press_sequentially("strong")
    expect(page.locator("#library-cards .card")).to_have_count(1)
    box(page, "library-search").fill("")
    expect(page.locator("#library-cards .card")).to_have_count(3)
    page.locator("#library-cards .card", has_text="cat").focus()
    page.keyboard.press("Enter")
    expect(details.locator("h3")).to_have_text("cat")


def test_the_trash_gives_back_and_asks_twice(page: Page, server: Server) -> None:  # noqa: F811
    """Harm 9: nothing could be deleted."""
    for name, card in (("Datasets", "mine"), ("Pictures", "1-abc"), ("Runs", "cat")):
        kind(page, name)
        choose(page, card)
        page.locator("#library-throw").click()
        expect(page.locator("#library-cards .card")).to_have_count(0)
    assert not (server.workspace / "datasets" / "mine").exists()

    # One comes back.
    kind(page, "Trash")
    expect(page.locator("#library-cards .card")).to_have_count(3)
    page.locator("#library-cards .card", has_text="mine").click()
    page.locator("#library-restore").click()
    expect(page.locator("#library-restore")).to_be_hidden()
    expect(page.locator("#library-details h3")).to_have_text("mine")
    assert (server.workspace / "datasets" / "mine" / "a.png").is_file()

    # The first click deletes nothing.
    kind(page, "Trash")
    page.locator("#empty-trash").click()
    expect(page.locator("#empty-trash-sure")).to_contain_text("Delete 2 things for good")
    assert len(list((server.workspace / "trash").glob("*/*"))) == 2
    page.locator("#empty-trash-keep").click()
    expect(page.locator("#empty-trash-sure")).to_be_hidden()
    page.locator("#empty-trash").click()
    page.locator("#empty-trash-sure").click()
    expect(page.locator("#library-cards")).to_contain_text("The trash is empty")
    assert list((server.workspace / "trash").glob("*/*")) == []


@pytest.mark.slow
def test_a_retrainings_verdict_stands_at_its_run(page: Page, server: Server) -> None:  # noqa: F811
    answer = asdict(VERDICT) | {"old": f"{HOSTILE}.safetensors", "new": "cat.safetensors"}
    (server.workspace / "runs" / "cat" / compared.FILE).write_text(json.dumps(answer))
    kind(page, "Runs")
    choose(page, "cat")
    expect(page.locator("#library-details")).to_contain_text(VERDICT.sentence)
    expect(page.locator("#library-details")).to_contain_text(f"old: {HOSTILE}.safetensors")


def test_what_is_dropped_opens_where_it_belongs(page: Page, server: Server, tmp_path: Path) -> None:  # noqa: F811
    """Harm 11: a kohya config gave nine errors; and a file of any kind is taken by the one zone."""
    recipe = Path(__file__).parent / "other_trainers" / "recipes" / "sdxl_sd_scripts.toml"
    drop(page, recipe)
    arrivals = page.locator("#library-arrival")
    expect(arrivals).to_contain_text("A recipe of sd-scripts.")
    expect(arrivals.locator(".offer")).to_contain_text("What it changes")
    assert not page.locator("#open-arrival").is_visible() and presets.own() == {}
    page.locator("#keep-arrival").click()
    expect(arrivals).to_contain_text("It is kept as the preset")
    expect(page.locator("#library-details .recipe-keys summary")).to_contain_text("What became of its")
    page.locator("#open-arrival").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    steps = str(importing.read(recipe).settings["max_steps"])
    expect(box(page, "field-max_steps")).to_have_value(steps)
    page.get_by_role("tab", name="Library").click()

    # A zip opens in Dataset.
    with zipfile.ZipFile(tmp_path / "paintings.zip", "w") as archive:
        archive.write(server.workspace / "datasets" / "mine" / "a.png", "a.png")
    drop(page, tmp_path / "paintings.zip")
    expect(arrivals).to_contain_text("They are the new dataset paintings")
    page.locator("#open-arrival").click()
    expect(page.get_by_role("tab", name="Dataset")).to_have_attribute("aria-selected", "true")
    expect(box(page, "dataset")).to_have_value("paintings")

    # A LoRA, and a picture's stack, open in Stack.
    page.get_by_role("tab", name="Library").click()
    drop(page, lora(tmp_path / "new.safetensors", 0.9))
    expect(arrivals).to_contain_text("It is in the Library as new")
    page.locator("#open-arrival").click()
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(box(page, "lora-1")).to_have_value("new")
    page.get_by_role("tab", name="Library").click()
    shutil.copy(server.workspace / "renders" / "1-abc.png", tmp_path / "mine.png")
    drop(page, tmp_path / "mine.png")
    expect(arrivals).to_contain_text("kept as the stack mine")
    page.locator("#open-arrival").click()
    expect(box(page, "stack-prompt")).to_have_value(f"a fox {HOSTILE}")

    # Settings of a training of ours open in Train.
    page.get_by_role("tab", name="Library").click()
    presets.save(presets.load(presets.names()[0], {"max_steps": 77}), tmp_path / "seventy.toml")
    drop(page, tmp_path / "seventy.toml")
    page.locator("#open-arrival", has_text="Train").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(box(page, "field-max_steps")).to_have_value("77")


def drop_on(page: Page, selector: str, path: Path) -> None:
    """The file let go over a part of the page, as a browser tells of it."""
    given = page.evaluate_handle(
        """([name, content]) => {
          const given = new DataTransfer(), raw = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
          given.items.add(new File([raw], name));
          return given;
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode()],
    )
    for kind in ("dragover", "drop"):
        page.locator(selector).first.dispatch_event(kind, {"dataTransfer": given})


def test_a_file_dropped_on_any_tab_is_seen_by_the_library_and_opened(page: Page, tmp_path: Path) -> None:
    """Dropping was of one zone of the Library alone."""
    page.get_by_role("tab", name="Batch").click()
    drop_on(page, "#tab-batch", lora(tmp_path / "new.safetensors", 0.9))
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#lora-1 input")).to_have_value("new")
    settings = tmp_path / "seventy.toml"
    presets.save(presets.load(presets.names()[0], {"data.folder": "mine", "max_steps": 70}), settings)
    drop_on(page, "#stack-prompt", settings)
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(box(page, "field-max_steps")).to_have_value("70")
