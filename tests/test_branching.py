"""A run that is extended, branched off, or goes on from a LoRA: by what it trains and draws, never by what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.branches import RICH, drawn, losses, same, settings_of, step_0, stopped, trained, weights_of
from trainer import families, lora_file, more_steps, presets, runs, session, start_weights
from trainer.config import TrainConfig, digest
from trainer.config.starting import lengths
from trainer.errors import ConfigError, RunError, UserError
from trainer.events import Step, Warned
from trainer.optim.schedules import factor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "mokka dot, {colour}, round", num=5, wider_px=30)


@pytest.fixture(scope="module")
def settings(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    return settings_of(tiny, pictures)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, settings: Callable[..., TrainConfig]) -> runs.Run:
    """Nine steps with a cosine schedule and a running mean, a checkpoint every third."""
    return trained(tmp_path_factory.mktemp("old"), settings(**RICH))


# Extending.


def test_a_finished_run_of_constant_rate_extended_is_an_unbroken_one(tmp_path: Path, settings) -> None:
    short = trained(tmp_path / "extended", settings(**RICH, **{"optimizer.schedule": "constant"}))
    wanted = more_steps.extended(short, 4)
    extended = trained(tmp_path / "extended", wanted)
    unbroken = trained(tmp_path / "unbroken", settings(**RICH, **{"optimizer.schedule": "constant"}, max_steps=13))
    assert extended.folder == short.folder
    assert losses(extended) == losses(unbroken)
    assert same(weights_of(extended), weights_of(unbroken))
    assert extended.config().max_steps == 13 and extended.state() == "finished"


@pytest.mark.parametrize("schedule", ["cosine", "linear", "restarts", "rex"])
def test_a_run_extended_is_the_unbroken_run_of_its_extended_settings(schedule: str, tmp_path: Path, settings) -> None:
    first = settings(**{"optimizer.schedule": schedule, "optimizer.cycles": 2} if schedule == "restarts" else {
        "optimizer.schedule": schedule})  # fmt: skip
    stopped(tmp_path, first, 7)
    wanted = more_steps.extended(runs.Run(tmp_path / "x"), 5)
    assert wanted.optimizer.extended == ("6=9",)
    extended = trained(tmp_path, wanted)
    unbroken = trained(tmp_path, wanted, "unbroken")
    assert losses(extended) == losses(unbroken)
    assert same(weights_of(extended), weights_of(unbroken))
    said = [event.message for event in extended.events() if isinstance(event, Warned)]
    assert any("extended at step 6 from 9 to 14 steps" in line and "another LoRA" in line for line in said)


def test_a_run_may_be_extended_again_and_killed_between(tmp_path: Path, settings) -> None:
    trained(tmp_path, settings())
    wanted = more_steps.extended(runs.Run(tmp_path / "x"), 4)
    run, stream = session.start(wanted, tmp_path, "x", session.resumable(tmp_path, "x", wanted))
    for event in stream:
        if isinstance(event, Step) and event.step == 11:
            break
    stream.close()
    assert run.state() == "unfinished"
    trained(tmp_path, run.config())
    again = more_steps.extended(run, 2)
    assert again.optimizer.extended == ("9=9", "13=13") and again.max_steps == 15
    unbroken = trained(tmp_path, again, "unbroken")
    assert losses(trained(tmp_path, again)) == losses(unbroken)


def test_extending_twice_before_it_goes_on_is_one_extension(tmp_path: Path, settings) -> None:
    run = trained(tmp_path, settings())
    more_steps.apply(run, more_steps.extended(run, 4))
    wanted = more_steps.extended(run, 3)
    assert wanted.optimizer.extended == ("9=9",) and wanted.max_steps == 16


def test_what_cannot_be_extended_is_said(tmp_path: Path, settings) -> None:
    fresh = runs.create(tmp_path, "fresh", settings())
    with pytest.raises(RunError, match="no step yet"):
        more_steps.extended(fresh, 5)
    run = trained(tmp_path, settings())
    for steps in (0, -3, 10**7):
        with pytest.raises(ConfigError, match="allowed: 1 to"):
            more_steps.extended(run, steps)
    presets.save(settings(**{"validation.folds": 2}), run.config_file)
    with pytest.raises(RunError, match="folds"):
        more_steps.extended(run, 5)


def test_other_settings_beside_more_steps_are_no_extension(tmp_path: Path, settings) -> None:
    run = trained(tmp_path, settings())
    other = more_steps.extended(run, 5).model_copy(update={"learning_rate": 0.5})
    with pytest.raises(ConfigError, match="learning_rate was"):
        session.resumable(tmp_path, "x", other)


@pytest.mark.parametrize(
    "lines", [("x",), ("5",), ("0=9",), ("10=9",), ("5=9", "5=12"), ("5=9", "4=12"), ("3=9", "5=9"), ("9" * 30 + "=1",)]
)
def test_lines_of_extensions_that_mean_nothing_are_refused(lines: tuple[str, ...], settings) -> None:
    with pytest.raises(ValueError, match="allowed: STEP=STEPS"):
        lengths(lines)
    with pytest.raises(ConfigError, match="optimizer.extended"):
        settings(**{"optimizer.extended": list(lines)})


def test_the_schedule_before_an_extension_stays_what_it_was(settings) -> None:
    short, long = settings(), settings(max_steps=20, **{"optimizer.extended": ["6=9"]})
    rates = [factor(long.optimizer, step, 20) for step in range(20)]
    assert rates[:6] == [factor(short.optimizer, step, 9) for step in range(6)]
    assert rates[6] > rates[5]


def test_runs_of_earlier_versions_keep_their_digest(settings) -> None:
    import hashlib

    wanted = settings()
    values = wanted.model_dump(mode="json")
    del values["start"], values["optimizer"]["extended"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert digest(wanted) == hashlib.sha256(text.encode()).hexdigest()
    assert digest(wanted) != digest(settings(**{"start.source": "fox.safetensors"}))


# Branching.


def branch(old: runs.Run, step: int, parent: Path, name: str = "b", **changes: object) -> runs.Run:
    source = {"start.source": str(old.checkpoints / f"step-{step:06d}")}
    return trained(parent, session.absolute(presets.load(str(old.config_file), source | changes)), name)


def test_a_branch_with_nothing_changed_takes_the_old_runs_next_steps(old: runs.Run, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in old.folder.rglob("*") if path.is_file())
    new = branch(old, 3, tmp_path, **{"start.optimizer": True})
    assert losses(new) == [step for step in losses(old) if step[0] > 3]
    assert same(weights_of(new), weights_of(old))
    after = sorted((path, path.stat().st_mtime_ns) for path in old.folder.rglob("*") if path.is_file())
    assert before == [entry for entry in after if entry[0].name != ".lock"] or before == after


def test_a_branch_takes_other_settings_and_the_old_optimizer(old: runs.Run, tmp_path: Path) -> None:
    new = branch(old, 6, tmp_path, **{"start.optimizer": True, "learning_rate": 1e-3, "max_steps": 12})
    assert [step[0] for step in losses(new)] == [7, 8, 9, 10, 11, 12]
    assert losses(new)[0][1:3] == losses(old)[6][1:3]  # the same loss and gradient, another step from there
    assert losses(new)[1][1] != losses(old)[7][1]


def test_a_branch_of_weights_alone_begins_anew_with_what_the_step_drew(old: runs.Run, tmp_path: Path) -> None:
    from trainer import checkpoint_files

    new = branch(old, 6, tmp_path)
    assert [step[0] for step in losses(new)] == [*range(1, 10)]
    wanted = new.config()
    pipe = families.registry()[wanted.family].load(Path(wanted.base), "cpu", torch.float32)
    files = checkpoint_files.files(old, wanted.family, families.registry()[wanted.family].file_keys(pipe))
    file = next(path for path in files if path.stem.endswith("step-000006"))
    assert abs(step_0(new) - drawn(file, wanted)).max() <= 1
    assert abs(step_0(new) - step_0(old)).max() > 1


def test_a_branch_goes_on_though_the_old_run_is_gone(old: runs.Run, tmp_path: Path, settings) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(old.folder, copy)
    wanted = session.absolute(
        presets.load(str(old.config_file), {"start.source": str(copy), "start.optimizer": True, "max_steps": 14})
    )
    stopped(tmp_path, wanted, 10, "b")
    shutil.rmtree(copy)
    whole = branch(old, 9, tmp_path, "whole", **{"start.optimizer": True, "max_steps": 14})
    assert losses(trained(tmp_path, wanted, "b")) == losses(whole)


def test_the_lineage_stands_in_settings_and_header(old: runs.Run, tmp_path: Path) -> None:
    new = branch(old, 3, tmp_path, **{"start.optimizer": True})
    assert new.config().start.source == str(old.checkpoints / "step-000003")
    header = lora_file.read_header(new.lora_file).metadata
    recipe = lora_file.recipe_of(header)
    assert recipe and recipe["config"]["start"] == {"source": "x/step-000003", "optimizer": True}
    assert str(old.folder) not in json.dumps(header)
    with pytest.raises(ConfigError, match="start.source"):
        presets.load(str(new.lora_file), {"data.folder": "."})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter.rank": 5}, "adapter.rank is 5; allowed: 16"),
        ({"adapter.method": "loha"}, "adapter.method is 'loha'"),
        ({"start.optimizer": True, "optimizer.name": "lion"}, "optimizer.name is 'lion'"),
        ({"start.optimizer": True, "optimizer.weight_decay": 0.5}, "optimizer.weight_decay is 0.5"),
        ({"start.optimizer": True, "optimizer.ema_decay": 0.0}, "optimizer.ema_decay is 0.0"),
        ({"start.optimizer": True, "max_steps": 6}, "max_steps is 6"),
    ],
)
def test_a_branch_that_cannot_be_is_refused_before_anything_is_made(
    changes: dict, words: str, old: runs.Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", "\\(")):
        branch(old, 6, tmp_path / "runs", **changes)
    assert not (tmp_path / "runs").exists()


def test_a_damaged_checkpoint_is_refused(old: runs.Run, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(old.folder, copy)
    (copy / "checkpoints" / "step-000006" / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="damaged"):
        branch(runs.Run(copy), 6, tmp_path / "runs")


@pytest.mark.parametrize("source", ["", "/", "nothing", "x" * 4000, "a\nb", "/etc/passwd", "."])
def test_a_source_that_is_none_is_refused_in_words(source: str, settings) -> None:
    if source:
        with pytest.raises(UserError):
            start_weights.refuse(settings().model_copy(
                update={"start": settings().start.model_copy(update={"source": source})}))  # fmt: skip
    else:
        start_weights.refuse(settings())
