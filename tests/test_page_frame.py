"""The frame of the page: the guided path, and the keys under a question mark."""

from __future__ import annotations

import types
from pathlib import Path

import gradio as gr
import pytest

from app import dataset_notes, dataset_sets, guide, keys, tabs, ui
from app.context import Context

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
    context.runner.submit("one", "", "rehearse")
    dataset_notes.keep_checked(context, "grey-cat")  # as the Dataset tab's check does
    assert done() == ["Pictures", "Check"]
    (context.datasets / "grey-cat" / ".page.json").unlink()
    (context.renders / "a.png").write_bytes(b"x")
    assert done() == ["Pictures", "Check", "Stack"]


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
