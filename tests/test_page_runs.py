"""What the Train tab shows of runs, in a real browser: previews as rows, and runs beside each other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from app import tabs, ui
from app.context import Context
from app.tabs import train
from tests.page_fixtures import HOSTILE, NEEDS_CHROMIUM
from trainer import presets
from trainer.events import Event, Planned, Sampled, Started, Step, Validated, to_line

if TYPE_CHECKING:
    from playwright.sync_api import Page

PROMPTS = ("a penguin, outline style", "a red apple, outline style")

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright_api.expect
expect.set_options(timeout=60_000)  # the suite's other files train beside this one
pytestmark = [pytest.mark.slow, NEEDS_CHROMIUM]


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(tabs, "registry", lambda: [train])
    return ui.open_workspace(tmp_path / "workspace")


def a_dataset(context: Context, name: str, pictures: Sequence[str]) -> None:
    folder = context.datasets / name
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.new("RGB", (64, 64), (40, 90, number * 40 % 255)).save(folder / picture)
        (folder / picture).with_suffix(".txt").write_text(f"a square, {HOSTILE}")


def previews(context: Context, run: str, steps: Sequence[int], prompts: Sequence[str] = PROMPTS) -> list[Event]:
    """Preview pictures of a run, in its folder, and what its log says of them."""
    folder, events = context.runs / run / "samples", list[Event]()
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for number, prompt in enumerate(prompts):
            name = f"step-{step:06d}-{number + 1}.png"
            Image.new("RGB", (128, 128), (step * 7 % 255, 120, 60 + 90 * number)).save(folder / name)
            events.append(Sampled(step, prompt, f"samples/{name}"))
    return events


def losses(steps: int, height: float = 1.0) -> list[Event]:
    return [Step(step, height / (1 + step / 50), 1e-4, 0.1, 0.5) for step in range(1, steps + 1)]


def a_run(context: Context, name: str, log: Sequence[Event], state: str = "finished", **settings: Any) -> None:
    """A run's folder with its log and settings, and its job, as if it had been trained here."""
    folder = context.runs / name
    folder.mkdir(parents=True, exist_ok=True)
    started = Started(name, 100, 0, 3, 0, 9, "cpu", "float32", "imprimatura")
    (folder / "events.jsonl").write_text("".join(map(to_line, [started, *log])))
    overrides = {"data.folder": str(context.datasets / "mine"), **settings}
    presets.save(presets.load("imprimatura-style", overrides), folder / "config.toml")
    job = context.runner.submit("x", (folder / "config.toml").read_text())
    with context.runner._connect() as connection:
        connection.execute("UPDATE job SET name = ?, state = ? WHERE id = ?", (name, state, job.id))


def append(context: Context, name: str, log: Sequence[Event]) -> None:
    with (context.runs / name / "events.jsonl").open("a") as file:
        file.write("".join(map(to_line, log)))


# Previews.


def steps_under(page: Page, row: int) -> list[str]:
    return page.locator("#samples .strip").nth(row).locator(".frames figcaption").all_inner_texts()


def test_previews_stand_in_a_row_for_each_prompt_from_the_base_to_the_newest_beside_what_it_learns_from(
    context: Context, open_page: Callable[[], Page]
) -> None:
    a_dataset(context, "mine", ["one.png", "two.png"])
    log = previews(context, "mine", range(0, 1000, 50))
    a_run(context, "mine", log)
    page = open_page()
    expect(page.locator("#samples .strip")).to_have_count(2, timeout=120_000)
    assert page.locator("#samples h4").all_inner_texts() == list(PROMPTS)
    assert steps_under(page, 0) == [f"step {step}" for step in range(0, 1000, 50)]
    learned = [page.locator("#samples .learned img").nth(row) for row in range(2)]
    assert [image.get_attribute("alt") for image in learned] == ["training picture one.png", "training picture two.png"]

    # The newest and the first are in view, though twenty don't fit.
    frames = page.locator("#samples .frames").first
    box = frames.bounding_box()
    for place in (".first", ".newest"):
        frame = frames.locator(place).bounding_box()
        assert box and frame and box["x"] - 1 <= frame["x"] <= box["x"] + box["width"] - frame["width"] + 1
    left, most = frames.evaluate("row => [row.scrollLeft, row.scrollWidth - row.clientWidth]")
    assert most > 500 and abs(left - most) < 2

    # With Ctrl a press opens the whole picture in a tab of its own, as of any link.
    with page.context.expect_page() as waiting:
        frames.locator(".newest a").click(modifiers=["Control"])
    whole = waiting.value
    whole.wait_for_load_state()
    assert whole.locator("img").evaluate("image => image.naturalWidth") == 128
    whole.close()


def test_a_new_preview_is_added_while_a_run_goes_on_and_nothing_is_sent_when_there_is_none(
    context: Context, open_page: Callable[[], Page]
) -> None:
    a_dataset(context, "mine", ["one.png"])
    a_run(context, "mine", [*previews(context, "mine", range(0, 600, 50)), *losses(3)], state="running")
    page = open_page()
    expect(page.locator("#samples .strip").first).to_contain_text("step 550", timeout=120_000)
    page.locator("#samples .frames").first.hover(position={"x": 200, "y": 50})
    page.mouse.wheel(-300, 0)
    page.wait_for_timeout(700)  # it moves smoothly
    stood = page.locator("#samples .frames").first.evaluate("row => row.scrollLeft")
    page.locator("#samples .strips").evaluate("strips => strips.id = 'as-sent'")
    append(context, "mine", [Step(9, 1.0, 1e-4, 0.1, 0.5)])
    expect(page.locator("#progress")).to_contain_text("step 9 of 100")
    assert page.locator("#as-sent").count() == 1  # steps alone send no pictures

    append(context, "mine", previews(context, "mine", [600]))
    expect(page.locator("#samples .strip").first).to_contain_text("step 600")
    assert steps_under(page, 1)[-1] == "step 600"
    # Who looked back at earlier ones still does; the other row stands at its end.
    lefts = page.locator("#samples .frames").evaluate_all(
        "rows => rows.map(row => [row.scrollLeft, row.scrollWidth - row.clientWidth])"
    )
    assert 0 < stood == lefts[0][0] < lefts[0][1] - 200 and abs(lefts[1][0] - lefts[1][1]) < 2


def test_hostile_logs_and_settings_show_no_picture_from_elsewhere_and_run_nothing(
    context: Context, open_page: Callable[[], Page], tmp_path: Path
) -> None:
    a_dataset(context, "mine", ["one.png", f"{HOSTILE.replace('/', '')}.png"])
    outside = tmp_path / "private"
    outside.mkdir()
    Image.new("RGB", (64, 64), "red").save(outside / "secret.png")
    (outside / "secret.txt").write_text("secret")
    page_file = context.runs / "evil" / "samples" / "page.html"
    log = previews(context, "evil", [0, 50], [HOSTILE])
    page_file.write_bytes((context.runs / "evil" / "samples" / "step-000050-1.png").read_bytes())
    log += [
        Sampled(60, HOSTILE, "samples/page.html"),
        Sampled(70, HOSTILE, str(outside / "secret.png")),
        Sampled(80, HOSTILE, "../../../private/secret.png"),
        Sampled(50, HOSTILE, "samples/step-000050-1.png", 0.99, HOSTILE),
    ]
    a_run(context, "evil", log, **{"data.folder": str(outside)})
    page = open_page()
    expect(page.locator("#samples .strip")).to_have_count(1, timeout=120_000)
    assert [text.split("\n")[0] for text in steps_under(page, 0)] == ["step 0", "step 50"]
    expect(page.locator("#samples .alarm")).to_contain_text("<img src=x")
    assert page.locator("#samples .learned").count() == 0 and page.locator("#samples img").count() == 2
    assert page.evaluate("window.__owned") is None


def test_one_batch_is_said_as_one(context: Context, open_page: Callable[[], Page]) -> None:
    a_run(context, "mine", [Planned([[64, 64, 3]], 1, 0)])
    page = open_page()
    expect(page.locator("#plan")).to_contain_text(re.compile(r"1 batch an epoch"), timeout=120_000)


# Comparing.


def compare(page: Page, *names: str) -> None:
    if not page.locator("#compare-runs").is_visible():
        page.locator("#run-comparison > button").click()
    for name in names:
        page.locator("#compare-runs input").click()
        page.get_by_role("option", name=name, exact=True).click()
    page.locator("#compare-runs input").blur()  # or it does not open again


def measured(step: int, loss: float) -> Validated:
    return Validated(step, loss, 0.9, 0.1, 0.05, 0.2, 0.9, 4)


def test_runs_are_compared_by_loss_by_settings_that_differ_and_by_their_last_previews(
    context: Context, open_page: Callable[[], Page]
) -> None:
    a_dataset(context, "mine", ["one.png"])
    shared, of_its_own = PROMPTS
    a_run(
        context, "small", [*previews(context, "small", [0, 50]), *losses(60), measured(50, 0.7)],
        **{"adapter.rank": 4},
    )  # fmt: skip
    a_run(
        context, "large", [*previews(context, "large", [0, 100], [shared]), *losses(100, 2.0)], state="running",
        **{"adapter.rank": 32, "learning_rate": 5e-4, "data.flip": False},
    )  # fmt: skip
    a_run(
        context, "seeded", [*previews(context, "seeded", [0, 100], [shared]), *losses(80)], state="stopped",
        **{"preview.seed": 77},
    )  # fmt: skip
    page = open_page()
    expect(page.locator("#job input")).to_have_value(re.compile("large"), timeout=120_000)
    compare(page, "small", "large")
    table = page.locator("#comparison table")
    expect(table).to_contain_text("large")
    told = [row.split("\t") for row in table.inner_text().splitlines() if row.strip()]
    assert sorted(told[1:]) == [
        ["Learning rate", "0.0015", "0.0005"], ["Mirror", "on", "off"], ["Rank", "4", "32"]
    ]  # fmt: skip
    lines = page.locator("#comparison svg polyline")
    assert [line.get_attribute("class") for line in lines.all()] == ["run-1", "run-1 dashed", "run-2"]
    colours = lines.evaluate_all("lines => lines.map(line => getComputedStyle(line).stroke)")
    assert colours[0] == colours[1] != colours[2]
    strips = page.locator("#comparison .strip")
    assert strips.count() == 1 and shared in strips.inner_text()  # the other prompt is the first run's alone
    assert [text.split("\n") for text in strips.locator("figcaption").all_inner_texts()] == [
        ["small", "step 50"], ["large", "step 100"]
    ]  # fmt: skip

    # A run that goes on is drawn on.
    ends = lines.last.get_attribute("points")
    append(context, "large", [*losses(140, 2.0)[100:], *previews(context, "large", [140], [shared])])
    expect(strips).to_contain_text("step 140")
    assert lines.last.get_attribute("points") != ends

    # A preview of another seed is none of the same picture; a run that is removed leaves the list.
    compare(page, "seeded")
    expect(table).to_contain_text("Preview seed")
    expect(strips.locator("figcaption")).to_have_count(2)
    shutil.rmtree(context.runs / "small")
    append(context, "large", losses(150)[140:])
    expect(table.locator("tr").first).not_to_contain_text("small")
    expect(page.locator("#compare-runs")).not_to_contain_text("small")


def test_long_hostile_and_broken_runs_are_compared_in_few_points_and_run_nothing(
    context: Context, open_page: Callable[[], Page]
) -> None:
    hostile = HOSTILE.replace("/", "")
    a_run(context, hostile, [*losses(5), *previews(context, hostile, [5], [HOSTILE])], **{"data.trigger": HOSTILE})
    a_run(context, "long", losses(100_000), **{"data.folder": "/home/somebody/private", "data.trigger": "plain"})
    a_run(context, "broken", losses(9))
    (context.runs / "broken" / "config.toml").write_text(f"family = '{HOSTILE}'")
    (context.runs / "folder" / "events.jsonl").mkdir(parents=True)
    (context.runs / "linked").symlink_to(context.runs / "long")
    page = open_page()
    expect(page.locator("#job input")).to_have_value(re.compile("broken"), timeout=120_000)
    compare(page, hostile, "long", "broken")
    view = page.locator("#comparison")
    expect(view).to_contain_text("The settings of broken can’t be read.")
    expect(view.locator("table")).to_contain_text("<img src=x")
    assert "somebody" not in view.inner_html() and "private" in view.inner_text()
    counts = view.locator("polyline").evaluate_all("lines => lines.map(line => line.getAttribute('points').split(' '))")
    assert max(map(len, counts)) == 400 and len(view.inner_html()) < 60_000
    assert page.evaluate("window.__owned") is None
    page.locator("#compare-runs input").click()
    options = page.get_by_role("option").all_inner_texts()
    assert not {"folder", "linked"} & {option.strip(" ✓\n") for option in options}


# Presets.


def card(page: Page, name: str) -> Any:
    return page.locator(f'#preset-cards [data-key="{name}"]')


def field(page: Page, elem_id: str) -> Any:
    return page.locator(f"#{elem_id} input, #{elem_id} textarea").first


def test_preset_cards_say_what_runs_here_and_fill_the_form_by_mouse_and_by_keyboard(
    context: Context, open_page: Callable[[], Page]
) -> None:
    a_dataset(context, "mine", ["one.png"])
    page = open_page()
    style, character = card(page, "imprimatura-style"), card(page, "imprimatura-character")
    expect(style).to_have_attribute("aria-pressed", "true", timeout=120_000)
    expect(style).to_contain_text("For 30-60 pictures of 128 px")
    expect(style).to_contain_text("Fits any card")
    page.set_viewport_size({"width": 420, "height": 900})
    box = style.bounding_box()
    assert box and box["height"] < 100  # three and a half cards filled the screen
    page.set_viewport_size({"width": 1440, "height": 900})

    # All else is below the chosen one, for those who want it.
    more = page.locator("#preset-cards .preset-cell details:visible")
    expect(more).to_have_count(1)
    more.locator("summary").click()
    for words in (
        "Memory: under 1.5 GiB, no GPU",
        "100 steps · rank 16",
        "Strength 1 (alpha / rank)",
        "Fits: CPU, 8, 12",
    ):
        expect(more).to_contain_text(words)
    expect(card(page, "sdxl-style")).to_be_hidden()  # its base isn't here

    # Arrows and Enter; what has the keyboard keeps it.
    style.focus()
    for _ in ("quick", "concept", "character"):
        page.keyboard.press("ArrowLeft")
    expect(character).to_be_focused()
    page.keyboard.press("Enter")
    expect(field(page, "preset")).to_have_value("Character on Imprimatura")
    expect(field(page, "field-preview-prompts")).to_have_value(re.compile("mokka"))
    expect(character).to_have_attribute("aria-pressed", "true")
    expect(style).to_have_attribute("aria-pressed", "false")
    expect(character).to_be_focused()

    # One whose base isn't here changes the whole form, and the panel says what to do.
    page.locator("#preset-cards .elsewhere > summary").click()
    expect(card(page, "sdxl-style")).to_contain_text("needs stabilityai/stable-diffusion-xl-base-1.0")
    expect(card(page, "sdxl-style")).to_contain_text("Fits any card")
    card(page, "sdxl-style").click()
    expect(field(page, "field-resolution_px")).to_have_value("1024")
    expect(page.locator("#forecast")).to_contain_text("isn't on this machine")
    page.get_by_role("button", name="Take Style on Imprimatura").click()
    expect(style).to_have_attribute("aria-pressed", "true")  # the mark follows what else sets the preset
    expect(card(page, "sdxl-style")).to_have_attribute("aria-pressed", "false")

    # Kept across a reload, and an unknown name changes nothing.
    card(page, "imprimatura-character").click()
    expect(field(page, "preset")).to_have_value("Character on Imprimatura")
    character.evaluate("card => { card.dataset.key = '../../etc/passwd'; card.click(); }")
    expect(page.locator("body")).to_contain_text("that preset is not here any more")
    expect(field(page, "preset")).to_have_value("Character on Imprimatura")
    page.wait_for_timeout(1500)  # by when a field is kept
    page.reload()
    expect(card(page, "imprimatura-character")).to_have_attribute("aria-pressed", "true", timeout=120_000)
