"""The frame of the page: the guided path, and the keys under a question mark."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path

import gradio as gr
import pytest
import tomli_w
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import browser_state, dataset_sets, guide, keys, tabs, ui
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
    (context.renders / "a.png").write_bytes(b"x")
    context.runner.submit("one", "", "rehearse")
    assert done() == ["Pictures"]
    context.runner.submit("one", of(context, "grey-cat"), "rehearse")
    assert done() == ["Pictures", "Preset", "Check"]


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


def test_every_key_of_the_page_is_listed_and_each_tab_has_a_letter_of_its_own() -> None:
    modules = tabs.registry()
    listed = keys.of_page(modules)
    opening = [key for key, words in listed if words.startswith("open ")]
    assert len(opening) == len(set(opening)) == len(modules) and "g d or Ctrl+1" in opening
    own = types.ModuleType("own")
    own.TITLE, own.KEYS = "Own", [("x", HOSTILE)]  # type: ignore[attr-defined]
    assert ("x", HOSTILE) in keys.of_page([*modules, own])
    html = keys.dialog_html([("x", HOSTILE)])
    assert HOSTILE not in html and "&lt;img" in html
