"""What a run is trusted for: the best checkpoint and its reason, the alarm, folds, drift, likeness, exact memory of
what it saw.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests import plain
from trainer import data, events, lora_file, presets, runs, session, step_inputs, stopping, validation
from trainer.data import cross_validation, likeness
from trainer.errors import ConfigError, RunError
from trainer.events import Finished, Folded, Overtrained, Recommended, Sampled, Step, Stopped, Validated


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "dot, a {colour} one, round, flat", num=6, wider_px=24)


def config(tiny: Path, pictures: Path, **settings: object):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 8, "batch_size": 2, "checkpoint_every_steps": 4,
        "preview_every_steps": 0, "preview.steps": 2,
        "validate_every_steps": 2, "learning_rate": 1e-2, "data.folder": str(pictures),
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def train(parent: Path, settings, name: str = "x") -> tuple[runs.Run, list[events.Event]]:
    run, stream = session.start(settings, parent, name, None)
    return run, list(stream)


def test_pictures_left_out_are_measured_and_never_trained_on(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    settings = config(tiny, pictures, **{"validation.leave_out": 2})
    run, events = train(tmp_path, settings)
    started = events[0]
    assert (started.num_pictures, started.num_heldout) == (4, 2)
    assert [event.step for event in events if isinstance(event, Validated)] == [2, 4, 6, 8]
    last = [event for event in events if isinstance(event, Validated)][-1]
    assert len(last.deciles) == len(last.base_deciles) == 10 and last.train_gain is not None
    assert last.loss == pytest.approx(sum(last.deciles) / 10)
    _, left = cross_validation.leave_out(data.scan(settings), settings)
    names = {item.path.name for item in left.items}
    assert not names & {seen.picture for step in range(1, 9) for seen in step_inputs.at(run, step)}


def hard(examples: Path, **settings: object):
    """Imprimatura, which knows a lot, trained far too fast: it soon forgets, so that an early step is best."""
    values = {
        "data.folder": str(examples / "grey-cat" / "train"), "batch_size": 2, "max_steps": 12,
        "validate_every_steps": 2, "checkpoint_every_steps": 4,
        "preview_every_steps": 0, "learning_rate": 1.5e-2, "optimizer.schedule": "constant", "validation.leave_out": 2,
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def test_a_step_that_is_worse_than_the_base_is_not_called_below_it() -> None:
    """A run whose held-out loss never was below the base's, in words without a minus."""
    base = torch.linspace(0.48, 0.52, 40, dtype=torch.float64).reshape(4, 10)
    now = base * 1.04
    judge = validation.Judge()
    judge.add(3, base, now)
    said = judge.reason(validation.compare(3, base, now, None, None), now)
    assert "4.0 % above the base's; it is the last step, so the base alone does no worse" in said


def test_the_best_step_is_kept_and_says_why(tmp_path: Path, examples: Path) -> None:
    run, events = train(tmp_path, hard(examples))
    measured = [event for event in events if isinstance(event, Validated)]
    best = min(measured, key=lambda event: event.loss)
    (recommended,) = [event for event in events if isinstance(event, Recommended)]
    assert recommended.step == best.step < 12 and recommended.file == "best.safetensors"
    with safe_open(run.folder / "best.safetensors", "pt") as file:
        assert (
            file.metadata()["velatura.step"] == str(best.step)
            and file.metadata()["velatura.reason"] == recommended.reason
        )
    assert f"step {best.step} has the lowest held-out loss" in recommended.reason
    short, _ = train(tmp_path, hard(examples, max_steps=best.step), "short")
    early, kept = load_file(short.lora_file), load_file(run.folder / "best.safetensors")
    assert all(torch.equal(early[name], tensor) for name, tensor in kept.items()), "the very adapter of that step"
    assert lora_file.inspect(run.lora_file).sha256 != lora_file.inspect(run.folder / "best.safetensors").sha256


def test_the_best_step_survives_a_stop(tmp_path: Path, examples: Path) -> None:
    whole, _ = train(tmp_path, hard(examples), "whole")
    run, stream = session.start(hard(examples), tmp_path, "broken", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 11:
            break
    stream.close()
    _, stream = session.start(hard(examples), tmp_path, "broken", run)
    list(stream)
    assert (run.folder / "best.safetensors").read_bytes() == (whole.folder / "best.safetensors").read_bytes()


def losses(mean: float, spread: float = 0.01, num: int = 20) -> torch.Tensor:
    return (mean + spread * torch.linspace(-1, 1, num, dtype=torch.float64))[:, None].expand(num, 10)


def test_the_alarm_is_raised_once_when_the_loss_is_clearly_above_its_best_twice() -> None:
    judge, base = validation.Judge(), losses(1.0)
    raised = []
    for step, mean in enumerate((0.9, 0.8, 0.84, 0.88, 0.9, 0.95), start=1):
        judge.add(step, base, losses(mean))
        raised.append(judge.alarm(step))
    assert [bool(alarm) for alarm in raised] == [False, False, False, True, False, False]
    assert isinstance(raised[3], Overtrained) and raised[3].best_step == 2 and "by heart" in raised[3].message


def test_noise_raises_no_alarm() -> None:
    judge, base = validation.Judge(), losses(1.0)
    noise = torch.Generator().manual_seed(0)
    for step in range(1, 9):
        now = losses(0.8) + 0.2 * torch.randn(20, 1, generator=noise, dtype=torch.float64)
        judge.add(step, base, now)
        assert judge.alarm(step) is None


def test_a_run_told_to_stop_early_does_and_is_finished(tmp_path: Path, examples: Path) -> None:
    run, events = train(
        tmp_path, hard(examples, max_steps=60, **{"validation.stop_when_overtrained": True, "validation.leave_out": 5})
    )
    assert isinstance(events[-1], Finished) and events[-1].step < 60 and run.state() == "finished"
    assert any(isinstance(event, Overtrained) for event in events)


def test_folds_measure_every_picture_once_and_choose_the_step(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, events = train(tmp_path, config(tiny, pictures, **{"validation.folds": 3}))
    folded = [event for event in events if isinstance(event, Folded)]
    assert [(fold.fold, fold.num_left_out, fold.steps) for fold in folded] == [
        (1, 2, [2, 4, 6, 8]),
        (2, 2, [2, 4, 6, 8]),
        (3, 2, [2, 4, 6, 8]),
    ]
    means = [sum(fold.losses[place] / fold.base_loss for fold in folded) for place in range(4)]
    (recommended,) = [event for event in events if isinstance(event, Recommended)]
    assert recommended.step == [2, 4, 6, 8][means.index(min(means))] and "3 folds" in recommended.reason
    assert (run.folder / "best.safetensors").is_file()


def test_folds_that_were_stopped_go_on_where_they_were(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, pictures, **{"validation.folds": 2})
    whole, _ = train(tmp_path, settings, "whole")
    second = tmp_path / "stopped" / "folds" / "2" / "events.jsonl"

    def stop(self) -> bool:
        return second.is_file() and '"event": "step"' in second.read_text()

    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopRequest, "__call__", stop)
        run, events = train(tmp_path, settings, "stopped")
    assert isinstance(events[-1], Stopped) and run.state() == "unfinished"
    _, stream = session.start(settings, tmp_path, "stopped", run)
    assert isinstance(list(stream)[-1], Finished)
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert (run.folder / "best.safetensors").read_bytes() == (whole.folder / "best.safetensors").read_bytes()


@pytest.mark.parametrize(("setting", "value"), [("leave_out", 6), ("folds", 7)])
def test_leaving_out_more_than_there_is_is_refused(
    setting: str, value: int, tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    with pytest.raises(ConfigError, match=f"validation.{setting} is {value}; allowed for 6 pictures: less than 6"):
        train(tmp_path, config(tiny, pictures, **{f"validation.{setting}": value}))


def test_drift_is_zero_for_the_base_and_grows_with_training(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    _, events = train(
        tmp_path,
        config(tiny, pictures, **{"validation.leave_out": 1, "validation.neutral_prompts": ["a tree", "a house"]}),
    )
    drifts = [event.drift for event in events if isinstance(event, Validated)]
    assert all(drift is not None and drift > 0 for drift in drifts) and drifts[-1] > drifts[0]
    _, events = train(
        tmp_path,
        config(
            tiny, pictures, learning_rate=1e-6, **{"validation.leave_out": 1, "validation.neutral_prompts": ["a tree"]}
        ),
        "still",
    )
    assert [event.drift for event in events if isinstance(event, Validated)][-1] < 1e-4


def test_a_copy_of_a_training_picture_is_recognised_and_another_picture_is_not(examples: Path) -> None:
    settings = presets.load(plain.STYLE, {"data.folder": str(examples / "outline-style" / "train")})
    items = data.scan(settings).items
    album = likeness.Album(items, "#ffffff")
    copy = data.open_image(items[7].path).resize((200, 200))
    score, name = album.nearest(copy)
    assert name == items[7].path.name and score >= likeness.COPY
    others = [
        album.nearest(data.open_image(path))[0] for path in sorted((examples / "grey-cat" / "train").glob("*.png"))
    ]
    assert max(others) < likeness.COPY


def test_previews_say_which_training_picture_they_are_most_like(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    _, events = train(
        tmp_path, config(tiny, pictures, max_steps=2, preview_every_steps=2, **{"preview.prompts": ["a dot"]})
    )
    assert all(
        event.nearest is not None and event.nearest_picture.endswith(".png")
        for event in events
        if isinstance(event, Sampled)
    )


def test_saw_gives_the_strings_and_pictures_of_a_step(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the run's own steps got, recorded as they went by, against what is reconstructed afterwards."""
    from trainer.training_model import TrainingModel

    captions: list[str] = []
    real = TrainingModel.predict_part

    def predict(self, part):
        captions.extend(part.captions)
        return real(self, part)

    shuffled = {
        "captions.shuffle_tags": True,
        "captions.tag_dropout": 0.2,
        "data.caption_dropout": 0.2,
        "data.flip": True,
        "data.crop": "random",
    }
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModel, "predict_part", predict)
        run, _ = train(tmp_path, config(tiny, pictures, accumulation=2, **shuffled))
    seen = [example for step in range(1, 9) for example in step_inputs.at(run, step)]
    assert [example.caption for example in seen] == captions
    assert (
        any(example.dropped for example in seen)
        and any(example.mirrored for example in seen)
        and len({example.caption for example in seen}) > 6
    )
    step_inputs.at(run, 3, tmp_path / "seen")
    files = sorted((tmp_path / "seen").glob("*.png"))
    for path, entry in zip(files, step_inputs.at(run, 3), strict=True):
        with Image.open(path) as opened:
            assert opened.size == (entry.width_px, entry.height_px)


def test_saw_refuses_a_step_that_was_not_and_pictures_that_changed(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in pictures.glob("*"):
        (folder / path.name).write_bytes(path.read_bytes())
    run, _ = train(tmp_path, config(tiny, folder, max_steps=2))
    with pytest.raises(ConfigError, match="--step is 3; allowed for run x: 1 to 2"):
        step_inputs.at(run, 3)
    (folder / "0.txt").write_text("changed")
    with pytest.raises(RunError, match="have changed"):
        step_inputs.at(run, 1)


def test_dataset_saw_prints_json(tmp_path: Path, tiny: Path, pictures: Path, run_velatura) -> None:
    run, _ = train(tmp_path, config(tiny, pictures, max_steps=1))
    done = run_velatura("dataset", "saw", run.folder, "--step", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert [entry["caption"] for entry in json.loads(done.stdout)] == [
        entry.caption for entry in step_inputs.at(run, 1)
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pushed_far_too_long_the_recommended_checkpoint_beats_the_last(tmp_path: Path, examples: Path) -> None:
    """The style preset as it ships, 1,500 steps instead of 100 on 44 pictures, measured on 40 it never saw."""
    style = examples / "outline-style"
    settings = session.preset_config(
        "imprimatura-style", str(style / "train"), str(style / "heldout"), ["max_steps=1500", "preview_every_steps=0"]
    )
    run, events = train(tmp_path, settings)
    measured = {event.step: event for event in events if isinstance(event, Validated)}
    recommended = next(event for event in events if isinstance(event, Recommended))
    alarm = next(event for event in events if isinstance(event, Overtrained))
    for event in measured.values():
        print(
            f"step {event.step}: {event.gain:.1%} ({event.gain_low:.1%} to {event.gain_high:.1%}), on training "
            f"pictures {event.train_gain:.1%}"
        )
    print(f"recommended: step {recommended.step}; alarm: step {alarm.step}")
    best, last = measured[recommended.step], measured[1500]
    assert recommended.file == "best.safetensors" and (run.folder / "best.safetensors").is_file()
    assert best.step <= 300 and alarm.step <= 600
    assert (
        best.gain_low > 0 > last.gain_high
    )  # the best helps on pictures it never saw, the last one harms: both clearly
    assert load_file(run.folder / "best.safetensors").keys() == load_file(run.lora_file).keys()
