"""A LoRA's own weight: kept with its note, set in the Library, taken where the LoRA is put into a stack."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app import cards, item_changes, item_notes, open_in_tab, ui
from app.context import Context
from app.endpoints import offering
from app.item_notes import Note
from app.library_items import Shelf
from app.stack_rows import LoraRows
from app.stack_shelf import LoraShelf
from app.tabs import library
from tests.test_library_keeping import lora
from trainer.errors import DataError


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = ui.open_workspace(tmp_path / "workspace")
    lora(made.loras / "soft.safetensors", 0.3)
    lora(made.loras / "hard.safetensors", 0.5)
    return made


def hashes(context: Context) -> dict[str, str]:
    return {info.name: sha256 for sha256, info in context.find_loras().items()}


def put(context: Context, sha256: str) -> float:
    """The weight of the row that a press on the LoRA's card in Stack fills."""
    with gr.Blocks():
        rows = LoraRows(context)
        rows.draw()
        shelf = LoraShelf(context, rows)
    held: dict[Any, Any] = {rows.num_shown: 1} | dict.fromkeys(rows.choices)
    return shelf.put(held, gr.EventData(None, {"key": sha256}))[rows.weights[0]]


def test_the_slider_keeps_it_and_the_cards_show_and_take_it(context: Context) -> None:
    soft, hard = hashes(context)["soft"], hashes(context)["hard"]
    with gr.Blocks():
        tab = library._Tab(context)
    tab.weight.keep(f"loras {soft}", 0.6)
    panel = tab._panel("loras", soft)
    assert panel[tab.weight.slider]["value"] == 0.6 and panel[tab.weight.slider]["visible"]
    assert tab._panel("loras", hard)[tab.weight.slider]["value"] == 1.0
    assert put(context, soft) == 0.6 and put(context, hard) == 1.0

    shown = {item.name: cards.html(context, [item], "") for item in Shelf(context).every("loras")}
    assert "weight 0.6" in shown["soft"] and "weight" not in shown["hard"]


def test_it_outlives_a_rename_the_trash_and_other_words(context: Context) -> None:
    shelf, sha256 = Shelf(context), hashes(context)["soft"]
    item_notes.change(shelf.notes, "loras", sha256, weight=0.0)
    item_notes.change(shelf.notes, "loras", sha256, "a note", rating=3)
    assert item_notes.read(shelf.notes, "loras")[sha256] == Note("a note", 3, weight=0.0)
    item_changes.rename(shelf, shelf.item("loras", sha256), "softer")
    entry = item_changes.throw(shelf, shelf.item("loras", sha256))
    assert sha256 not in item_notes.read(shelf.notes, "loras")
    item_changes.restore(shelf, entry.id)
    assert shelf.item("loras", sha256).note.weight == 0.0
    item_notes.change(shelf.notes, "loras", sha256, weight=1.0)
    stored = json.loads((shelf.notes / "loras.json").read_text())
    assert "weight" not in stored[sha256], "as it was trained is nothing to remember"


@pytest.mark.parametrize("weight", [2.1, -3, math.nan, math.inf, True, "1", None, [1]])
def test_what_no_row_takes_is_refused_and_in_a_file_passed_over(context: Context, weight: Any) -> None:
    shelf, sha256 = Shelf(context), hashes(context)["soft"]
    with pytest.raises(DataError, match="a number from -2 to 2"):
        item_notes.change(shelf.notes, "loras", sha256, weight=weight)
    (shelf.notes / "loras.json").parent.mkdir(exist_ok=True)
    (shelf.notes / "loras.json").write_text(json.dumps({sha256: {"weight": weight, "text": "t"}}))
    assert item_notes.read(shelf.notes, "loras")[sha256] == Note("t")


def test_use_in_stack_takes_it_and_a_program_says_it(context: Context) -> None:
    sha256 = hashes(context)["soft"]
    row = offering.every(context)["weigh_lora"](sha256, -0.75)
    assert row["weight"] == -0.75 and row["name"] == "soft"
    page = ui.compose(context)
    tabs = next(block for block in page.blocks.values() if isinstance(block, gr.Tabs))
    opener = open_in_tab._Opener(page, context, tabs)
    weights = list(opener.weights.values())
    rows = list(opener.rows)
    assert opener.updates(dict.fromkeys(rows), f"lora {sha256}")[weights[0]] == -0.75
    held = dict.fromkeys(rows) | {rows[1]: sha256}
    assert not set(weights) & set(opener.updates(held, f"lora {sha256}")), "in a row already, it stays as it is there"
