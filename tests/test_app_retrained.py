"""What a retraining found is seen in the Library, at the run and at its LoRA."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from app import cards, item_details, ui
from app.context import Context
from app.library_items import Shelf
from tests.test_cards import fake_run
from trainer.cards.retraining import Verdict
from trainer.report import compared

VERDICT = Verdict(
    "new", "Take the new one: it predicts better by +12.3 % (95 %: +8.0 to +16.1) on 9 held-out pictures.",
    9, 0.30, 0.20, 0.1754, 0.123, 0.080, 0.161,
)  # fmt: skip
HOSTILE = "<img src=x onerror=window.__owned=1>"


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return ui.open_workspace(tmp_path / "workspace")


def retrained(context: Context, name: str, **changes: object) -> Path:
    """A run as `velatura retrain` leaves it."""
    run = fake_run(context.runs, name)
    answer = asdict(VERDICT) | {"old": "mine.safetensors", "new": f"{name}.safetensors"} | changes
    (run.folder / compared.FILE).write_text(json.dumps(answer))
    return run.folder


def panel(context: Context, kind: str, key: str) -> str:
    shelf = Shelf(context)
    item = shelf.item(kind, key)
    return cards.panel_html(context, item, item_details.of(shelf, item))


def test_the_verdict_with_its_interval_stands_at_the_run(context: Context) -> None:
    retrained(context, "again")
    shown = panel(context, "runs", "again")
    assert f"<dt>Old or new</dt><dd>{VERDICT.sentence} New: again.safetensors; old: mine.safetensors.</dd>" in shown
    fake_run(context.runs, "plain")
    assert "Old or new" not in panel(context, "runs", "plain")


def test_it_stands_at_the_lora_of_the_run_too(context: Context, trained: Path) -> None:
    folder = retrained(context, "again")
    shutil.copy(trained, folder / "again.safetensors")
    (sha256,) = context.find_loras()
    assert VERDICT.sentence in panel(context, "loras", sha256)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 5000, json.dumps(asdict(VERDICT) | {"gain": "x"}), "\0"])
def test_a_damaged_verdict_is_none(context: Context, text: str) -> None:
    folder = retrained(context, "again")
    (folder / compared.FILE).write_text(text)
    assert "Old or new" not in panel(context, "runs", "again") and compared.html(folder) == ""


def test_a_hostile_verdict_is_text(context: Context) -> None:
    retrained(context, "again", sentence=HOSTILE, old=HOSTILE)
    shown = panel(context, "runs", "again")
    assert "<img src=x" not in shown and "&lt;img src=x" in shown
