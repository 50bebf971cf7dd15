"""What users of other trainers complain of most, a test each.

The numbers are those of a survey of other trainers. Those of installation, the page and jobs (1, 3, 4, 6, 8, 16, 17)
have their tests in `test_doctor.py`, `test_browser.py` and `test_app_jobs.py`; those of the dataset (13, 14, 15, 22,
27) in `test_data.py`, `test_data_pictures.py`, `test_sources.py` and `test_dataset_check.py`; resuming (9) in
`test_resume.py`; the file (11) in `test_lora_file.py`; memory (2, 21, 26) in `test_memory_ladder.py` and
`test_rehearsal.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import plain
from trainer import cache, checkpoint, events, lora_file, optim, presets, runs, session
from trainer.errors import ConfigError, RunError
from trainer.events import Failed, Finished, Recommended, Step, Validated, Warned
from trainer.families import registry
from trainer.training_model import TrainingModel


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot")


def config(tiny: Path, pictures: Path, **settings: object):
    values = {
        "base": str(tiny), "resolution_px": 32, "max_steps": 6, "batch_size": 2, "checkpoint_every_steps": 2,
        "preview_every_steps": 0,
        "learning_rate": 1e-2, "data.folder": str(pictures), "preview.prompts": [],
    }  # fmt: skip
    return presets.load(plain.CHARACTER, values | settings)


def train(parent: Path, settings, name: str = "x") -> tuple[runs.Run, list[events.Event]]:
    run, stream = session.start(settings, parent, name, None)
    return run, list(stream)


# 5: "Training complete", but nothing was trained.


def test_05_a_run_that_trained_nothing_is_no_success(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, stream = session.start(config(tiny, pictures, learning_rate=1e-30), tmp_path, "x", None)
    with pytest.raises(RunError, match="would do nothing"):
        list(stream)
    assert isinstance(run.events()[-1], Failed) and not run.lora_file.exists() and run.state() == "unfinished"


# 7: settings that are silently ignored.


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("objective.min_snr_gamma", 3.0, "objective.weighting"),
        ("objective.huber_delta", 0.5, "objective.loss"),
        ("data.mask_folder", "x", "data.mask"),
        ("objective.shift", "resolution", "prediction"),
        ("optimizer.cycles", 5, "optimizer.schedule"),
        ("captions.variants", 3, "captions.shuffle_tags"),
        ("inversion.vectors", 4, "inversion.token"),
        ("against.overlap_penalty", 1.0, "against.adapters"),
        ("data.class_caption", "cat", "objective.preservation"),
        ("objective.unmasked_weight", 0.5, "data.mask"),
        ("data.regularisation_weight", 0.5, "data.regularisation"),
        ("optimizer.other", "CAME", "optimizer.name"),
    ],
)
def test_07_a_setting_that_nothing_would_read_is_refused_by_name(
    setting: str, value: object, why: str, tiny: Path, pictures: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){setting} is .* but nothing would read it: .*{why}"):
        config(tiny, pictures, **{setting: value})


@pytest.mark.parametrize("name", ["objective.min_snr_gamma", "objective.huber_delta"])
def test_07_zero_that_would_zero_the_loss_is_refused(name: str, tiny: Path, pictures: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; allowed: more than 0"):
        config(tiny, pictures, **{name: 0, "objective.weighting": "min-snr", "objective.loss": "huber"})


def test_07_what_is_set_is_what_the_file_says_was_used(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, _ = train(tmp_path, config(tiny, pictures, **{"objective.noise_offset": 0.05}))
    recipe = lora_file.inspect(run.lora_file).recipe
    assert recipe is not None and recipe["config"]["objective"]["noise_offset"] == 0.05


# 10: which checkpoint is the best?


def test_10_a_run_says_which_step_to_use_and_why(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    _, events = train(tmp_path, config(tiny, pictures, validate_every_steps=2, **{"validation.leave_out": 1}))
    (recommended,) = [event for event in events if isinstance(event, Recommended)]
    best = min((event for event in events if isinstance(event, Validated)), key=lambda event: event.loss)
    assert recommended.step == best.step and len(recommended.reason.split()) > 10


# 12: the same config, another result.


def test_12_the_recipe_names_version_dataset_and_every_setting(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    run, _ = train(tmp_path, config(tiny, pictures))
    recipe = lora_file.inspect(run.lora_file).recipe
    assert recipe is not None and recipe["velatura"] and recipe["dataset"]["digest"]
    again = presets.load(str(run.lora_file), {"base": str(tiny), "data.folder": str(pictures)})
    other, _ = train(tmp_path, again, "again")
    assert other.lora_file.read_bytes() == run.lora_file.read_bytes()


# 18: NaN and black pictures.


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The `at`-th prediction of the run's steps has a NaN in its second picture."""
    real, count = TrainingModel.predict_part, 0

    def predict(self, part):
        nonlocal count
        count += 1
        latents = real(self, part)
        if count == at:
            latents = latents.clone()
            latents[1, 0, 0, 0] = float("nan")
        return latents

    monkeypatch.setattr(TrainingModel, "predict_part", predict)


def test_18_a_nan_in_the_loss_names_the_picture_and_the_step(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny, pictures)
    poisoned(monkeypatch, at=4)
    run, stream = session.start(settings, tmp_path, "x", None)
    with pytest.raises(RunError, match=r"step 4 gave a loss of nan for \d\.png; the last checkpoint is good"):
        list(stream)
    saved = checkpoint.load_latest(run.checkpoints)[0]
    assert saved is not None and saved.step == 2
    assert all(torch.isfinite(tensor).all() for tensor in saved.tensors["adapter"].values())


def test_18_a_nan_in_the_latents_stops_before_the_first_step(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sd = registry()["sd"]
    monkeypatch.setitem(
        registry(), "sd", replace(sd, encode_image=lambda pipe, images: sd.encode_image(pipe, images) * float("inf"))
    )
    _, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with pytest.raises(ConfigError, match=r"autoencoder gave NaN for 0\.png, 1\.png"):
        list(stream)


def test_18_a_gradient_that_is_no_number_stops_within_the_step(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import loop

    real, count = loop.learn, 0

    def learn(studio, step):
        nonlocal count
        count += 1
        result = real(studio, step)
        if count == 3:
            next(iter(studio.trained.values())).grad.view(-1)[0] = float("inf")
        return result

    monkeypatch.setattr(loop, "learn", learn)
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with pytest.raises(RunError, match="step 3 gave a loss of .* and a gradient of"):
        list(stream)
    assert checkpoint.load_latest(run.checkpoints)[0].step == 2


def test_18_a_weight_that_is_no_number_stops_within_the_step(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = optim.set_rate, 0

    def set_rate(optimizer, settings, step):
        nonlocal count
        count += 1
        rate = real(optimizer, settings, step)
        if count == 3:
            optimizer.param_groups[0]["lr"] = float("inf")
        return rate

    monkeypatch.setattr(optim, "set_rate", set_rate)
    run, stream = session.start(config(tiny, pictures), tmp_path, "x", None)
    with pytest.raises(RunError, match="step 3 gave an adapter with weights that are no numbers"):
        list(stream)
    assert checkpoint.load_latest(run.checkpoints)[0].step == 2


# 19: alpha folklore.


def test_19_alpha_equal_to_rank_is_unscaled_and_half_of_it_halves_the_update(
    tiny: Path, pictures: Path, tmp_path: Path
) -> None:
    whole, _ = train(tmp_path, config(tiny, pictures, **{"adapter.rank": 4, "adapter.alpha": 4.0}), "whole")
    half, _ = train(tmp_path, config(tiny, pictures, **{"adapter.rank": 4, "adapter.alpha": 2.0}), "half")
    assert 0.3 < lora_file.inspect(half.lora_file).norm / lora_file.inspect(whole.lora_file).norm < 0.8


# A disk that is full, a tracker or preview that fails: nothing is lost.


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(tmp_path, config(tiny, pictures), "whole")
    real, count = checkpoint.write_synced, 0

    def write(path, content):
        nonlocal count
        count += 1
        if 3 < count < 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoint, "write_synced", write)
    run, events = train(tmp_path, config(tiny, pictures))
    assert isinstance(events[-1], Finished)
    assert [event.message for event in events if isinstance(event, Warned) and "No space left" in event.message]
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()
    assert not list(run.checkpoints.glob(".new-*"))


def test_a_log_on_a_full_disk_waits_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = events.Log(tmp_path / "events.jsonl")
    log.write(Warned("one"))
    real = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, *rest, **more: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    log.write(Warned("two"))
    monkeypatch.setattr(Path, "open", real)
    log.write(Warned("three"))
    assert [event.message for event in events.read(tmp_path / "events.jsonl")] == ["one", "two", "three"]


def test_a_cache_that_cannot_be_written_is_said_in_words(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path, entry):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(cache, "_write", full)
    run, events = train(tmp_path, config(tiny, pictures))
    assert isinstance(events[-1], Finished), "it trains from memory"
    assert any(
        "cache" in event.message and "No space left" in event.message for event in events if isinstance(event, Warned)
    )


def test_every_step_is_the_same_whatever_else_is_watched(tmp_path: Path, tiny: Path, pictures: Path) -> None:
    """Previews, validation, drift and trackers on or off: the same losses, the same bytes but for the recipe."""
    quiet, _ = train(tmp_path, config(tiny, pictures), "quiet")
    loud = {
        "preview_every_steps": 1, "preview.prompts": ["a dot"], "preview.steps": 2, "validate_every_steps": 1,
        "data.heldout": str(pictures),
        "validation.neutral_prompts": ["a tree"], "track": "tensorboard",
    }  # fmt: skip
    watched, _ = train(tmp_path, config(tiny, pictures, **loud), "watched")
    first, second = ([event.loss for event in run.events() if isinstance(event, Step)] for run in (quiet, watched))
    assert first == second and lora_file.inspect(quiet.lora_file).sha256 == lora_file.inspect(watched.lora_file).sha256


def test_memory_stays_flat_with_the_dataset(tmp_path: Path) -> None:
    """Entries beyond the limit are read back from disk, the same."""
    store = cache.Store(tmp_path, kept_bytes=4000)
    made = [torch.randn(100) for _ in range(50)]
    for number, tensor in enumerate(made):
        store.get(cache.key(number), lambda tensor=tensor: {"x": tensor})
    assert sum(entry["x"].nbytes for entry in store._kept.values()) <= 4000
    assert all(torch.equal(store.get(cache.key(number), dict)["x"], tensor) for number, tensor in enumerate(made))
    assert store.num_computed == 50


def test_18_a_float16_base_learns_as_a_float32_one_does_and_resumes_exactly(
    tmp_path: Path, tiny: Path, pictures: Path
) -> None:
    """Gradients that would vanish in float16 are scaled up for the way back; ones that overflow are scaled down and
    taken again.
    """
    whole, events = train(tmp_path, config(tiny, pictures, dtype="float16"), "half")
    full, wanted = train(tmp_path, config(tiny, pictures, dtype="float32"), "full")
    for half, other in zip(
        *([event for event in log if isinstance(event, Step)] for log in (events, wanted)), strict=True
    ):
        assert half.loss == pytest.approx(other.loss, rel=0.02) and half.grad_norm == pytest.approx(
            other.grad_norm, rel=0.1
        )
    run, stream = session.start(config(tiny, pictures, dtype="float16"), tmp_path, "broken", None)
    for event in stream:
        if isinstance(event, Step) and event.step == 3:
            break
    stream.close()
    list(session.start(config(tiny, pictures, dtype="float16"), tmp_path, "broken", run)[1])
    assert run.lora_file.read_bytes() == whole.lora_file.read_bytes()


def test_18_a_loss_scale_that_overflows_is_halved_until_it_fits(
    tmp_path: Path, tiny: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.optim.scaling.INITIAL", 2.0**40)
    run, events = train(tmp_path, config(tiny, pictures, dtype="float16"))
    assert isinstance(events[-1], Finished) and [event.step for event in events if isinstance(event, Step)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert checkpoint.load_latest(run.checkpoints)[0].state["loss_scale"]["scale"] < 2.0**40
