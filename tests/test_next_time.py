"""What a run's log advises, taken into Train's form."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest

from app import ui, views
from app.context import Context
from app.tabs import train
from trainer import presets
from trainer.events import Adjusted, Event, Finished, Overtrained, Started, Validated, to_line


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def test_next_time_fills_the_form_with_the_runs_settings_changed_as_its_log_advises(context: Context) -> None:
    (context.datasets / "mine").mkdir(parents=True)
    changes = {"data.folder": str(context.datasets / "mine"), "learning_rate": 3e-4, "adapter.rank": 6}
    run_config = presets.load("imprimatura-style", changes)
    job = context.runner.submit("mine", "", "train")
    folder = context.runs / job.name
    folder.mkdir(parents=True)
    presets.save(run_config, folder / "config.toml")
    log: list[Event] = [
        Started("mine", 10, 0, 4, 2, 9, "cpu", "float32", "imprimatura"),
        Adjusted(5, "x", ["memory.micro_batch=1", "memory.gradient_checkpointing=true"]),
        Validated(50, 0.8, 1.0, 0.2, 0.1, 0.3, 1.0, 2),
        Validated(100, 0.9, 1.0, 0.1, 0.05, 0.2, 1.0, 2),
        Overtrained(100, 50, "x"), Finished(100, "a.safetensors", 1.0, 1.0),
    ]  # fmt: skip
    (folder / "events.jsonl").write_text("".join(map(to_line, log)))
    with gr.Blocks():
        tab = train._Tab(context)
    assert "Fill the form so" in views.recommendation_html(log, run_config)
    held = {part: part.value for part in tab.form.components.values()} | {tab.view.job: job.id}
    update = tab.as_advised(held)
    values = {key: update[part]["value"] for key, part in tab.form.components.items() if part in update}
    wanted = {"max_steps": 50, "learning_rate": 3e-4, "memory.micro_batch": 1, "memory.gradient_checkpointing": True}
    assert {key: values[key] for key in wanted} == wanted and update[tab.dataset] == "mine"
