"""The frame of the page: the guided path, and the keys under a question mark."""

from __future__ import annotations

import json
import re
import shutil
import types
from pathlib import Path

import gradio as gr
import pytest
import tomli_w
from parsed import ROOT
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import browser_state, dataset_notes, dataset_sets, guide, shortcuts, tabs, ui
from app.context import Context
from trainer.config import StackConfig
from trainer.render.picture_metadata import RECIPE_KEY, travelling

HOSTILE = "<img src=x onerror=1>"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def test_the_path_says_what_is_done_and_what_is_next(context: Context) -> None:
    with gr.Blocks():
        path = guide.Guide(context)

    def done() -> list[str]:
        return [step.word for step in path.steps("") if step.is_done]

    assert done() == [] and guide.html(path.steps("")).count('class="next"') == 1
    dataset_sets.copy_sample(context, "grey-cat")
    assert done() == ["Pictures", "Captions"]
    picture = context.pictures(context.datasets / "grey-cat")[0]
    picture.with_suffix(".txt").unlink()
    assert done() == ["Pictures"]
    dataset_notes.keep_checked(context, "grey-cat")  # as the Dataset tab's check does
    assert done() == ["Pictures", "Check"]
    (context.datasets / "grey-cat" / ".page.json").unlink()
    (context.renders / "a.png").write_bytes(b"x")
    context.runner.submit("one", "", "rehearse")
    assert done() == ["Pictures"]
    context.runner.submit("one", of(context, "grey-cat"), "rehearse")
    assert done() == ["Pictures", "Preset", "Check"]


def test_captions_in_a_folder_within_count_as_they_are_now(context: Context) -> None:
    """A kohya set keeps its folders, and what is written there leaves the time of the folder above as it was."""
    inside = context.datasets / "mine" / "10_mokka"
    inside.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(inside / "a.png")
    with gr.Blocks():
        path = guide.Guide(context)

    def is_captioned() -> bool:
        return next(step.is_done for step in path.steps("") if step.word == "Captions")

    assert not is_captioned()
    (inside / "a.txt").write_text("mokka")
    assert is_captioned()
    (inside / "a.txt").unlink()
    assert not is_captioned()


def of(context: Context, dataset: str) -> str:
    return tomli_w.dumps({"data": {"folder": str(context.datasets / dataset)}})


def test_the_path_is_of_the_chosen_dataset_and_of_no_other_project(context: Context, trained: Path) -> None:
    """Preset, Check, Train and Stack were read from all jobs, so that a second project began as done."""
    dataset_sets.copy_sample(context, "grey-cat")
    dataset_sets.copy_sample(context, "outline-style")
    with gr.Blocks():
        path = guide.Guide(context)

    def done(browser: str) -> list[str]:
        return [step.word for step in path.steps(browser) if step.is_done][2:]

    first, second = "0" * 32, "1" * 32
    path.states.change(first, "page", {"dataset": "grey-cat"})
    path.states.change(second, "page", {"dataset": "outline-style"})
    request = types.SimpleNamespace(headers={"cookie": f"{browser_state.COOKIE}={first}"})
    guide.preset_chosen(context, "grey-cat", request)  # type: ignore[arg-type]
    assert done(first) == ["Preset"] and done(second) == []
    path.states.change(first, "page", {"dataset": "outline-style"})
    assert done(first) == []
    path.states.change(first, "page", {"dataset": "grey-cat"})

    job = context.runner.submit("cat", of(context, "grey-cat"))
    context.runner.table.put(job, state="finished")
    assert done(first) == ["Preset", "Check", "Train"] and done(second) == []

    # A picture counts that was drawn with what the dataset taught.
    folder = context.runs / job.name
    folder.mkdir()
    shutil.copy(trained, folder / "cat.safetensors")
    (info,) = context.find_loras().values()
    for number, sha256 in enumerate(("0" * 64, info.sha256)):
        stack = StackConfig.model_validate({"adapters": [{"sha256": sha256, "name": "cat"}]})
        text = PngInfo()
        text.add_text(RECIPE_KEY, json.dumps(travelling(stack)))
        Image.new("RGB", (8, 8)).save(context.renders / f"{number}.png", pnginfo=text)
        assert done(first) == ["Preset", "Check", "Train", *(["Stack"] if number else [])]
    assert done(second) == []


def test_the_dataset_chosen_in_the_browser_is_the_one_the_path_is_about(context: Context) -> None:
    dataset_sets.copy_sample(context, "grey-cat")
    dataset_sets.make(context, "mine")
    with gr.Blocks():
        path = guide.Guide(context)
    browser = "0" * 32
    path.states.change(browser, "page", {"dataset": "mine"})
    assert path.steps("")[0].is_done and not path.steps(browser)[0].is_done


def test_each_tab_has_a_letter_of_its_own() -> None:
    titles = [module.TITLE for module in tabs.registry()]
    everywhere, *others = shortcuts.of_page(titles)
    opening = [key.shown for key in everywhere.keys if key.does.startswith("open ")]
    assert len(opening) == len(set(opening)) == len(titles) and "g d or Ctrl+1" in opening
    assert others == list(shortcuts.KEYS) and shortcuts.of_page(["Own"])[1:] == [
        one for one in shortcuts.KEYS if not one.tab
    ]
    html = shortcuts.dialog_html([shortcuts.Group(HOSTILE, "", (shortcuts.Key("x", HOSTILE, "", ()),))])
    assert HOSTILE not in html and html.count("&lt;img") == 2


def heard(code: str) -> set[str]:
    """The names of the keys that a script listens for; Tab only ever keeps the focus inside."""
    names = set(re.findall(r"event\.(?:key|code)(?:\.toLowerCase\(\))? [!=]== '([^']+)'", code))
    tables = re.findall(r"\{([^{}]*)\}\[event\.(?:key|code)\]", code)
    tables += re.findall(r"(?:KEYS|plainKeys) = \{(.*?)\};", code, re.DOTALL)
    for table in tables:
        while re.search(r"\{[^{}]*\}", table):  # what is within is no table
            table = re.sub(r"\{[^{}]*\}", "", table)
        names |= {name or quoted for name, quoted in re.findall(r"(?:\b(\w+)|'([^']+)'): ", table)}
    names |= set("12345") if "KEYS[stars]" in code else set()
    return names - {"Tab"}


def test_every_key_that_a_script_hears_is_listed_and_no_other() -> None:
    listed: dict[str, set[str]] = {}
    for group in shortcuts.of_page(["Own"]) + list(shortcuts.KEYS):
        for key in group.keys:
            listed.setdefault(key.file, set()).update(key.names)
    paths = [path for path in (ROOT / "app").rglob("*") if path.suffix in (".js", ".py")]
    found = {path.name: names for path in paths if (names := heard(path.read_text(encoding="utf-8")))}
    assert found == listed
    assert heard("if (event.code === 'KeyQ') x") == {"KeyQ"} and heard("const KEYS = {q: 1};") == {"q"}
