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
from trainer.cards import retraining, sources, to_compare
from trainer.errors import AdapterError, ConfigError
from trainer.events import Recommended, Validated
from trainer.printing import escape
from trainer.report import compared


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


def train(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["train", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def verdict_of(run: runs.Run) -> dict[str, object]:
    values: dict[str, object] = json.loads((run.folder / "compared.json").read_text())
    return values


def test_a_training_is_compared_at_its_end_though_it_was_ended_before_and_anew_once_it_is_extended(
    old: runs.Run, new_pictures: Path, tmp_path: Path
) -> None:
    copy = shutil.copy(old.lora_file, tmp_path / "mine.safetensors")
    settings = small_runs.config(Path(old.config().base), new_pictures, max_steps=3)
    presets.save(settings, tmp_path / "wanted.toml")
    asked = (tmp_path / "wanted.toml", "--out", tmp_path / "runs", "--name", "x", "--compare-with", copy)
    code, said = train(*asked, "--resume", "--json")
    run = runs.Run(tmp_path / "runs" / "x")
    found = verdict_of(run)
    assert code == 0 and json.loads(said.splitlines()[-1]) == found and run.config().validation.leave_out == 2
    measured = [event for event in run.events() if isinstance(event, Validated)][-1]
    assert found["new_loss"] == pytest.approx(measured.loss, rel=1e-4) and found["old"] == "mine.safetensors"

    # As if it had been killed while it compared; the old one is gone meanwhile, and the run has its own copy.
    (run.folder / "compared.json").unlink()
    Path(copy).unlink()
    assert to_compare.is_to_do(run)
    code, said = train("--out", tmp_path / "runs", "--name", "x", "--resume")
    assert code == 0 and verdict_of(run) == found and not to_compare.is_to_do(run)

    # More steps: what was found of the third is not true of the sixth.
    code, said = train("--out", tmp_path / "runs", "--name", "x", "--extend", 3)
    again = verdict_of(run)
    assert code == 0 and again["old_loss"] == found["old_loss"] and again["new_loss"] != found["new_loss"]
    assert str(again["sentence"]) in " ".join(said.split())


def test_a_lora_that_nothing_could_be_compared_with_is_refused_before_a_training(
    old: runs.Run, new_pictures: Path, tmp_path: Path
) -> None:
    presets.save(small_runs.config(Path(old.config().base), new_pictures), tmp_path / "wanted.toml")
    asked = (tmp_path / "wanted.toml", "--out", tmp_path / "runs", "--compare-with")
    with pytest.raises(ConfigError, match="the LoRA to compare with, gone.safetensors, is not here"):
        train(*asked, tmp_path / "gone.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(AdapterError):
        train(*asked, tmp_path / "page.safetensors")
    assert not (tmp_path / "runs").exists()


def test_a_training_stands_though_it_could_not_be_compared(old: runs.Run, tmp_path: Path) -> None:
    run = runs.Run(shutil.copytree(old.folder, tmp_path / old.name))
    to_compare.keep(old.lora_file, run.folder / to_compare.FOLDER)  # and nothing is held out
    code, said = train("--out", tmp_path, "--name", run.name, "--resume")
    assert code == 0 and "could not be compared: there are no held-out pictures" in " ".join(said.split())
    assert compared.read(run.folder) is None and "no held-out pictures" in compared.problem(run.folder)
    assert "It could not be compared: there are no held-out pictures" in compared.html(run.folder)
    assert train("--out", tmp_path, "--name", run.name, "--resume")[1].count("compared") == 0  # told once


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
