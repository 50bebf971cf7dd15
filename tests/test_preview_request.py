"""A preview asked for while a run trains: it is drawn after that step, and the run stays what it is without it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import pytest
import tomli_w
from PIL import Image

from app import preview_strip, training_view, ui
from app.context import Context
from app.endpoints import offering
from app.tabs import train
from tests import plain, warm
from trainer import presets, preview_request, runs, session
from trainer.errors import ConfigError, RunError
from trainer.events import Event, Finished, Sampled, Step, Warned

CARRIES = {  # whatever goes from step to step, or is put in place of what is trained while a picture is drawn
    "mean": {"optimizer.ema_decay": 0.9, "adapter.dropout": 0.2, "validation.leave_out": 1, "validate_every_steps": 3},
    "schedule-free": {"optimizer.name": "schedule-free", "optimizer.warmup_steps": 2},
    "word": {"inversion.token": "mokka", "adapter.text_encoder": True},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round, flat", num=5, wider_px=30)


def config(tiny: Path, pictures: Path, **settings: object):
    values: dict[str, object] = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 7, "batch_size": 2, "checkpoint_every_steps": 3,
        "preview_every_steps": 5, "preview.steps": 2, "preview.prompts": ["a dot", "a square"], "learning_rate": 1e-2,
        "data.folder": str(pictures), "data.flip": True, "data.caption_dropout": 0.2,
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def run_it(parent: Path, settings, asking_at: tuple[int, ...] = ()) -> tuple[runs.Run, list[Event]]:
    """A run to its end, and its events; previews are asked for at these steps."""
    run, stream = session.start(settings, parent, "x", runs.find_resumable(parent, "x"))
    seen = []
    for event in stream:
        seen.append(event)
        if isinstance(event, Step) and event.step in asking_at:
            preview_request.ask(run)
    assert isinstance(seen[-1], Finished)
    return run, seen


def learned(run: runs.Run) -> dict[str, bytes]:
    """Every file of weights and states that a run leaves, by its name."""
    paths = [run.lora_file, *run.folder.glob("best.safetensors"), *run.checkpoints.rglob("*.safetensors")]
    return {path.relative_to(run.folder).as_posix(): path.read_bytes() for path in paths}


def sampled(run: runs.Run) -> list[tuple[int, str]]:
    return [(event.step, event.prompt) for event in run.events() if isinstance(event, Sampled)]


@pytest.mark.parametrize("case", CARRIES)
def test_previews_asked_for_change_nothing_that_is_learned(
    case: str, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    settings = config(tiny, pictures, **CARRIES[case])
    without, _ = run_it(tmp_path / "without", settings)
    asked, _ = run_it(tmp_path / "asked", settings, (1, 2, 4))
    assert learned(asked) == learned(without) and len(learned(asked)) >= 3
    assert [step for step, _ in sampled(without)] == [0, 0, 5, 5, 7, 7]
    assert [step for step, _ in sampled(asked)] == [0, 0, 1, 1, 2, 2, 4, 4, 5, 5, 7, 7]
    assert not (asked.folder / preview_request.FILE).exists()
    for event in asked.events():
        if isinstance(event, Sampled):
            assert Image.open(asked.folder / event.file).size == (32, 32)


def test_a_run_broken_off_after_an_asked_for_preview_goes_on_as_one_without(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    settings = config(tiny, pictures, **CARRIES["mean"])
    without, _ = run_it(tmp_path / "without", settings)
    run, stream = session.start(settings, tmp_path / "broken", "x", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 4:
            preview_request.ask(run)
        if isinstance(event, Sampled) and event.step == 4:
            break
    stream.close()
    (run.folder / preview_request.FILE).touch()  # asked for again as it ended
    broken, events = run_it(tmp_path / "broken", settings, (6,))
    assert learned(broken) == learned(without)
    first = next(event for event in events if isinstance(event, Sampled))
    assert first.step == 3, "what waits is drawn where the run goes on"
    assert [step for step, _ in sampled(broken)][-6:] == [5, 5, 6, 6, 7, 7]


def test_one_that_is_asked_for_at_its_time_is_drawn_once(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, _ = run_it(tmp_path, config(tiny, pictures), (5, 7))
    assert [step for step, _ in sampled(run)] == [0, 0, 5, 5, 7, 7]


@pytest.mark.parametrize("settings", [{"preview.prompts": []}, {"preview_every_steps": 0}], ids=["prompts", "never"])
def test_a_run_without_previews_says_so_and_goes_on(
    settings: dict[str, object], tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    run, stream = session.start(config(tiny, pictures, **settings), tmp_path, "x", None)
    warned = []
    for event in stream:
        warned += [event.message] if isinstance(event, Warned) else []
        if isinstance(event, Step) and event.step == 2:
            with pytest.raises(RunError, match="no preview prompts"):
                preview_request.ask(run)
            (run.folder / preview_request.FILE).touch()
    (line,) = [line for line in warned if "asked for" in line]
    assert "at step 2" in line and "no preview prompts" in line and run.state() == "finished"
    assert not (run.folder / preview_request.FILE).exists()


@pytest.mark.slow
def test_the_command_asks_a_run_that_another_process_trains(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    settings = tmp_path / "settings.toml"
    presets.save(session.absolute(config(tiny, pictures, max_steps=400, preview_every_steps=1000)), settings)
    out = tmp_path / "runs"
    process = warm.Command(["train", str(settings), "--name", "x", "--out", str(out), "--json"], tmp_path)
    for line in process.stdout:
        if '"event": "step"' in line:
            said = warm.run(["preview", str(out / "x")], tmp_path, 100)
            assert said.returncode == 0 and "after this step" in said.stdout, said.stderr
            break
    for line in process.stdout:
        if '"event": "sampled"' in line:
            step = json.loads(line)["step"]
            break
    assert 0 < step < 400, "a picture out of its turn"
    process.kill()
    process.communicate()
    refused = warm.run(["preview", str(out / "x")], tmp_path, 100)
    assert refused.returncode == 2 and "is not at work" in refused.stderr, refused.stderr


# On the page and for programs.


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = ui.open_workspace(tmp_path / "workspace")
    yield made
    for job in made.runner.every():  # none outlives its test
        if (process := made.runner._process(job)) is not None:
            process.kill()


def wait_for(context: Context, is_so: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, context.runner.every()
        context.runner.tick()
        time.sleep(0.1)


@pytest.mark.slow
def test_the_button_and_the_endpoint_have_a_training_draw_out_of_its_turn(
    context: Context, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(training_view, "tell", told.append)
    settings = session.absolute(config(tiny, pictures, max_steps=2000, preview_every_steps=1500))
    job = context.runner.submit("cat", tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    run, logs = runs.Run(context.runs / job.name), context.logs
    with gr.Blocks():
        view = train._Tab(context).view
    endpoints = offering.every(context)

    # Before it has begun there is nothing that could draw.
    assert view.changes(job.id, {})[view.preview]["interactive"] is False
    with pytest.raises(ConfigError, match="cat is queued; only a training that has begun"):
        endpoints["preview_job"](job.id)

    def steps() -> list[int]:
        return sorted({event.step for event in logs.read(run.events_file) if isinstance(event, Sampled)})

    wait_for(context, lambda: any(isinstance(event, Step) for event in logs.read(run.events_file)))
    assert view.changes(job.id, {})[view.preview]["interactive"] is True and steps() == [0]
    view.preview_one(job.id)
    assert told == ["cat draws its previews after this step; they appear below."]
    wait_for(context, lambda: len(steps()) == 2)
    assert endpoints["preview_job"](job.id)["name"] == "cat"
    wait_for(context, lambda: len(steps()) == 3 and not (run.folder / preview_request.FILE).exists())

    # In the strip as the others are, each with its own step.
    strips = preview_strip.strips(run.folder, logs.read(run.events_file))
    assert [[preview.event.step for preview in strip.previews] for strip in strips][0] == steps()
    assert f"step {steps()[1]:,}" in preview_strip.html(context, strips, None)


@pytest.mark.slow
def test_a_training_without_previews_says_so_on_the_page(context: Context, tiny: Path, pictures: Path) -> None:
    settings = session.absolute(config(tiny, pictures, max_steps=2000, **{"preview.prompts": []}))
    job = context.runner.submit("cat", tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    run = runs.Run(context.runs / job.name)
    wait_for(context, run.events_file.is_file)
    with pytest.raises(ConfigError, match="cat draws no previews: it was started without preview prompts"):
        offering.every(context)["preview_job"](job.id)
    batch = context.runner.submit("b", "", "batch-toml")
    with pytest.raises(ConfigError, match="b is no training"):
        offering.every(context)["preview_job"](batch.id)
    assert not (run.folder / preview_request.FILE).exists()
