"""A run through the real wiring: it learns, leaves the base alone, and survives being killed at any moment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import plain
from tests.small_runs import config, run_to_the_end
from trainer import checkpoint, events, loop, presets, runs, session
from trainer.events import Cached, Failed, Planned, Sampled, Started, Step, Stopped, Validated, Warned
from trainer.training_model import TrainingModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot", num=5)


def log_of(run: runs.Run) -> list[events.Event]:
    """What a run logged, without clocks and what depends on how often it was started."""
    return [
        getattr(event, "step", 0)
        and (type(event).__name__, event.step, getattr(event, "loss", None), getattr(event, "file", None))
        for event in run.events()
        if not isinstance(event, Started | Planned | Warned | Cached | Failed | Stopped)
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny: Path, pictures: Path) -> runs.Run:
    return run_to_the_end(tmp_path_factory.mktemp("unbroken"), config(tiny, pictures))


def test_a_run_says_what_it_does_and_leaves_what_it_said(unbroken: runs.Run) -> None:
    kinds = [event.kind for event in unbroken.events()]
    assert kinds[:3] == ["started", "planned", "cached"] and kinds[-1] == "finished"
    assert [event.step for event in unbroken.events() if isinstance(event, Step)] == list(range(1, 10))
    assert [event.step for event in unbroken.events() if isinstance(event, Sampled)] == [0, 4, 8, 9]
    assert unbroken.state() == "finished" and unbroken.report_file.is_file()
    assert [folder.name for folder in sorted(unbroken.checkpoints.glob("*"))] == ["step-000006", "step-000009"]


def test_the_same_recipe_gives_the_same_bytes_under_another_name(
    unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    other, stream = session.start(config(tiny, pictures), tmp_path, "another name", None)
    list(stream)
    assert other.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


def test_previews_change_nothing(unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path) -> None:
    quiet = run_to_the_end(tmp_path, config(tiny, pictures, preview_every_steps=0))
    first, second = (runs.Run.events(run) for run in (quiet, unbroken))
    assert [event.loss for event in first if isinstance(event, Step)] == [
        event.loss for event in second if isinstance(event, Step)
    ]
    last = [checkpoint.load_latest(run.checkpoints)[0] for run in (quiet, unbroken)]
    assert all(
        torch.equal(last[0].tensors["adapter"][name], tensor) for name, tensor in last[1].tensors["adapter"].items()
    )


class Killed(BaseException):
    """Stands for kill -9 where it would strike inside this process."""


@pytest.mark.parametrize("strike", [1, 2, 4, 5, 6, 8, 9, 11, 13, 16])
def test_a_kill_at_any_write_of_a_checkpoint_or_export_resumes_to_the_same_bytes(
    strike: int, unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th fsync or rename of the run doesn't happen, and nothing after it."""
    calls = 0

    def struck(real):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls >= strike:
                raise Killed
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", struck(os.fsync))
        patch.setattr(os, "replace", struck(os.replace))
        with pytest.raises(Killed):
            run_to_the_end(tmp_path, config(tiny, pictures))
    assert runs.find_resumable(tmp_path, "x") is None or runs.Run(tmp_path / "x").state() == "unfinished"
    resumed = run_to_the_end(tmp_path, config(tiny, pictures))
    assert resumed.lora_file.read_bytes() == unbroken.lora_file.read_bytes()
    assert log_of(resumed) == log_of(unbroken)


def command(out: Path, settings_file: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "trainer",
        "train",
        str(settings_file),
        "--name",
        "x",
        "--out",
        str(out),
        "--resume",
        "--json",
    ]


def start_process(out: Path, settings_file: Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command(out, settings_file), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process: subprocess.Popen[str]) -> None:
    for line in process.stdout:
        if '"event": "step"' in line:
            return
    raise AssertionError(process.stderr.read())


@pytest.fixture
def settings_file(tmp_path: Path, tiny: Path, pictures: Path) -> Path:
    path = tmp_path / "settings.toml"
    presets.save(
        session.absolute(config(tiny, pictures, max_steps=150, preview_every_steps=70, checkpoint_every_steps=10)), path
    )
    return path


def test_kill_9_of_the_real_process_resumes_to_the_same_bytes(tmp_path: Path, settings_file: Path) -> None:
    whole = run_to_the_end(tmp_path / "whole", presets.load(str(settings_file), {}))
    process = start_process(
        tmp_path / "killed", settings_file
    )  # from a cold start; tests/test_resume.py kills ten times from a warm one
    wait_for_step(process)
    time.sleep(0.5)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finished = subprocess.run(
        command(tmp_path / "killed", settings_file),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "killed/x/x.safetensors").read_bytes() == whole.lora_file.read_bytes()
    assert log_of(runs.Run(tmp_path / "killed/x")) == log_of(whole)


def test_ctrl_c_saves_says_how_to_go_on_and_leaves_nothing_that_looks_finished(
    tmp_path: Path, settings_file: Path
) -> None:
    process = start_process(tmp_path / "out", settings_file)
    wait_for_step(process)
    process.send_signal(signal.SIGINT)
    output, wrong = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in wrong
    run = runs.Run(tmp_path / "out" / "x")
    stopped = run.events()[-1]
    assert isinstance(stopped, Stopped)
    assert checkpoint.load_latest(run.checkpoints)[0].step == stopped.step
    assert not run.lora_file.exists() and run.state() == "unfinished"


def test_it_learns_two_pictures_and_the_base_stays_bitwise_the_same(tmp_path: Path, examples: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    for path in sorted((examples / "grey-cat" / "train").glob("*"))[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    settings = presets.load(
        plain.CHARACTER,
        {
            "data.folder": str(folder),
            "data.heldout": str(folder),
            "max_steps": 20,
            "learning_rate": 2e-3,
            "preview_every_steps": 0,
        },
    )
    before = {name: tensor.clone() for name, tensor in TrainingModel.open(settings).denoiser.state_dict().items()}
    kept: list[TrainingModel] = []
    real = TrainingModel.open
    TrainingModel.open = lambda *arguments: kept.append(real(*arguments)) or kept[-1]  # type: ignore[assignment,method-assign]
    try:
        run, stream = session.start(settings, tmp_path, "x", None)
        checks = [event for event in stream if isinstance(event, Validated)]
    finally:
        TrainingModel.open = real  # type: ignore[method-assign]
    assert checks[-1].gain > 0.25 and checks[-1].gain_low > 0 and checks[-1].share_better == 1
    after = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in kept[0].denoiser.state_dict().items()
        if ".lora_" not in name
    }
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 8:
            break
    stream.close()
    last = run.checkpoints / "step-000006" / "optimizer.safetensors"
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    again, stream = session.start(config(tiny, pictures), tmp_path, "x", run)
    events = list(stream)
    assert any("step-000006 is damaged" in getattr(event, "message", "") for event in events)
    assert next(event for event in events if isinstance(event, Started)).from_step == 3
    assert again.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


def test_a_failing_preview_is_a_note_and_the_run_goes_on(
    unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("trainer.render.pipeline_call.draw", fail)
    run = run_to_the_end(tmp_path, config(tiny, pictures))
    assert any("preview 'a dot' at step 4 failed: no memory" in getattr(event, "message", "") for event in run.events())
    assert run.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


def test_a_changed_caption_is_encoded_anew_and_nothing_else(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())

    def computed() -> int:
        run, stream = session.start(
            config(tiny, folder, max_steps=1, preview_every_steps=0), tmp_path / "runs", "x", None
        )
        return next(event for event in list(stream) if isinstance(event, Cached)).num_computed

    assert (computed(), computed()) == (5 * 2 + 6, 0)
    (folder / "0.txt").write_text("a changed dot")
    assert computed() == 1


def test_a_caption_in_the_cache_that_was_cut_short_is_made_anew(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run_to_the_end(tmp_path, config(tiny, pictures))
    for entry in (tmp_path / ".cache").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:20])
    other, stream = session.start(config(tiny, pictures), tmp_path, "y", None)
    list(stream)
    assert other.lora_file.read_bytes() == (tmp_path / "x" / "x.safetensors").read_bytes()


def test_the_first_step_asks_what_an_independent_computation_asks(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    """Noise, target and loss of step 1 against diffusers' scheduler and a fresh UNet: the adapter starts at zero."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    from trainer import objective

    settings = config(tiny, pictures, max_steps=1, preview_every_steps=0)
    run, stream = session.start(settings, tmp_path, "x", None)
    loss = next(event.loss for event in list(stream) if isinstance(event, Step))
    studio = TrainingModel.open(settings)
    from trainer import data

    studio.prepare(tmp_path / ".cache", data.scan(settings), None)
    (batch,) = studio.encoded.batches(0)
    latents, hidden = (
        batch.latents,
        torch.stack([studio.encoded.conditioning(caption)["encoder_hidden_states"] for caption in batch.captions]),
    )
    scheduler, unet = (
        DDPMScheduler.from_pretrained(tiny, subfolder="scheduler"),
        UNet2DConditionModel.from_pretrained(tiny, subfolder="unet"),
    )
    rng = objective.generator(settings.seed, "noise", 0)
    noise, timesteps = torch.randn(latents.shape, generator=rng), torch.randint(0, 1000, (len(batch),), generator=rng)
    with torch.no_grad():
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, hidden).sample
    assert abs(float((prediction - noise).square().mean()) - loss) < 1e-5


def test_the_learning_rate_falls_as_its_schedule_says() -> None:
    from trainer.config import OptimizerConfig
    from trainer.optim import factor

    for name, halfway in {"constant": 1.0, "linear": 0.5, "cosine": 0.5}.items():
        shape = OptimizerConfig(schedule=name, warmup_steps=10)
        assert (
            factor(shape, 0, 110) == pytest.approx(0.1)
            and factor(shape, 10, 110) == pytest.approx(1.0)
            and factor(shape, 60, 110) == pytest.approx(halfway)
        )


def test_loop_reads_on_one_screen() -> None:
    lines = Path(loop.__file__).read_text().splitlines()
    start, end = (
        next(number for number, line in enumerate(lines) if text in line)
        for text in ("# Noise and target", "backward()")
    )
    assert end - start < 30


def test_a_later_damaged_checkpoint_never_pushes_out_the_one_just_saved(tmp_path: Path) -> None:
    for step in (50, 100):
        checkpoint.save(tmp_path, step, {}, {}, keep=2)
    (tmp_path / "step-000100" / "state.json").write_text("?")
    (tmp_path / "step-000050 (copy)").mkdir()
    assert checkpoint.load_latest(tmp_path)[0].step == 50
    checkpoint.save(tmp_path, 60, {}, {}, keep=1)
    assert checkpoint.load_latest(tmp_path)[0].step == 60


def test_signals_are_handed_back_after_a_run(unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    run_to_the_end(tmp_path, config(tiny, pictures, max_steps=1, preview_every_steps=0))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_kill_between_a_checkpoint_and_its_line_in_the_log_leaves_the_same_log(
    unbroken: runs.Run, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    for event in stream:
        if event.kind == "saved":
            break
    stream.close()
    run.events_file.write_text("".join(events.to_line(event) for event in run.events() if event.kind != "saved"))
    assert log_of(run_to_the_end(tmp_path, config(tiny, pictures))) == log_of(unbroken)
