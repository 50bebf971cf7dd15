"""The frame of the page: the guided path, and the keys under a question mark."""

from __future__ import annotations

import re
from pathlib import Path

import gradio as gr
import pytest
from parsed import ROOT

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
    dataset_notes.keep_checked(context, "grey-cat")  # as the Dataset tab's check does
    assert done() == ["Pictures", "Check"]
    (context.datasets / "grey-cat" / ".page.json").unlink()
    context.runner.submit("one", "", "rehearse")
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


def test_each_tab_has_a_letter_of_its_own() -> None:
    titles = [module.TITLE for module in tabs.registry()]
    everywhere, *others = keys.of_page(titles)
    opening = [key.shown for key in everywhere.keys if key.does.startswith("open ")]
    assert len(opening) == len(set(opening)) == len(titles) and "g d or Ctrl+1" in opening
    assert others == list(keys.KEYS) and keys.of_page(["Own"])[1:] == [one for one in keys.KEYS if not one.tab]
    html = keys.dialog_html([keys.Group(HOSTILE, "", (keys.Key("x", HOSTILE, "", ()),))])
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
    for group in keys.of_page(["Own"]) + list(keys.KEYS):
        for key in group.keys:
            listed.setdefault(key.file, set()).update(key.names)
    paths = [path for path in (ROOT / "app").rglob("*") if path.suffix in (".js", ".py")]
    found = {path.name: names for path in paths if (names := heard(path.read_text(encoding="utf-8")))}
    assert found == listed
    assert heard("if (event.code === 'KeyQ') x") == {"KeyQ"} and heard("const KEYS = {q: 1};") == {"q"}
