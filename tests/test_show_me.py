"""Show me: from an empty page to two LoRAs stacked, in jobs that outlive the page; cancelled when asked to."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import show_me, ui
from app.context import Context
from app.start_here import StartHere
from trainer.config import BatchConfig, TrainConfig, parse
from trainer.config.parsing import from_toml


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def begun(context: Context) -> show_me.Shown:
    """The one that was begun."""
    shown = show_me.read(context)
    assert shown is not None
    return shown


def test_one_action_copies_the_samples_and_queues_a_style_a_character_and_both(context: Context) -> None:
    show_me.begin(context)
    assert {"outline-style", "grey-cat"} <= set(context.dataset_names())
    both, character, style = context.runner.every()
    assert [job.kind for job in (style, character, both)] == ["train", "train", "batch-toml"]
    for job in (style, character):
        config = parse(TrainConfig, from_toml(job.config, "a job"), "a job")
        assert config.max_steps == show_me.STEPS and Path(config.data.folder).parent == context.datasets
    (loras,) = parse(BatchConfig, from_toml(both.config, "a job"), "a job").stacks
    assert [Path(lora.file).stem for lora in loras] == [style.name, character.name]

    # Asked again while it is at work, it is the same; there is a picture to see before anything was computed.
    assert len([show_me.begin(context) for _ in range(2)]) == 2 and len(context.runner.every()) == 3
    scene = show_me.scene(context, begun(context))
    assert len(scene.pictures) == 2 and not scene.is_over and scene.progress.headline == "Learning a style"


def test_it_is_found_again_by_a_new_server_and_cancelled_as_a_whole(context: Context) -> None:
    show_me.begin(context)
    again = ui.open_workspace(context.workspace)
    assert not show_me.scene(again, begun(again)).is_over
    show_me.cancel(again)
    assert {job.state for job in again.runner.every()} == {"stopped"}
    scene = show_me.scene(again, begun(again))
    assert scene.is_over and scene.progress.headline == "Cancelled"
    show_me.begin(again)
    assert len(again.runner.every()) == 6 and not show_me.scene(again, begun(again)).is_over


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"style": 1}',
        '{"style": "x", "character": 2, "both": 3}',
        '{"style":1,"a":2}',
        '{"style": 1, "character": 2, "both": "../x"}',
    ],
)
def test_a_file_that_is_none_of_ours_shows_nothing(context: Context, content: str) -> None:
    (context.workspace / "show-me.json").write_text(content)
    assert show_me.read(context) is None


def test_the_panel_is_for_an_empty_workspace_alone(context: Context) -> None:
    import gradio as gr

    with gr.Blocks():
        start = StartHere(context)
    assert start.opened()[start.panel]["visible"]
    (context.datasets / "mine").mkdir()
    assert not start.opened()[start.panel]["visible"]
