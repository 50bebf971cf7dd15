"""Files of wildcards on the page: those of `wildcards` in the workspace, in Stack and in a batch, and no others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from app import batches, recipes
from app.context import Context
from app.tabs import stack
from tests.batches import context_with_a_fox
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import wildcards

HOSTILE = ("__../secret__", "__*/../secret__", "__/etc/passwd__", "__link__", "__l*__", "__..*__", "__folder/secret__")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return context_with_a_fox(tmp_path, tiny)


def asked(prompt: str, context: Context) -> StackConfig:
    return StackConfig(prompt=prompt, base=context.bases[1], width_px=32, height_px=32, steps=2, guidance_scale=3.0)


def drawn(context: Context, prompt: str) -> list[dict[Any, Any]]:
    """What Stack's own handler of Render answers in turns."""
    with gr.Blocks():
        tab = stack._Tab(context)
    held = {part: part.value for part in (*tab.form.components.values(), *tab.rows.inputs(), tab.axis)}
    held |= {
        part: update["value"] for part, update in tab.form.fill(asked(prompt, context)).items() if "value" in update
    }
    request = SimpleNamespace(session_hash="a", headers={})
    return [answer for answer in tab.draw(held, request) if isinstance(answer, dict)]  # type: ignore[arg-type]


def test_stack_draws_a_line_of_a_file_in_the_workspace(context: Context) -> None:
    (context.workspace / "wildcards" / "colour.txt").write_text("crimson\n")
    drawn(context, "a __colour__ fox")
    (picture,) = context.renders.glob("*.png")
    assert recipes.read_recipe(context, picture).prompt == "a crimson fox"


def test_a_name_without_a_file_says_the_folder_and_what_is_there(context: Context) -> None:
    (context.workspace / "wildcards" / "style.txt").write_text("ink\n")
    with pytest.raises(gr.Error) as refused:
        drawn(context, "a __colour__ fox")
    says = refused.value.message
    assert "prompt has __colour__" in says and "the folder workspace/wildcards has no colour.txt" in says
    assert "allowed: style" in says and str(context.workspace) not in says
    assert not list(context.renders.glob("*.png"))


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_the_folder(context: Context, name: str) -> None:
    outside, inside = context.workspace / "secret.txt", context.workspace / "wildcards"
    outside.write_text("owned\n")
    (inside / "link.txt").symlink_to(outside)
    (inside / "folder").symlink_to(context.workspace, target_is_directory=True)
    for _ in range(2):  # and once more beside an honest file
        try:
            assert "owned" not in wildcards.expand(f"a {name} fox", 1, context.wildcards)
        except ConfigError as error:
            assert "owned" not in str(error)
        (inside / "lemon.txt").write_text("yellow\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_a_folder_in_the_place_of_a_file_is_not_waited_for(context: Context) -> None:
    os.mkfifo(context.workspace / "wildcards" / "pipe.txt")
    (context.workspace / "wildcards" / "deep.txt").mkdir()
    for name in ("__pipe__", "__deep__", "__*__"):
        with pytest.raises(ConfigError, match="allowed: nothing yet"):
            wildcards.expand(name, 1, context.wildcards)


@pytest.mark.slow
def test_a_batch_of_the_page_draws_lines_of_the_same_folder(context: Context) -> None:
    jobs = batches.composed(context, asked("a __colour__ fox", context), "", "1", "1-2", "{number}")
    plan = batches.planned(jobs, [context.loras], context.wildcards).text
    assert "2 can't be drawn" in plan and "the folder workspace/wildcards has no colour.txt" in plan
    (context.workspace / "wildcards" / "colour.txt").write_text("crimson\n")
    assert "can't be drawn" not in batches.planned(jobs, [context.loras], context.wildcards).text

    # A process of its own draws it.
    made = context.runner.submit("foxes", jobs.text, jobs.kind)
    deadline = time.monotonic() + 120
    while context.runner.get(made.id).state not in ("finished", "failed") and time.monotonic() < deadline:
        context.runner.tick()
        time.sleep(0.2)
    job = context.runner.get(made.id)
    assert job.state == "finished", (job.error, context.runner.log_file(job).read_text()[-2000:])
    pictures = sorted((context.batches / "foxes").glob("*.png"))
    assert [recipes.read_recipe(context, path).prompt for path in pictures] == ["a crimson fox"] * 2
