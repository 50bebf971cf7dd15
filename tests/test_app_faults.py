"""What lies in a job's folder, or where the table of jobs should be, is nobody's downfall: the thread goes on and says
what is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import psutil
import pytest
import test_app_jobs as jobs
from test_app_jobs import make as make  # a fixture

from app import batches, job_table, ui
from app.job_table import Job
from app.job_work import REHEARSAL, TRAINING, ByKind, Training
from app.jobs import JobRunner
from app.tabs import train
from trainer import runs
from trainer.errors import ConfigError, DataError, RunError
from trainer.render.batch_manifest import COLUMNS

Make = Callable[[str], tuple[JobRunner, "jobs.Script"]]
ERRORS = [
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no"),
    KeyError("state"),
    TypeError("x"),
    RecursionError("deep"),
    DataError("it is odd"),
    PermissionError(13, "x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["saved_step", "finished", "command"])
def test_a_job_that_cannot_be_looked_at_fails_alone_also_after_a_restart(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: Exception, method: str
) -> None:
    runner, work = make(jobs.ENDS)
    bad, good = runner.submit("bad", ""), runner.submit("good", "")
    real = getattr(work, method)

    def look(job: Job) -> object:
        if job.id == bad.id:
            raise error
        return real(job)

    monkeypatch.setattr(work, method, look)
    if method == "finished":  # asked of a job whose server is gone
        job_table.put(runner.database, bad, state="running", pid=2**22 + 5, pid_start=1.0)
    for server in (runner, JobRunner(runner.database.parent, work, runner.runs_folder)):
        jobs.until(server, bad, "failed")
    assert len(runner.get(bad.id).error) > 10 and "Traceback" not in runner.get(bad.id).error
    jobs.until(runner, good, "finished")


def _manifest(out: Path, raw: bytes) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.csv").write_bytes(raw)
    return out


@pytest.mark.parametrize(
    ("rest", "finished"),
    [
        ("1,done,caf\xe9.png,a caf\xe9\r\n".encode("cp1252"), True),
        ("1,todo,caf\xe9.png\r\n".encode("cp1252"), False),
        (b"1,done\r\n\0\0\r\n", False),
        (b"1\r\n", False),
        (b'1,done,"' + b"x" * 200_000 + b'"\r\n', False),
        (b"", False),
    ],
    ids=["cp1252", "cp1252 not done", "nul", "no state", "huge cell", "nothing"],
)
def test_a_manifest_that_a_spreadsheet_saved_anew_is_read_or_taken_for_none(
    tmp_path: Path, rest: bytes, finished: bool
) -> None:
    out = _manifest(tmp_path / "x", ",".join(COLUMNS).encode() + b"\r\n" + rest)
    job = Job(1, "batch-csv", "x", "", "running", None, None, 0, 0, 0.0, None, None, "")
    assert batches.Drawing(tmp_path, tmp_path, (), tmp_path).finished(job) is finished
    assert "Traceback" not in batches.problems(job, batches.manifest(out))


def test_a_manifest_that_is_a_pipe_or_a_folder_keeps_nobody_waiting(tmp_path: Path) -> None:
    (tmp_path / "folder" / "manifest.csv").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "manifest.csv")
    assert batches.manifest(tmp_path / "folder") == batches.manifest(tmp_path / "pipe") == []


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe not text\n", b'{"event": "saved", "step": "x", "file": 1}\n', b'{"event": ["saved"]}\n',
        b"[" * 200_000 + b"\n", b"null\n",
        b'{"event": "saved"}\n',
        b'{"event": "saved", "step": ' + b"9" * 5000 + b', "file": ""}\n',
    ],
)  # fmt: skip
def test_a_training_whose_log_says_anything_is_still_counted(tmp_path: Path, raw: bytes) -> None:
    work = Training(tmp_path, tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "events.jsonl").write_bytes(raw + b'{"event": "saved", "step": 7, "file": "a"}\n')
    assert work.saved_step(Job(1, TRAINING, "x", "", "queued", None, None, 0, 0, 0.0, None, None, "")) == 7


def test_a_log_of_a_batch_that_says_anything_is_shown(tmp_path: Path) -> None:
    lines = [
        '{"event": "rendered"}',
        '{"event": "rendered", "done": "x", "total": [], "seconds": 1}',
        '{"event": "ended", "seconds": 1e400, "failed": 0}',
        "[1]",
    ]
    good = {"event": "rendered", "done": 1, "total": 2, "seconds": 1.0}
    (tmp_path / "log").write_text("\n".join([*lines, json.dumps(good)]))
    assert batches.last_events(tmp_path / "log") == [good]
    job = Job(1, "batch-csv", "x", "", "finished", None, None, 0, 0, 0.0, None, None, "")
    assert "1 of 2" in batches.progress(job, batches.last_events(tmp_path / "log")).detail


def test_a_job_of_a_kind_of_a_later_version_fails_in_words(tmp_path: Path) -> None:
    runner = JobRunner(tmp_path, ByKind({REHEARSAL: Training(tmp_path, tmp_path)}), tmp_path / "runs")
    failed = jobs.until(runner, runner.submit("a", "", "weave"), "failed")
    assert "kind 'weave'" in failed.error and "rehearse" in failed.error


# The table.


def _foreign(path: Path, script: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()


def _damaged(path: Path) -> None:
    _foreign(path, "CREATE TABLE job (x); INSERT INTO job VALUES (1);" + "INSERT INTO job SELECT x FROM job;" * 12)
    raw = bytearray(path.read_bytes())
    raw[4096:6000] = b"\xff" * (6000 - 4096)
    path.write_bytes(raw)


GARBAGE: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(5000)),
    "text": lambda path: path.write_text("id,name\n1,cat\n" * 500),
    "cut short": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\1" * 40),
    "foreign": lambda path: _foreign(path, "CREATE TABLE photos (id INTEGER)"),
    "another job table": lambda path: _foreign(path, "CREATE TABLE job (id INTEGER, salary REAL)"),
    "a job table that wants more": lambda path: _foreign(
        path, job_table._SCHEMA.replace("error TEXT", "wage REAL NOT NULL, error TEXT")
    ),
    "damaged": _damaged,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_table_that_is_not_ours_is_set_aside_whole_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "jobs.sqlite"
    GARBAGE[kind](path)
    before = path.read_bytes() if path.is_file() else None
    for number in ("", "-2"):  # twice, since nothing that was set aside is replaced
        if number:
            path.unlink()
            GARBAGE[kind](path)
        runner = JobRunner(tmp_path, jobs.Script(tmp_path, jobs.ENDS), tmp_path / "runs")
        printed = capsys.readouterr().err
        assert f"kept as jobs-set-aside{number}.sqlite" in printed and "Traceback" not in printed
        assert runner.every() == []
    aside = tmp_path / "jobs-set-aside.sqlite"
    assert aside.is_dir() if before is None else aside.read_bytes() == before
    jobs.until(runner, runner.submit("a", ""), "finished")
    again = JobRunner(tmp_path, jobs.Script(tmp_path, jobs.ENDS), tmp_path / "runs")
    assert len(again.every()) == 1 and not capsys.readouterr().err


def test_a_table_that_cannot_be_opened_now_is_left_alone_and_an_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JobRunner(tmp_path, jobs.Script(tmp_path, jobs.ENDS), tmp_path / "runs")

    def connect(*_: object, **__: object) -> object:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(sqlite3, "connect", connect)
    with pytest.raises(RunError, match="can't be used: database is locked"):
        JobRunner(tmp_path, jobs.Script(tmp_path, jobs.ENDS), tmp_path / "runs")
    assert not list(tmp_path.glob("*aside*"))


@pytest.mark.parametrize(
    "column, value",
    [
        ("name", "../../etc"),
        ("name", b"\xff"),
        ("state", "dancing"),
        ("created", "once"),
        ("pid", "x"),
        ("attempt", b"x"),
    ],
)
def test_a_row_that_nobody_of_us_wrote_is_passed_over(make: Make, column: str, value: object) -> None:
    runner, _ = make(jobs.ENDS)
    odd, good = runner.submit("odd", ""), runner.submit("good", "")
    job_table.put(runner.database, odd, **{column: value})
    assert [job.name for job in runner.every()] == ["good"]
    jobs.until(runner, good, "finished")
    assert runner.submit("good", "").name == "good-2"


def test_the_page_opens_on_a_garbage_table(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "jobs.sqlite").write_bytes(b"no table" * 999)
    code = f"from pathlib import Path; from app import ui; ui.build(Path({str(workspace)!r})); print('open')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert (
        done.stdout.strip() == "open"
        and "kept as jobs-set-aside.sqlite" in done.stderr
        and "Traceback" not in done.stderr
    ), done.stderr


LOST: dict[str, Callable[[Path], object]] = GARBAGE | {
    "a table of ours without our jobs": lambda path: _foreign(path, job_table._SCHEMA),
    "deleted": lambda path: None,
    "emptied": Path.touch,
}


@pytest.mark.parametrize("kind", LOST)
def test_a_table_lost_while_the_server_runs_is_written_anew_and_no_job_is_lost(
    make: Make, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    runner, work = make(jobs.SLEEPS)
    first, second = runner.submit("first", "a = 1"), runner.submit("second", "b = 2")
    at_work = jobs.until(runner, first, "running")
    jobs.wait_for(work.folder / "up")
    runner.start()
    try:
        with runner._lock, runner.table._lock:  # or the thread would be between the two
            runner.database.unlink()
            LOST[kind](runner.database)
        assert [(job.name, job.state, job.config) for job in runner.every()] == [
            ("second", "queued", "b = 2"),
            ("first", "running", "a = 1"),
        ]
        assert runner.get(first.id) == at_work and runner._is_alive(at_work)
        assert runner.submit("first", "").name == "first-2"
        runner.stop(first.id)
        deadline = time.monotonic() + 20
        while (runner.get(first.id).state, runner.get(second.id).state) != ("stopped", "running"):  # the thread lives
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        runner.halt()
    printed = capsys.readouterr().err
    assert printed.count("jobs.sqlite") == 1 and "the 2 last read" in printed and "Traceback" not in printed
    assert list(runner.database.parent.glob("jobs-set-aside*")) or kind in LOST.keys() - GARBAGE.keys()


def test_the_page_says_once_that_the_table_was_lost_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    warned: list[str] = []
    monkeypatch.setattr(ui, "warn", warned.append)
    context = ui.open_workspace(tmp_path)
    page = ui.compose(context)
    handlers = {function.name: function.fn for function in page.fns.values()}
    (asked,) = [block.versions for block in page.blocks.values() if hasattr(block, "versions")]

    def version() -> str:
        return asked(None, SimpleNamespace(headers={}))["table"]

    before = version()
    with gr.Blocks():
        tab = train._Tab(context)
    context.runner.submit("cat", "")
    context.runner.database.write_bytes(os.urandom(5000))
    assert "cat" in str(tab.view.poll(None, {}))
    after = version()  # the page asks for the warning when the version is another
    assert after != before and version() == after
    handlers["warn_of_table"]()
    assert len(warned) == 1 and "kept as jobs-set-aside.sqlite" in warned[0]


def test_while_the_table_is_locked_the_page_shows_what_it_last_knew_and_nothing_is_started(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, work = make(jobs.ENDS)
    job = runner.submit("a", "")

    def locked(*_: object, **__: object) -> object:
        raise sqlite3.OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", locked)
        assert runner.every() == [job]
        for act in (lambda: runner.submit("b", ""), lambda: runner.stop(job.id), lambda: runner.resume(job.id)):
            with pytest.raises(RunError, match="can't be used now: database is locked"):
                act()
        with pytest.raises(sqlite3.OperationalError):
            runner.tick()
    assert work.num_starts == 0 and not list(runner.database.parent.glob("*aside*"))


def test_a_job_of_a_new_table_does_not_begin_with_anothers_log(make: Make) -> None:
    runner, work = make(jobs.ENDS)
    jobs.until(runner, old := runner.submit("a", ""), "finished")
    runner.database.unlink()
    anew = JobRunner(runner.database.parent, work, runner.runs_folder)
    assert anew.submit("b", "").id == old.id + 1


@pytest.mark.parametrize("name", ["runs", "cache", "logs"])
def test_a_workspace_that_cannot_be_one_is_an_error_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a file")
    with pytest.raises(ConfigError, match=f"where {name} can't be a folder"):
        ui.open_workspace(tmp_path)


# Signals.


@pytest.mark.parametrize("late_s", [0.0, -1.5, 1.5])
def test_a_process_that_took_over_a_childs_number_is_sent_nothing(make: Make, late_s: float) -> None:
    runner, _ = make(jobs.SLEEPS)
    job = runner.submit("a", "")
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as stranger:
        try:
            began = psutil.Process(stranger.pid).create_time()
            job_table.put(
                runner.database, job, state="running", pid=stranger.pid, pid_start=began + late_s, started=began
            )
            runner.stop(job.id)
            time.sleep(0.3)
            assert stranger.poll() is None
            runner.tick()
            assert runner.get(job.id).state == "stopped" and stranger.poll() is None
        finally:
            stranger.kill()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**31, 2**62])
def test_a_number_that_no_child_has_is_no_child(make: Make, pid: int) -> None:
    runner, _ = make(jobs.ENDS)
    job = runner.submit("a", "")
    job_table.put(runner.database, job, state="running", pid=pid, pid_start=1.0)
    jobs.until(runner, job, "finished")


def test_a_run_folder_that_is_a_file_fails_its_job_alone(tmp_path: Path) -> None:
    work = ByKind({TRAINING: Training(tmp_path / "runs", tmp_path / "configs")})
    runner = JobRunner(tmp_path, work, tmp_path / "runs")
    bad = runner.submit("bad", "")
    (tmp_path / "runs" / "bad").mkdir(parents=True)
    (tmp_path / "runs" / "bad" / "events.jsonl").mkdir()
    runner.tick()
    assert runner.get(bad.id).state == "failed" and runs.Run(tmp_path / "runs" / "bad").folder.is_dir()
    shutil.rmtree(tmp_path / "runs" / "bad")
