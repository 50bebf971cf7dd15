"""A training paused and resumed, a queue that waits or goes on, and the grid that follows a finished training."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from app import batches, job_plans, run_grid, ui
from app.context import Context
from app.job_table import Job
from app.job_work import REHEARSAL
from app.tabs import batch
from tests.test_app_jobs import ENDS, SLEEPS, Make, make, until, wait_for  # noqa: F401  # make is a fixture
from trainer import presets, runs
from trainer.config import BatchConfig, parse
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError, RunError


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    yield ui.open_workspace(tmp_path / "workspace")


# Pausing.


def test_a_paused_training_waits_for_its_resume_and_then_goes_first(make: Make, tmp_path: Path) -> None:  # noqa: F811
    runner, work = make(SLEEPS)
    first, second = runner.submit("a", ""), runner.submit("b", "")
    until(runner, first, "running")
    wait_for(tmp_path / "up")
    assert runner.pause(first.id).state == "pausing"
    until(runner, first, "paused")
    for _ in range(3):
        runner.tick()
    assert runner.get(second.id).state == "queued" and work.num_starts == 1  # the queue waits
    assert runner.held_by() is not None
    runner.resume(first.id)
    assert [job.id for job in runner.waiting()] == [first.id, second.id]
    until(runner, first, "running")
    assert runner.get(first.id).attempt == 1


def test_the_queue_goes_on_while_one_is_paused_if_that_is_wanted(make: Make, tmp_path: Path) -> None:  # noqa: F811
    runner, _ = make(SLEEPS)
    first, second = runner.submit("a", ""), runner.submit("b", "")
    until(runner, first, "running")
    wait_for(tmp_path / "up")
    runner.pause(first.id)
    until(runner, first, "paused")
    runner.let_go_on(True)
    until(runner, second, "running")
    assert runner.get(first.id).state == "paused"


def test_a_new_server_knows_a_paused_training_and_settles_one_that_was_pausing(make: Make, tmp_path: Path) -> None:  # noqa: F811
    from app.jobs import JobRunner

    runner, work = make(SLEEPS)
    job, other = runner.submit("a", ""), runner.submit("b", "")
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    child = runner._children[job.id]
    runner.pause(job.id)
    child.wait(20)  # the server was killed before it saw this
    again = JobRunner(tmp_path, work, tmp_path / "runs")
    again.tick()
    assert again.get(job.id).state == "paused" and again.get(other.id).state == "queued"
    assert again.held_by() is not None


def test_a_batch_is_paused_too_and_its_tab_says_so(
    make: Make,  # noqa: F811
    tmp_path: Path,
    context: Context,
) -> None:
    """Stop alone ended one, and it lost its place in the queue."""
    runner, _ = make(SLEEPS)
    job = runner.submit("a", "", "batch-toml")
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    runner.pause(job.id)
    until(runner, job, "paused")
    with gr.Blocks():
        view = batch._Tab(context).view
    shown = context.runner.submit("b", "", "batch-toml")
    for state, can_pause, can_resume in (("running", True, False), ("paused", False, True)):
        context.runner.table.put(shown, state=state)
        updates = view.changes(shown.id, {})
        assert updates[view.pause]["interactive"] is can_pause and updates[view.resume]["interactive"] is can_resume
    view.resume_one(shown.id)
    assert context.runner.get(shown.id).state == "interrupted"


def test_only_what_runs_is_paused_and_stop_ends_it(make: Make, tmp_path: Path) -> None:  # noqa: F811
    runner, _ = make(SLEEPS)
    job, rehearsal = runner.submit("a", ""), runner.submit("r", "", REHEARSAL)
    for one in (job, rehearsal):
        with pytest.raises(RunError, match="only a training or a batch that runs"):
            runner.pause(one.id)
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    runner.pause(job.id)
    runner.stop(job.id)  # pressed after Pause: it ends as a stopped one
    until(runner, job, "stopped")
    assert runner.held_by() is None
    runner.table.put(job, state="paused")
    assert runner.stop(job.id).state == "stopped"
    runner.table.put(job, state="paused")
    runner.remove(job.id)
    assert runner.held_by() is None and job.id not in [one.id for one in runner.shown()]


# The grid after a training.


def finished_run(context: Context, **settings: object) -> Job:
    """A job whose run has settings and, so its row says, is finished."""
    config = presets.load("imprimatura-style", {"data.folder": str(context.datasets), **settings})
    job = context.runner.submit("fox", "version = 1")
    run = runs.create(context.runs, job.name, config)
    assert run.name == job.name
    return job


def batch_jobs(context: Context) -> list[Job]:
    return [job for job in context.runner.every() if job.kind in batches.KINDS.values()]


@pytest.fixture
def still(context: Context, monkeypatch: pytest.MonkeyPatch) -> Context:
    """No job is started."""
    monkeypatch.setattr(context.runner, "_spawn", lambda job: None)
    return context


def test_a_finished_training_queues_its_grid_once(still: Context) -> None:
    job = finished_run(still, **{"preview.prompts": ["a fox", "a hen"], "preview.seed": 7})
    still.runner.want_grid(job.id)
    still.runner.tick()
    assert batch_jobs(still) == []  # it has not finished yet
    still.runner.table.put(job, state="finished")
    again = ui.open_workspace(still.workspace)  # the wish outlives the server
    again.runner._spawn = lambda job: None  # type: ignore[method-assign]
    for runner in (again.runner, still.runner, again.runner):
        runner.tick()
    (grid,) = batch_jobs(again)
    assert grid.name == "fox-grid" and grid.state == "queued"
    batch = parse(BatchConfig, from_toml(grid.config, "it"), "it")
    assert batch.steps_of == str(still.runs / "fox") and batch.weights == run_grid.WEIGHTS
    assert batch.prompts == ("a fox", "a hen") and batch.seeds == (7,)


@pytest.mark.parametrize("state", ["failed", "stopped", "paused"])
def test_a_training_that_did_not_end_well_queues_none(state: str, still: Context) -> None:
    job = finished_run(still)
    still.runner.want_grid(job.id)
    still.runner.table.put(job, state=state)
    still.runner.tick()
    assert batch_jobs(still) == []


def test_a_training_that_was_removed_queues_none(still: Context) -> None:
    job = finished_run(still)
    still.runner.want_grid(job.id)
    still.runner.table.put(job, state="finished")
    still.runner.remove(job.id)
    still.runner.tick()
    assert batch_jobs(still) == []


def test_a_run_without_settings_has_no_grid_and_harms_no_other(still: Context) -> None:
    job = finished_run(still)
    other = still.runner.submit("next", "version = 1")
    still.runner.want_grid(job.id)
    (still.runs / job.name / "config.toml").write_text("[[[")
    still.runner.table.put(job, state="finished")
    still.runner.tick()
    assert batch_jobs(still) == [] and still.runner.get(other.id).state == "queued"
    assert job_plans.grids_wanted(still.runner.database) == set()


def test_a_table_of_plans_that_is_damaged_is_none(context: Context) -> None:
    database = context.runner.database
    job_plans.want_grid(database, 5)
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT OR REPLACE INTO job_plan (id, grid) VALUES (0, 'x'), (9, -3), (7, NULL + 1)")
    assert job_plans.grids_wanted(database) == {5} and not job_plans.goes_on(database)
    with sqlite3.connect(database) as connection:
        connection.execute("DROP TABLE job_plan")
    assert job_plans.grids_wanted(database) == set()


def test_the_grid_names_no_run_but_of_this_server(context: Context) -> None:
    for folder in ("/etc", "../fox", "nothing", str(context.runs)):
        with pytest.raises(ConfigError, match="no run of this server"):
            batches.read(context, f"steps_of = '{folder}'".encode(), "jobs.toml")
    finished_run(context)
    assert str(context.runs / "fox") in batches.read(context, b"steps_of = 'fox'", "jobs.toml").text


def test_ends_well_is_what_the_row_says(make: Make) -> None:  # noqa: F811
    runner, _ = make(ENDS)
    asked: list[str] = []
    runner.grid_of = lambda job: (asked.append(job.name) or f"{job.name}-grid", "", "batch-toml")
    job = runner.submit("a", "")
    runner.want_grid(job.id)
    until(runner, job, "finished")
    runner.tick()
    runner.tick()
    assert asked == ["a"] and [one.name for one in runner.every()] == ["a-grid", "a"]
