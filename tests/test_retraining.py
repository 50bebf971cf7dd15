"""`velatura retrain`: a recipe on new pictures, old and new asked the same questions, and a verdict that follows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import small_runs
from trainer import cli, events, presets, runs, session
from trainer.cards import retraining, sources
from trainer.errors import ConfigError
from trainer.events import Recommended, Validated
from trainer.printing import escape


@pytest.fixture(scope="module")
def old(tiny: Path, draw_dots: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    parent = tmp_path_factory.mktemp("old")
    pictures = draw_dots(parent / "pictures", "mokka, a {colour} dot", num=6)
    return small_runs.run_to_the_end(parent / "runs", small_runs.config(tiny, pictures))


@pytest.fixture(scope="module")
def new_pictures(draw_dots: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dots(tmp_path_factory.mktemp("new") / "pictures", "mokka, a {colour} dot, shiny", num=10)


def retrain(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["retrain", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_new_and_old_are_measured_as_the_run_measures(old: runs.Run, new_pictures: Path, tmp_path: Path) -> None:
    wanted = ("--out", tmp_path, "--name", "again", "--set", "max_steps=6")
    code, said = retrain(old.folder, "--data", new_pictures, *wanted)
    assert code == 0, said
    run = runs.Run(tmp_path / "again")
    answer = json.loads((run.folder / "compared.json").read_text())

    # Held out: a fifth of ten. The new one's loss is what its own run measured at its last step.
    assert answer["num_pictures"] == run.config().validation.leave_out == 2
    measured = [event for event in run.events() if isinstance(event, Validated)][-1]
    assert measured.step == 6 and answer["new"] == run.lora_file.name
    assert answer["new_loss"] == pytest.approx(measured.loss, rel=1e-4)
    assert answer["base_loss"] == pytest.approx(measured.base_loss, rel=1e-6)
    assert answer["gain"] == pytest.approx(1 - answer["new_loss"] / answer["old_loss"])
    assert answer["gain_low"] <= answer["gain"] <= answer["gain_high"] and answer["sentence"] in " ".join(said.split())
    page = run.report_file.read_text()
    assert "Against the old one" in page and escape(answer["sentence"], 400) in page
    config = run.config()
    assert config.learning_rate == old.config().learning_rate and config.data.folder == str(new_pictures)


def test_a_best_step_that_was_chosen_by_the_very_pictures_is_named_and_not_compared(
    old: runs.Run, tmp_path: Path
) -> None:
    run = runs.Run(shutil.copytree(old.folder, tmp_path / old.name))
    verdict = retraining.Verdict("new", "Take it.", 2, 1.0, 0.9, 0.8, 0.1, 0.05, 0.2)
    with run.events_file.open("a") as log:
        log.write(events.to_line(Recommended(1, old.lora_file.name, "it has the lowest loss")))
    said = retraining.with_best(verdict, run).sentence
    assert said.startswith("Take it.") and "its best, step 1, was chosen by these very pictures" in said


def test_it_can_begin_with_the_old_ones_weights(old: runs.Run, new_pictures: Path, tmp_path: Path) -> None:
    code, said = retrain(
        old.folder, "--data", new_pictures, "--out", tmp_path, "--name", "on", "--from-old", "--set", "max_steps=3",
        "--set", "learning_rate=1e-9",
    )  # fmt: skip
    answer = json.loads((tmp_path / "on" / "compared.json").read_text())
    assert code == 0 and answer["new_loss"] == pytest.approx(answer["old_loss"], rel=1e-4), said
    assert answer["old_loss"] != pytest.approx(answer["base_loss"], rel=1e-4)


def test_the_same_file_is_no_better_than_itself(old: runs.Run, new_pictures: Path, tmp_path: Path) -> None:
    values = {"data.folder": str(new_pictures), "validation.leave_out": 3}
    config = session.absolute(presets.changed(old.config(), values))
    verdict = retraining.compare(config, old.lora_file, old.lora_file, tmp_path / "cache")
    assert (verdict.better, verdict.gain, verdict.gain_low, verdict.gain_high) == ("neither", 0, 0, 0)
    assert verdict.num_pictures == 3 and "3 held-out pictures" in verdict.sentence


def test_pictures_that_the_old_run_saw_are_counted(old: runs.Run) -> None:
    config = presets.changed(old.config(), {"validation.leave_out": 2})
    assert retraining.seen_before(sources.of(str(old.folder)), config) == 2


def test_what_can_not_be_compared_is_refused_before_anything_is_trained(
    old: runs.Run, draw_dots: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = draw_dots(tmp_path / "few", "a {colour} dot", num=3)
    with pytest.raises(ConfigError, match="too few to hold some out; give --heldout"):
        retrain(old.folder, "--data", few, "--out", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is not here; name its file with --old"):
        retrain("imprimatura-style", "--data", old.config().data.folder, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
