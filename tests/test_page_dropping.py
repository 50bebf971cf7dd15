"""Several pictures dropped on Stack or pasted there: the first that opens is open, the others can be chosen."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from PIL import Image

from app import stack_dropping, ui
from app.stack_dropping import Offered
from app.tabs import stack as stack_tab
from tests import foreign_pictures
from tests import test_browser as browsing
from tests.test_page_rows import a_lora
from trainer.config import AdapterChoice, StackConfig
from trainer.render import picture_metadata

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
TEXT = "a wooden boat\nNegative prompt: blurry\nSteps: 5, Sampler: Euler, CFG scale: 3, ENSD: 1, Seed: 77, Size: 64x128"
HTML = "<img src=x onerror=window.__owned=1>"


def plain(path: Path, colour: str = "navy") -> Path:
    Image.new("RGB", (64, 64), colour).save(path)
    return path


def ours(path: Path, seed: int, *loras: AdapterChoice) -> Path:
    stack = StackConfig(prompt="a red apple", seed=seed, adapters=loras)
    return picture_metadata.save(picture_metadata.Picture(Image.new("RGB", (64, 64), "red"), stack), path)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """One that carries nothing, another tool's, ours, and ours with a LoRA that isn't here."""
    return [
        plain(tmp_path / "photo.png"),
        foreign_pictures.a1111(tmp_path / f"boat {HTML.replace('/', '')}.png", TEXT),
        ours(tmp_path / "apple.png", 5),
        ours(tmp_path / "gone.png", 6, AdapterChoice(sha256="0" * 64, name="gone")),
    ]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path / "workspace")
    (made.workspace / "loras").mkdir(parents=True)
    a_lora(made.workspace / "loras" / "ash.safetensors", 0.1)
    made.start()
    yield made
    made.kill()


def paste(page: Page, paths: Sequence[Path]) -> None:
    files = [(path.name, base64.b64encode(path.read_bytes()).decode()) for path in paths]
    page.evaluate(
        """files => {
          const given = new DataTransfer();
          for (const [name, content] of files) {
            const raw = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
            given.items.add(new File([raw], name, {type: 'image/png'}));
          }
          const how = {clipboardData: given, bubbles: true, cancelable: true};
          document.body.dispatchEvent(new ClipboardEvent('paste', how));
        }""",
        files,
    )


@pytest.mark.slow
@browsing.pytestmark
@pytest.mark.timeout(600)
def test_of_several_the_first_that_opens_is_open_and_the_others_are_chosen(
    browser: Browser, server: browsing.Server, pictures: list[Path]
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(WAIT_MS)
    page.goto(server.address)
    page.get_by_role("tab", name="Stack").click()
    page.locator("#live input").set_checked(False)
    row, seed = page.locator("#several"), page.locator("#stack-seed input").first
    expect(row.locator(".several")).to_be_hidden()

    # Pasted: the first carries nothing, so the second is open.
    paste(page, pictures)
    expect(row).to_contain_text("2 of 4 pictures can be opened; choose one.")
    expect(seed).to_have_value("77")
    expect(page.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(row.locator("li")).to_have_count(2)
    expect(row.locator("li").first).to_contain_text(re.compile("photo.png: the picture carries no Velatura recipe"))
    expect(row.locator("li").last).to_contain_text("gone.png: ")
    expect(page.locator("#stack-warnings")).to_contain_text("ENSD")

    # Chosen by keys; what could not be used of the other is not said of this one.
    row.get_by_role("button", name="apple.png").focus()
    page.keyboard.press("Enter")
    expect(seed).to_have_value("5")
    expect(row.get_by_role("button", name="apple.png")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#infotext textarea")).to_have_value(re.compile("Seed: 5,"))
    expect(page.locator("#stack-warnings")).to_be_hidden()
    row.get_by_role("button", name="boat").click()
    expect(seed).to_have_value("77")
    row.get_by_role("button", name="Close").click()
    expect(row.locator(".several")).to_be_hidden()

    # Dropped on the zone itself; a single one needs no choice.
    page.locator("#recipe-png input[type=file]").set_input_files(pictures[::-1])
    expect(seed).to_have_value("5")
    expect(row).to_contain_text("2 of 4 pictures can be opened; choose one.")
    page.locator("#recipe-png input[type=file]").set_input_files(pictures[1])
    expect(seed).to_have_value("77")
    expect(row.locator(".several")).to_be_hidden()
    assert not list((server.workspace / "stacks").glob("*")), "nothing was named"

    # None carries a stack: they are pictures to train on, as anywhere else.
    paste(page, [pictures[0], plain(pictures[0].with_name("photo 2.png"), "green")])
    expect(page.get_by_role("tab", name="Library")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#library-arrival")).to_contain_text("2 pictures")
    assert page.evaluate("window.__owned") is None
    assert "Traceback" not in server.log(), server.log()


# The rule, with hostile input.


@pytest.fixture
def tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stack_tab._Tab:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    context = ui.open_workspace(tmp_path / "workspace")
    with gr.Blocks():
        return stack_tab._Tab(context)


def test_more_than_can_be_looked_at_are_counted(tab: stack_tab._Tab, tmp_path: Path) -> None:
    paths = [str(ours(tmp_path / f"{seed}.png", seed)) for seed in range(stack_dropping.MOST + 3)]
    changes = tab.dropping.take(paths)
    offered = changes[tab.dropping.offered]
    assert [read.stack.seed for read in offered.reads] == list(range(stack_dropping.MOST))
    assert changes[tab.stage.opened].stack.seed == 0 and changes[tab.stage.dropped] is None
    assert offered.left == (f"3 more were not looked at; allowed: up to {stack_dropping.MOST} at once.",)


def test_a_stack_of_too_many_loras_is_left_and_the_next_is_open(tab: stack_tab._Tab, tmp_path: Path) -> None:
    for number in range(7):
        a_lora(tab.context.loras / f"{number}.safetensors", 0.1 + number)
    loras = [AdapterChoice(sha256=sha256) for sha256 in tab.context.find_loras()]
    paths = [ours(tmp_path / "many.png", 1, *loras), ours(tmp_path / "few.png", 2, *loras[:6])]
    changes = tab.dropping.take([str(path) for path in paths])
    assert changes[tab.stage.opened].stack.seed == 2
    (left,) = changes[tab.dropping.offered].left
    assert left.startswith("many.png: ") and "7 LoRAs; this page holds up to 6" in left


def test_where_none_opens_the_form_stays_and_each_reason_is_said(tab: stack_tab._Tab, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(HTML.encode())
    changes = tab.dropping.take([str(bad), str(plain(tmp_path / "photo.png"))])
    assert tab.stage.opened not in changes and changes[tab.dropping.html]["none"]
    notice = changes[tab.stage.warned]["value"]
    assert "None of the 2 pictures can be opened" in notice and "photo.png" in notice and "bad.png" in notice
    assert "<img src" not in notice and str(tmp_path) not in notice


@pytest.mark.parametrize("index", [-1, 2, 10**30, 1.0, True, "0", None, [0], {}])
def test_what_is_not_offered_is_refused_in_words(tab: stack_tab._Tab, tmp_path: Path, index: Any) -> None:
    paths = [str(ours(tmp_path / f"{seed}.png", seed)) for seed in (1, 2)]
    offered = tab.dropping.take(paths)[tab.dropping.offered]
    event: Any = SimpleNamespace(index=index)
    for there in (offered, Offered()):
        with pytest.raises(gr.Error, match="not here any more"):
            tab.dropping.choose(there, event)


@pytest.mark.parametrize("dropped", [None, [], ""])
def test_nothing_dropped_changes_nothing(tab: stack_tab._Tab, dropped: Any) -> None:
    assert tab.dropping.take(dropped) == gr.skip()
