"""What the page is told of jobs for its title and notices: the one at work, how far it is, and which ended last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app import batches, show_me, ui
from app.change_polling import JobNews
from app.context import Context
from app.done_notice import DoneNotice
from app.job_table import Job
from app.job_work import CAPTIONS, REHEARSAL
from tests.test_page_runs import losses
from trainer.events import Started, to_line


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return ui.open_workspace(tmp_path / "workspace")


def doing(context: Context) -> Any:
    """As a page is told, by way of JSON."""
    return json.loads(json.dumps(DoneNotice(context, JobNews(context)).doing(None)))  # type: ignore[arg-type]


def put(context: Context, job: Job, state: str, ended: float | None = None) -> None:
    context.runner.table.put(job, state=state, ended=ended)


def a_log(folder: Path, name: str, step: int, steps: int) -> None:
    folder.mkdir(parents=True)
    started = Started(name, steps, 0, 3, 0, 9, "cpu", "float32", "imprimatura")
    (folder / "events.jsonl").write_text("".join(map(to_line, [started, *losses(step)])))


def said(context: Context, job: Job, *events: dict[str, Any]) -> None:
    context.runner.log_file(job).write_text("".join(json.dumps(event) + "\n" for event in events))


def test_an_idle_workspace_has_nothing_at_work(context: Context) -> None:
    assert doing(context) == {"busy": False, "running": None, "ended": []}


def test_a_training_a_batch_and_captions_say_how_far_they_are(context: Context) -> None:
    runner = context.runner
    job = runner.submit("cat", "")
    assert doing(context)["busy"] and doing(context)["running"] is None
    put(context, job, "running")
    assert doing(context)["running"] == {"name": "cat", "percent": 0}
    a_log(context.runs / "cat", "cat", 37, 100)
    assert doing(context)["running"] == {"name": "cat", "percent": 37}
    put(context, job, "finished", 100.0)

    batch = runner.submit("sheet", "", batches.KINDS[".toml"])
    put(context, batch, "running")
    said(context, batch, {"event": "planned"}, {"event": "rendered", "done": 3, "total": 4, "seconds": 2.0})
    assert doing(context)["running"] == {"name": "sheet", "percent": 75}
    put(context, batch, "failed", 200.0)

    captions = runner.submit("captions-cat", "", CAPTIONS)
    put(context, captions, "running")
    said(context, captions, {"event": "planned"}, {"event": "captioned", "done": 1, "total": 8, "left_s": 5.0})
    assert doing(context)["running"] == {"name": "captions-cat", "percent": 12}
    assert doing(context)["ended"] == [
        {"name": "sheet", "at": 200.0, "failed": True}, {"name": "cat", "at": 100.0, "failed": False},
    ]  # fmt: skip


def test_what_somebody_ended_is_no_news_and_a_queue_that_is_held_is_at_rest(context: Context) -> None:
    runner = context.runner
    stopped, paused, tried = runner.submit("a", ""), runner.submit("b", ""), runner.submit("c", "", REHEARSAL)
    put(context, stopped, "stopped", 1.0)
    put(context, paused, "paused", 2.0)
    put(context, tried, "finished", 3.0)
    assert doing(context) == {"busy": False, "running": None, "ended": []}
    runner.submit("d", "")  # waits for what is paused
    assert doing(context)["busy"] is False
    runner.let_go_on(True)
    assert doing(context)["busy"] is True
    put(context, tried, "running")
    assert doing(context)["running"] is None, "a rehearsal is no job that anybody waits for elsewhere"


def test_the_newest_ends_are_told_first_and_few_of_them(context: Context) -> None:
    for number in range(12):
        put(context, context.runner.submit(f"job{number}", ""), "finished", float(number))
    assert [entry["name"] for entry in doing(context)["ended"]] == [f"job{number}" for number in range(11, 3, -1)]


def test_show_me_is_one_thing_with_one_end(context: Context) -> None:
    shown = show_me.begin(context)
    style, character, both = (context.runner.get(number) for number in (shown.style, shown.character, shown.both))
    put(context, style, "running")
    a_log(context.runs / style.name, style.name, show_me.STEPS // 2, show_me.STEPS)
    running = doing(context)["running"]
    assert running["name"] == "Show me" and 20 <= running["percent"] <= 25
    put(context, style, "finished", 10.0)
    assert doing(context) == {"busy": True, "running": None, "ended": []}, "only its first part has ended"
    put(context, character, "finished", 20.0)
    put(context, both, "running")
    assert doing(context)["running"]["percent"] == 95
    put(context, both, "finished", 30.0)
    assert doing(context) == {
        "busy": False, "running": None, "ended": [{"name": "Show me", "at": 30.0, "failed": False}],
    }  # fmt: skip
    put(context, style, "failed", 10.0)
    assert doing(context)["ended"] == [{"name": "Show me", "at": 10.0, "failed": True}]
