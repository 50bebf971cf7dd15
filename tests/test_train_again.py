"""Training again on the page: what would happen, the job, and the verdict where it is looked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from PIL import Image
from typer.testing import CliRunner

from app import item_details, retraining, ui
from app.context import Context
from app.endpoints.retraining import RetrainingEndpoints
from app.job_table import Job
from app.tabs import train
from tests.doors_cards import card_values
from trainer import cli, lora_file, phases, presets, runs
from trainer.card_file import reading
from trainer.card_file.contents import Card
from trainer.cards import keeping, to_compare
from trainer.errors import ConfigError, DataError
from trainer.events import Validated
from trainer.report import compared

SHORT = {"max_steps": 2, "batch_size": 2, "preview_every_steps": 0, "validate_every_steps": 2}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path) -> Context:
    """A workspace with the run of `trained`, and seven new pictures."""
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = ui.open_workspace(tmp_path / "workspace")
    shutil.copytree(trained.parent, made.runs / "cat")
    draw(made, "new", 7)
    return made


def draw(context: Context, name: str, num: int) -> Path:
    folder = context.datasets / name
    folder.mkdir()
    for number in range(num):
        Image.new("RGB", (64, 64), (number * 30, 90, 40)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("mokka, a square")
    return folder


def run_child(context: Context, job: Job) -> str:
    """What the job's child does, in this process."""
    command = context.runner.work.command(job)
    result = CliRunner().invoke(cli.app, command[command.index("train") :])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def view_of(context: Context, job: Job) -> dict[str, Any]:
    """What the Train tab shows of a job, by the ids of its elements."""
    with gr.Blocks():
        tab = train._Tab(context)
    sent = tab.view.changes(job.id, {})
    return {part.elem_id: update for part, update in sent.items() if not isinstance(part, gr.State)}


def ahead(context: Context, key: str = "cat", dataset: str = "new", **more: Any) -> dict[str, Any]:
    return RetrainingEndpoints(context).forecast_retrain("runs", key, dataset, **more)


def texts(problems: list[dict[str, Any]]) -> str:
    return " ".join(problem["text"] for problem in problems)


def test_a_run_is_trained_again_compared_and_the_verdict_stands_in_train(context: Context) -> None:
    asking = RetrainingEndpoints(context)
    row = asking.retrain("runs", "cat", "new", name="again", settings=SHORT)
    job = context.runner.get(row["id"])
    assert "compared with cat" in view_of(context, job)["verdict"]["value"]

    # Renamed and thrown away while the job waits, the old one is compared with all the same.
    shutil.rmtree(context.runs / "cat")
    run_child(context, job)
    run = runs.Run(context.runs / "again")
    config, found = run.config(), asking.compared("again")
    assert (config.data.folder, config.validation.leave_out) == (str(context.datasets / "new"), 2)
    assert config.adapter == presets.load(str(next(iter(context.find_loras().values())).path), {}).adapter

    # The figures are those that the run itself measured, on the two that were held out.
    measured = [event for event in run.events() if isinstance(event, Validated)][-1]
    assert found["num_pictures"] == 2 and found["old"] == "cat.safetensors"
    assert found["losses"][0] == pytest.approx(measured.base_loss, rel=1e-6)
    assert found["losses"][2] == pytest.approx(measured.loss, rel=1e-4)
    assert found["gain"] == pytest.approx(1 - found["losses"][2] / found["losses"][1])

    shown = view_of(context, job)
    assert found["says"] in shown["verdict"]["value"] and "95 % interval" in shown["verdict"]["value"]
    assert shown["use-better"]["visible"] is (found["better"] == "new")  # the old one is gone


@pytest.mark.slow
def test_a_run_is_not_done_before_it_is_compared(context: Context) -> None:
    """Killed while it compares, its child goes on with that and trains nothing anew."""
    row = RetrainingEndpoints(context).retrain("runs", "cat", "new", name="again", settings=SHORT)
    job = context.runner.get(row["id"])
    run_child(context, job)
    run = runs.Run(context.runs / "again")
    before, log = (run.folder / compared.FILE).read_text(), run.events_file.read_bytes()
    assert context.runner.work.finished(job)
    (run.folder / compared.FILE).unlink()
    assert run.state() == "finished" and not context.runner.work.finished(job)
    phases.Teller(run, True).tell("comparing")
    with context.runner._connect() as connection:
        connection.execute("UPDATE job SET state = 'running' WHERE id = ?", (job.id,))
    assert "Comparing old and new" in view_of(context, context.runner.get(job.id))["progress"]
    run_child(context, job)
    assert context.runner.work.finished(job) and (run.folder / compared.FILE).read_text() == before
    assert run.events_file.read_bytes() == log and phases.read(run) is None


def test_it_begins_with_the_old_one_where_that_is_wanted(context: Context) -> None:
    row = RetrainingEndpoints(context).retrain("runs", "cat", "new", from_old=True, settings={"max_steps": 7})
    config = presets.load(context.runner.work.command(context.runner.get(row["id"]))[4], {})
    assert config.start.source == str(context.runs / "cat" / "cat.safetensors") and config.max_steps == 7
    assert "goes on from" in texts([{"text": fact} for fact in ahead(context, from_old=True)["facts"]])


def test_a_start_without_comparing_forgets_what_an_earlier_one_was_compared_with(context: Context) -> None:
    asking = RetrainingEndpoints(context)
    job = context.runner.get(asking.retrain("runs", "cat", "new", settings=SHORT)["id"])
    assert "--compare-with" in context.runner.work.command(job)
    with gr.Blocks():
        tab = train._Tab(context)
    config = presets.load(context.runner.work.command(job)[4], {})
    retraining.go_with(tab.context, config, job.config, "")
    assert "--compare-with" not in context.runner.work.command(job)


# Before a start.


def test_what_would_be_compared_on_what_is_said_before(context: Context) -> None:
    shown = ahead(context)
    assert shown["problems"] == [] and "2 pictures held out to compare old and new on" in shown["facts"]
    draw(context, "apart", 3)
    assert "old and new compared on the held-out set" in ahead(context, heldout="apart")["facts"]
    three = ahead(context, settings={"validation.leave_out": 3})
    assert "3 pictures held out to compare old and new on" in three["facts"]
    assert context.runner.every() == []


@pytest.mark.parametrize(
    ("key", "dataset", "settings", "words"),
    [
        ("cat", "few", {}, "4 pictures are too few to hold some out"),
        ("cat", "new", {"family": "sdxl"}, "can only be compared with a LoRA for that"),
        ("cat", "nothing", {}, "dataset 'nothing' is not here"),
        ("gone", "new", {}, "renamed or thrown away"),
    ],
)
def test_what_must_fail_is_not_queued(
    context: Context, key: str, dataset: str, settings: dict[str, Any], words: str
) -> None:
    draw(context, "few", 4)
    with pytest.raises((ConfigError, DataError), match=words):
        RetrainingEndpoints(context).retrain("runs", key, dataset, settings=settings)
    assert context.runner.every() == [] and not (context.workspace / "configs" / "cards").exists()


@pytest.mark.slow
def test_an_old_one_that_knows_the_pictures_is_told_of(context: Context) -> None:
    # What its header says that it was trained on.
    name = item_details.trained_on(retraining.of(context, "runs/cat").old)
    shutil.copytree(context.datasets / "new", context.datasets / name)
    assert "was trained on this very set" in texts(ahead(context, dataset=name)["notes"])
    assert "was trained on this very set" not in texts(ahead(context)["notes"])
    job = context.runner.get(RetrainingEndpoints(context).retrain("runs", "cat", name, settings=SHORT)["id"])
    command = context.runner.work.command(job)
    old = Path(command[command.index("--compare-with") + 1])
    assert to_compare.seen(old.parent) == 2  # both that are held out lie in the set that it was trained on
    run_child(context, job)
    found = RetrainingEndpoints(context).compared(job.name)
    assert found["says"].endswith("The old one was trained on 2 of these pictures, which favours it.")


# What can be trained again.


def test_a_lora_made_here_and_a_card_whose_lora_is_here_can_be_trained_again(context: Context) -> None:
    (sha256,) = context.find_loras()
    assert retraining.is_possible(context, "loras", sha256) and retraining.is_possible(context, "runs", "cat")
    assert not retraining.is_possible(context, "presets", "preset:imprimatura-style")
    assert not retraining.is_possible(context, "datasets", "new") and not retraining.is_possible(context, "runs", "x")

    # A card names its LoRA by hash; without that there is nothing to compare with.
    settings = presets.load("imprimatura-style", {})
    for digest, can in ((sha256, True), ("0" * 64, False)):
        card = Card(**card_values(loras=[{"role": "made", "sha256": digest}], samples=[]))
        kept = keeping.keep(reading.packed(card, settings))
        assert retraining.is_possible(context, "presets", f"card:{kept.stem}") is can
        if can:
            again = retraining.of(context, f"presets/card:{kept.stem}")
            assert again.old.sha256 == sha256 and again.name == "A cat"
            assert retraining.settings(context, again.key)[1] == kept.stem
    assert retraining.of(context, f"loras/{sha256}").old.sha256 == sha256


def test_a_run_whose_lora_is_gone_says_so(context: Context) -> None:
    for path in (context.runs / "cat").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match="the LoRA of cat is not here"):
        retraining.of(context, "runs/cat")
    assert not retraining.is_possible(context, "runs", "cat")


@pytest.mark.parametrize("key", ["", "x", "runs/", "runs/../cat", "loras/../../x", "presets/card:../x", "runs/\0"])
def test_a_key_that_a_browser_made_up_leads_nowhere(context: Context, key: str) -> None:
    with pytest.raises((DataError, ConfigError)):
        retraining.of(context, key)


def test_the_old_one_that_a_run_keeps_is_no_second_lora_of_the_library(context: Context) -> None:
    run = runs.Run(context.runs / "cat")
    to_compare.keep(run.lora_file, run.folder / to_compare.FOLDER, 3)
    old = to_compare.of_run(run)
    assert old is not None and old.read_bytes() == run.lora_file.read_bytes()
    assert to_compare.seen(old.parent) == 3 and to_compare.is_to_do(run)
    assert [info.path for info in context.find_loras().values()] == [run.lora_file]
    assert [info.path for info in lora_file.library([context.runs]).values()] == [run.lora_file]
    for broken in ("[", '{"seen": -1}', '{"seen": "x"}', "[" * 5000, "\0"):
        (old.parent / "old.json").write_text(broken)
        assert to_compare.seen(old.parent) == 0
