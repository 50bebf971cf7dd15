"""Thirty hostile texts in every text the page lets one enter, and as names of all that lies in a workspace.

The fields are found in the page itself, tab by tab, so that a new one is tried without being named here. No text may
run, break the page, send a request away or make the server answer 500; `browsing.py` watches for that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import pytest
from PIL import Image

from app import browser_state, kept_fields, ui
from tests import browsing, test_browser
from tests.page_fixtures import WIDE
from tests.test_library_keeping import lora

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [test_browser.pytestmark, pytest.mark.timeout(900)]
expect = test_browser.playwright_api.expect

PAYLOADS = [
    # Markup and scripts.
    "<img src=x onerror=window.__owned=1>",
    "<script>window.__owned=1</script>",
    "<svg/onload=window.__owned=1><animate onbegin=window.__owned=1 attributeName=x dur=1s>",
    "\"><iframe srcdoc='<script>parent.__owned=1</script>'></iframe>",
    "' onfocus='window.__owned=1' autofocus='",
    "</textarea></title></style></script><img src=x onerror=window.__owned=1>",
    "<details open ontoggle=window.__owned=1><summary>x</summary></details>",
    "[a](javascript:window.__owned=1) ![b](https://example.invalid/pixel.png)",
    "javascript:window.__owned=1//",
    "data:text/html,<script>parent.__owned=1</script>",
    "<style>*{display:none!important}</style><link rel=stylesheet href=https://example.invalid/x.css>",
    "x}</style><style>body{background:url(https://example.invalid/x.png)}",
    "<base href=https://example.invalid/><form action=https://example.invalid/><input type=submit></form>",
    # Templates, formulas, formats.
    "${window.__owned=1} {{constructor.constructor('window.__owned=1')()}} <%= 1 %> #{1} {{value}}",
    "{0.__class__.__init__.__globals__} %s%n%x {prompt} __color__ {a|b} ${v=!{x}}",
    '=HYPERLINK("https://example.invalid","x"),+1+1,-2,@SUM(1),\t=cmd|\' /C calc\'!A0',
    "'; DROP TABLE job; --\" OR 1=1 /*",
    '{"__proto__": {"polluted": 1}, "__type__": "update", "value": [NaN, 1e999]}',
    "[[section]]\nkey = 1\n\"\"\" ''' \\u0000 \\",
    # Paths and links.
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini CON NUL COM1 a: ~root /dev/zero file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/ //example.invalid/x \\\\example.invalid\\share",
    # Letters.
    "a\x00b\x00.png",
    "\x01\x02\x07\x08\x0b\x0c\x0e\x1b[31mred\x1b[0m\x7f\x85\r\n\u2028\u2029",
    "\u202egnp.exe\u202c \u2066left\u2069 مرحبا שלום \u200f\u200e\ufeff\u200b\u00ad",
    "\ud800 lone \udfff surrogates \ufffe \uffff",
    "👩\u200d👩\u200d👧\u200d👦🏳️\u200d🌈" * 20 + "e" + "\u0301" * 300,
    "x" * 100_000,
    "<b>" * 5000 + "(" * 5000 + "[" * 2000 + ", " * 5000,
    "0x7fffffffffffffff 1e400 -0 ١٢٣ ½ ∞ nan 99999999999999999999999",
]
# Puts a text where a person would paste it, past any limit of the field, and leaves the field.
_PASTE = """
([field, text]) => {
  const kind = field.localName === 'textarea' ? HTMLTextAreaElement : HTMLInputElement;
  field.focus();
  Object.getOwnPropertyDescriptor(kind.prototype, 'value').set.call(field, text);
  field.dispatchEvent(new InputEvent('input', {bubbles: true, inputType: 'insertFromPaste'}));
  field.dispatchEvent(new Event('change', {bubbles: true}));
  field.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true}));
  field.dispatchEvent(new KeyboardEvent('keyup', {key: 'Enter', bubbles: true}));
  field.blur();
}
"""
_GIVE = """
(input, [kind, name]) => {
  const given = new DataTransfer(), all = {bubbles: true, cancelable: true, composed: true};
  given.items.add(new File(['no picture'], name, {type: 'text/x-none'}));
  const Kind = {drop: DragEvent, paste: ClipboardEvent}[kind];
  const event = new Kind(kind, {...all, dataTransfer: given, clipboardData: given});
  (input.parentElement ?? document.body).dispatchEvent(event);
}
"""
_TYPES = ("text", "search", "number", "url", "email", "tel", "password")
_FIELDS = f":is(textarea, input:not([type]), {', '.join(f'input[type={kind}]' for kind in _TYPES)}):enabled:visible"
# What a person would press next; what stands beside a field acts on it.
_ACTS = "button:is(.beside, #save-caption, #plan-batch):enabled:visible"


def names() -> list[str]:
    """The texts as a file system takes them."""
    cleaned = [
        re.sub(r"[/\x00]", "", text).encode("utf-8", "surrogateescape" if number % 2 else "replace")[:80]
        for number, text in enumerate(one.encode("utf-8", "replace").decode() for one in PAYLOADS)
    ]
    return sorted({text.decode("utf-8", "ignore").strip(". ") for text in cleaned} - {""})


def fill_workspace(workspace: Path) -> None:
    """One of everything under each of the names, captions and headers too."""
    browsing.fill_workspace(workspace)
    for number, name in enumerate(names()):
        folder = workspace / "datasets" / name
        folder.mkdir()
        Image.new("RGB", (32, 32), (number * 8, 90, 60)).save(folder / f"{name[:60]}.png")
        (folder / f"{name[:60]}.txt").write_bytes(PAYLOADS[number % len(PAYLOADS)].encode("utf-8", "surrogatepass"))
        lora(workspace / "loras" / f"{name[:60]}.safetensors", 0.1 + number / 100)
        (workspace / "runs" / name).mkdir()
        (workspace / "runs" / name / "config.toml").write_bytes(name.encode())
        (workspace / "stacks").mkdir(exist_ok=True)
        (workspace / "stacks" / f"{name[:60]}.toml").write_text(f"prompt = {json.dumps(name)}\n", encoding="utf-8")
    (workspace / "datasets" / "mine" / "broken.txt").write_bytes(b"\xff\xfe\x00<img src=x>")
    for kind in ("loras", "runs", "pictures", "stacks", "datasets"):
        (workspace / "notes").mkdir(exist_ok=True)
        (workspace / "notes" / f"{kind}.json").write_text(
            json.dumps({PAYLOADS[0]: {"note": PAYLOADS[1]}, "x": PAYLOADS})
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[test_browser.Server]:
    made = test_browser.Server(tmp_path_factory.mktemp("page") / "workspace")
    fill_workspace(made.workspace)
    made.start()
    yield made
    made.kill()
    for process in made.trainers():
        process.kill()


@pytest.fixture(scope="module")
def opened(server: test_browser.Server, chromium: Browser) -> Page:
    page = chromium.new_page(viewport=WIDE)
    page.set_default_timeout(60_000)
    page.on("dialog", lambda dialog: browsing.problems.append(f"a dialog: {dialog.message}") or dialog.dismiss())
    page.goto(server.address)
    return page


def prepare(page: Page, title: str) -> None:
    """That tab with all its fields there."""
    browsing.open_tab(page, title)
    if title == "Dataset":
        page.locator("#dataset input").click()
        page.get_by_role("option", name="mine", exact=True).click()
        page.locator("#dataset-gallery .thumbnail-item").first.click()
        expect(page.locator("#caption textarea")).to_be_enabled()
    if title == "Stack":
        page.locator("#live input").set_checked(False)
    if title == "Library":
        page.locator("#library-kind").get_by_text("LoRAs", exact=True).click()
        page.locator("#library-cards .card").first.click()
    browsing.unfold_all(page)


def still_well(page: Page, server: test_browser.Server) -> None:
    """Nothing ran, and page and server answer."""
    page.wait_for_timeout(500)
    assert page.evaluate("window.__owned") is None and page.evaluate("({}).polluted") is None
    assert (
        page.locator(
            "iframe, base[href*='example.invalid'], img[src=x], link[href*='example.invalid'], #tabs script"
        ).count()
        == 0
    )
    assert page.evaluate("fetch('/config').then(answer => answer.status)") == 200
    for title in ("Library", "Dataset"):
        browsing.open_tab(page, title)
        expect(page.get_by_role("tab", name=title)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#dataset-gallery")).to_be_visible()
    assert "Traceback" not in server.log(), server.log()


@pytest.mark.slow
@pytest.mark.parametrize("shift", range(len(PAYLOADS)))
def test_hostile_text_in_every_field_is_only_text(opened: Page, server: test_browser.Server, shift: int) -> None:
    """Each field gets another of the texts; over all shifts each gets all."""
    num_fields = 0
    for title in browsing.TABS:
        prepare(opened, title)
        handles: list[Any] = opened.locator(_FIELDS).element_handles()
        for number, handle in enumerate(handles):
            text = PAYLOADS[(number + shift) % len(PAYLOADS)]
            # Another listener may have taken the field away meanwhile.
            opened.evaluate(f"([field, text]) => field.isConnected && ({_PASTE})([field, text])", [handle, text])
        num_fields += len(handles)
        opened.wait_for_timeout(300)
        for button in opened.locator(_ACTS).element_handles():
            opened.evaluate("button => button.isConnected && !button.disabled && button.click()", button)
        opened.wait_for_timeout(700)
        opened.keyboard.press("Escape")
    assert num_fields > 100
    still_well(opened, server)
    opened.goto(server.address)  # what was kept of it comes back, as text
    opened.get_by_role("tab", name="Train").wait_for()
    still_well(opened, server)


def test_a_page_is_sent_whatever_was_kept_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a surrogate pair, kept, made every page of that browser an error from then on."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    workspace = tmp_path / "workspace"
    page = ui.build(workspace)
    assert isinstance(page, kept_fields.Page)
    browser = "0123456789abcdef" * 2
    (workspace / "browsers").mkdir()
    token = browser_state.ASKING.set(browser)
    for text in PAYLOADS:
        for kept in page.kept.values():
            names = {name: text for field, name in kept.names.items() if isinstance(field, gr.Textbox)}
            kept.states.change(browser, kept.drawn.name, names)
            json.dumps(page.config, default=str, ensure_ascii=False).encode()
            (workspace / "browsers" / f"{browser}.json").write_text(json.dumps({kept.drawn.name: names}))
            json.dumps(page.config, default=str, ensure_ascii=False).encode()
    browser_state.ASKING.reset(token)


@pytest.mark.slow
def test_hostile_names_are_only_text(opened: Page, server: test_browser.Server) -> None:
    """Of datasets, pictures, LoRAs, runs, stacks and notes, in every list and on every card."""
    opened.goto(server.address)
    for title in browsing.TABS:
        prepare(opened, title)
        for box in opened.locator("input[role=combobox]:enabled:visible").element_handles()[:12]:
            opened.evaluate("box => box.isConnected && box.focus()", box)
            opened.wait_for_timeout(100)
            opened.keyboard.press("Escape")
    for kind in opened.locator("#library-kind label").all_inner_texts():
        opened.locator("#library-kind").get_by_text(kind, exact=True).click()
        opened.wait_for_timeout(500)
        if opened.locator("#library-cards .card").count():
            opened.locator("#library-cards .card").first.click()
            opened.wait_for_timeout(300)
    still_well(opened, server)


@pytest.mark.slow
def test_hostile_names_of_uploads_are_only_names(opened: Page, server: test_browser.Server, tmp_path: Path) -> None:
    """Wherever the page takes a file."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "navy").save(picture)
    before = {path for path in server.workspace.parent.rglob("*") if server.workspace not in path.parents}
    for title in browsing.TABS:
        prepare(opened, title)
        for place in opened.locator(f"#tab-{title.lower()} input[type=file]").element_handles():
            # Dropped and pasted there too, as what Gradio itself refuses it shows by its name.
            for kind in ("drop", "paste"):
                place.evaluate(_GIVE, [kind, PAYLOADS[0]])
                opened.wait_for_timeout(400)
            many = place.get_attribute("multiple") is not None
            files = [
                {"name": text[:200].encode("utf-8", "replace").decode(), "mimeType": "image/png",
                 "buffer": picture.read_bytes()}
                for text in (PAYLOADS if many else PAYLOADS[:1])
            ]  # fmt: skip
            place.set_input_files(files)  # type: ignore[arg-type]
            opened.wait_for_timeout(800)
    still_well(opened, server)
    after = {path for path in server.workspace.parent.rglob("*") if server.workspace not in path.parents}
    assert after == before, "something was written beside the workspace"
