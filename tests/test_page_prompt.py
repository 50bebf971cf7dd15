"""Stack's prompts by keys, Esc, and a picture's text or a picture that is pasted, in a real browser."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import foreign_pictures
from tests import test_browser as browsing
from tests.test_page_rows import a_lora
from trainer.render import emphasis, tags

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

expect = browsing.playwright_api.expect
WAIT_MS = 120_000  # the suite's other files train beside this one
pytestmark = [pytest.mark.slow, browsing.pytestmark, pytest.mark.timeout(900)]
HTML = "<img src=x onerror=window.__owned=1>"
TEXT = "a wooden boat\nNegative prompt: blurry\nSteps: 5, Sampler: Euler, CFG scale: 3, Seed: 77, Size: 64x128"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsing.Server]:
    made = browsing.Server(tmp_path_factory.mktemp("prompt") / "workspace")
    (made.workspace / "loras").mkdir(parents=True)
    a_lora(made.workspace / "loras" / "ash.safetensors", 0.1)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def desk(browser: Browser, server: browsing.Server) -> Iterator[Page]:
    """The Stack tab without Live; an error in the page or a request that leaves this machine fails the test."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.address)
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: _note_foreign(request.url, server.address, problems))
    page.goto(server.address)
    opened(page)
    yield page
    assert page.evaluate("window.__owned") is None
    assert not problems, problems
    assert "Traceback" not in server.log(), server.log()


def _note_foreign(url: str, address: str, problems: list[str]) -> None:
    if not url.startswith((address, "data:", "blob:")):
        problems.append(f"asked for {url}")


def opened(page: Page) -> None:
    page.get_by_role("tab", name="Stack").click()
    page.locator("#live input").set_checked(False)
    page.locator(".shelf-card").first.wait_for()  # the shelf knows the family by then


def prompt(page: Page, name: str = "prompt") -> Locator:
    return page.locator(f"#stack-{name} textarea").first


def put(box: Locator, marked: str) -> None:
    """A text in the box, with the cursor at its `^`, or what stands between two selected."""
    start = marked.index("^")
    end = marked.replace("^", "", 1).find("^")
    box.fill(marked.replace("^", ""))
    box.evaluate("(box, [start, end]) => box.setSelectionRange(start, end)", [start, end if end >= 0 else start])


def selected(box: Locator) -> str:
    return str(box.evaluate("box => box.value.slice(box.selectionStart, box.selectionEnd)"))


CASES = [
    ("a re^d fox", "Control+ArrowUp", "a (red:1.1) fox"),
    ("a re^d fox", "Meta+ArrowDown", "a (red:0.9) fox"),
    ("a re^d fox", "Control+Shift+ArrowUp", "a (red:1.05) fox"),
    ("a (re^d:1.1) fox", "Control+ArrowDown", "a red fox"),
    ("a (re^d) fox", "Control+ArrowUp", "a (red:1.2) fox"),
    ("a ^red fox ^at dusk", "Control+ArrowUp", "a (red fox:1.1) at dusk"),
    ("a (^red fox^:1.05), dusk", "Control+Shift+ArrowDown", "a red fox, dusk"),
    ("(a ^red^ fox:1.2)", "Control+ArrowUp", "(a (red:1.1) fox:1.2)"),
    ("[re^d] fox", "Control+ArrowUp", "[(red:1.1)] fox"),
    ("a fox \\(ani^mal\\)", "Control+ArrowUp", "a fox (\\(animal\\):1.1)"),
    ("{re^d|blue} fox", "Control+ArrowUp", "{(red:1.1)|blue} fox"),
    ("{^red|blue^} fox", "Control+ArrowUp", "{red|blue} fox"),
    ("__col^our__ fox", "Control+ArrowUp", "(__colour__:1.1) fox"),
    ("a <lora:as^h:0.8> fox", "Control+ArrowUp", "a <lora:ash:0.9> fox"),
    ("a <lora:ash:0.5:0.8>^ fox", "Control+ArrowDown", "a <lora:ash:0.5:0.7> fox"),
    ("a <lora:ash^> fox", "Control+Shift+ArrowUp", "a <lora:ash:1.05> fox"),
    ("a red ^ fox", "Control+ArrowUp", "a red  fox"),
    ("猫^ at dusk", "Control+ArrowUp", "(猫:1.1) at dusk"),
]


def test_ctrl_and_an_arrow_change_a_weight_and_undo_takes_it_back(desk: Page) -> None:
    box = prompt(desk)
    for before, keys, after in CASES:
        put(box, before)
        box.press(keys)
        assert box.input_value() == after, (before, keys)
        box.press("Control+z")
        if after != before.replace("^", ""):
            assert box.input_value() == before.replace("^", ""), (before, keys)

    # What is selected stays so: the same key goes on with it.
    put(box, "a ^red fox^, dusk")
    for _ in range(3):
        box.press("Control+ArrowUp")
    assert (box.input_value(), selected(box)) == ("a (red fox:1.3), dusk", "red fox")
    assert ("red fox", 1.3) in emphasis.parse_attention(box.input_value())
    for _ in range(3):
        box.press("Control+ArrowDown")
    assert (box.input_value(), selected(box)) == ("a red fox, dusk", "red fox")
    put(box, "<lora:ash:19.95>^")
    for _ in range(3):
        box.press("Control+ArrowUp")
    assert tags.take_tags(box.input_value()).loras == (tags.LoraTag("ash", 20.0),)

    # The negative prompt too; and the page knows of it, which keeps it over a reload.
    negative = prompt(desk, "negative_prompt")
    put(box, "a re^d fox")
    box.press("Control+ArrowUp")
    put(negative, "blu^rry")
    negative.press("Control+ArrowUp")
    assert negative.input_value() == "(blurry:1.1)"
    desk.locator("#stack-seed input").first.focus()
    desk.wait_for_timeout(2500)
    desk.reload()
    opened(desk)
    expect(prompt(desk)).to_have_value("a (red:1.1) fox")
    expect(prompt(desk, "negative_prompt")).to_have_value("(blurry:1.1)")


def test_where_weights_of_words_are_not_read_the_keys_say_so_and_change_tags_alone(desk: Page) -> None:
    desk.get_by_role("button", name="Base model").click()
    desk.locator("#stack-family input").click()
    desk.get_by_role("option", name="FLUX.1", exact=True).click()
    box, said = prompt(desk), desk.locator("#prompt-tools .prompt-said")
    put(box, "a re^d fox")
    box.press("Control+ArrowUp")
    expect(said).to_have_text("FLUX.1 reads no weights of words: say it in the sentence.")
    assert box.input_value() == "a red fox"
    put(box, "a <lora:ash^:1> fox")
    expect(said).to_be_empty()
    box.press("Control+ArrowDown")
    assert box.input_value() == "a <lora:ash:0.9> fox"


def test_esc_cancels_what_is_drawn_and_leaves_what_lies_over_the_page_alone(desk: Page) -> None:
    drawing, cancel = desk.locator("#drawing"), desk.locator("#cancel-render")
    before = drawing.inner_text()
    prompt(desk).fill("a red apple")
    prompt(desk).press("Escape")
    desk.wait_for_timeout(700)
    assert drawing.inner_text() == before, "nothing was drawn, so that nothing is said"
    browsing.fill(desk, "stack-steps", "150")
    browsing.fill(desk, "stack-width_px", "256")
    browsing.fill(desk, "stack-height_px", "256")
    desk.locator("#render").click()
    expect(drawing).to_contain_text("step", timeout=WAIT_MS)

    # The list of keys, an open list and a row that is dragged.
    desk.locator("#drawing").click()
    desk.keyboard.press("?")
    expect(desk.locator("dialog#keys")).to_be_visible()
    assert "cancel what is drawn" in desk.locator("dialog#keys").inner_text()
    desk.keyboard.press("Escape")
    expect(desk.locator("dialog#keys")).to_be_hidden()
    desk.locator("#lora-1 input").click()
    expect(desk.get_by_role("option").first).to_be_visible()
    desk.keyboard.press("Escape")
    expect(desk.get_by_role("option")).to_have_count(0)
    grip = desk.locator("#layer-1 .grip").bounding_box()
    assert grip is not None
    desk.mouse.move(grip["x"] + 4, grip["y"] + 4)
    desk.mouse.down()
    expect(desk.locator("#layer-1.lifted")).to_have_count(1)
    desk.keyboard.press("Escape")
    expect(desk.locator(".lifted")).to_have_count(0)
    desk.mouse.up()
    desk.wait_for_timeout(500)
    expect(cancel).to_be_enabled()

    desk.keyboard.press("Escape")
    expect(drawing).to_contain_text("Cancelled")
    expect(cancel).to_be_disabled()
    assert desk.locator("#recent img").count() == 0


def paste(page: Page, text: str) -> None:
    page.evaluate("text => navigator.clipboard.writeText(text)", text)
    prompt(page).press("Control+v")


def test_the_text_of_a_picture_is_pasted_as_ever_and_offered_as_a_stack(desk: Page) -> None:
    box, said = prompt(desk), desk.locator("#prompt-tools .prompt-said")
    box.fill("")
    paste(desk, "Steps: to a better life, a fox")
    expect(box).to_have_value("Steps: to a better life, a fox")
    assert not said.inner_text()

    # Not wanted: by its button, by Esc, by typing over it.
    for leave in ("button", "Escape", "fill"):
        box.fill("")
        paste(desk, TEXT)
        expect(box).to_have_value(TEXT)
        expect(said).to_contain_text("This is the text of a picture.")
        if leave == "button":
            said.get_by_role("button", name="Keep as text").click()
        elif leave == "Escape":
            box.press("Escape")
        else:
            box.fill("a fox")
        expect(said).to_be_empty()
        assert box.input_value() == ("a fox" if leave == "fill" else TEXT)

    # Wanted.
    box.fill("")
    paste(desk, TEXT.replace("Seed", "ENSD: 31337, Seed").replace("a wooden boat", f"a wooden boat {HTML}"))
    said.get_by_role("button", name="Use as a stack").click()
    expect(desk.locator("#stack-seed input").first).to_have_value("77")
    expect(box).to_have_value(f"a wooden boat {HTML}")
    expect(prompt(desk, "negative_prompt")).to_have_value("blurry")
    expect(desk.locator("#stack-width_px input").first).to_have_value("64")
    expect(desk.locator("#stack-warnings")).to_contain_text("Not taken from the text")
    expect(said).to_be_empty()


def test_a_workflow_that_is_pasted_is_offered_as_a_stack(desk: Page) -> None:
    box, said = prompt(desk), desk.locator("#prompt-tools .prompt-said")
    box.fill("")
    paste(desk, '{"a": "fox", "links": []}')
    desk.wait_for_timeout(300)
    assert not said.inner_text()
    box.fill("")
    paste(desk, json.dumps(foreign_pictures.comfyui_workflow()))
    expect(said).to_contain_text("This is a workflow or recipe.")
    said.get_by_role("button", name="Use as a stack").click()
    expect(desk.locator("#stack-seed input").first).to_have_value("77")
    expect(box).to_have_value("a watermill at dusk")
    expect(desk.locator("#stack-warnings")).to_contain_text("Not taken from the text")


def test_hostile_pastes_stay_harmless(desk: Page) -> None:
    box, said = prompt(desk), desk.locator("#prompt-tools .prompt-said")
    for text in ("(" * 200_000, f"{HTML}\n" * 5000, "<lora:" * 30_000, "half \ud800", f"{TEXT}{'x' * 200_000}"):
        box.fill("")
        box.evaluate(
            """(box, text) => {
              const given = new DataTransfer();
              given.setData('text/plain', text);
              box.dispatchEvent(new ClipboardEvent('paste', {clipboardData: given, bubbles: true, cancelable: true}));
              document.execCommand('insertText', false, text);
            }""",
            text,
        )
        desk.wait_for_timeout(100)
        assert not said.inner_text()
        for keys in ("Control+ArrowUp", "Control+a", "Control+ArrowUp", "Control+ArrowDown", "Escape"):
            box.press(keys)
    box.fill("")
    paste(desk, f"{HTML * 200}\nSteps: 5, Sampler: {HTML}, Seed: {HTML}, CFG scale: 3, Size: 64x64, {HTML}: {HTML}")
    said.get_by_role("button", name="Use as a stack").click()
    expect(desk.locator("#stack-warnings")).to_contain_text("Not taken from the text")
    assert desk.locator("img[src=x]").count() == 0


def test_a_picture_that_is_pasted_goes_where_a_dropped_one_goes(desk: Page, tmp_path: Path) -> None:
    picture = base64.b64encode(foreign_pictures.a1111(tmp_path / "x.png", TEXT).read_bytes()).decode()
    give = """([where, content]) => {
      const given = new DataTransfer(), raw = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
      given.items.add(new File([raw], 'boat.png', {type: 'image/png'}));
      const event = new ClipboardEvent('paste', {clipboardData: given, bubbles: true, cancelable: true});
      document.querySelector(where).dispatchEvent(event);
    }"""
    desk.evaluate(give, ["#stack-prompt textarea", picture])
    desk.wait_for_timeout(500)
    expect(desk.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    desk.get_by_role("tab", name="Batch").click()
    desk.evaluate(give, ["body", picture])
    expect(desk.get_by_role("tab", name="Stack")).to_have_attribute("aria-selected", "true")
    expect(desk.locator("#stack-seed input").first).to_have_value("77")
    expect(prompt(desk)).to_have_value("a wooden boat")
