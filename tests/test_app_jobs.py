"""Jobs as real processes: what a row says is what the system says, whatever dies."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.job_table import Job
from app.job_work import REHEARSAL, Training
from app.jobs import MAX_ATTEMPTS, JobRunner
from trainer import runs
from trainer.errors import RunError

_PRELUDE = (
    "import pathlib, signal, sys, time\nhere = pathlib.Path({folder!r}); starts = here / "
    "'starts'\nstarts.open('a').write('x')\n"
)
SLEEPS = _PRELUDE + "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n(here / 'up').touch()\ntime.sleep(60)\n"
ENDS = _PRELUDE + "(here / 'done').touch()\n"
REFUSES = _PRELUDE + "print('error: the rank is 0; allowed: 1 to 256.\\n  and more', file=sys.stderr)\nsys.exit(2)\n"
CRASHES = _PRELUDE + "raise RuntimeError('out of paint')\n"
CRASHES_ONCE = _PRELUDE + "n = len(starts.read_text())\n(here / 'done').touch() if n > 1 else sys.exit(1)\n"


class Script:
    """Work that runs a few lines of Python in a folder."""

    def __init__(self, folder: Path, source: str) -> None:
        self.folder = folder
        self.source = source.replace("{folder!r}", repr(str(folder)))

    def command(self, job: Job) -> list[str]:
        return [sys.executable, "-S", "-c", self.source]

    def finished(self, job: Job) -> bool:
        return (self.folder / "done").exists()

    def saved_step(self, job: Job) -> int:
        steps = self.folder / "saved"
        return int(steps.read_text()) if steps.exists() else 0

    @property
    def num_starts(self) -> int:
        starts = self.folder / "starts"
        return len(starts.read_text()) if starts.exists() else 0


Make = Callable[[str], tuple[JobRunner, Script]]


@pytest.fixture
def make(tmp_path: Path):  # type: ignore[no-untyped-def]
    made: list[JobRunner] = []

    def build(source: str) -> tuple[JobRunner, Script]:
        work = Script(tmp_path, source)
        runner = JobRunner(tmp_path, work, tmp_path / "runs")
        made.append(runner)
        return runner, work

    yield build
    for job in made[0].every():
        if job.pid and psutil.pid_exists(job.pid) and made[0]._process(job) is not None:
            os.kill(job.pid, signal.SIGKILL)
    for runner in made:
        for child in runner._children.values():
            child.wait(10)


def until(runner: JobRunner, job: Job, *states: str) -> Job:
    deadline = time.monotonic() + 20
    while (now := runner.get(job.id)).state not in states:
        assert time.monotonic() < deadline, f"still {now.state}: {now.error}"
        runner.tick()
        time.sleep(0.03)
    return now


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def test_job_runs_and_finishes(make: Make) -> None:
    runner, _ = make(ENDS)
    job = runner.submit("my cat", "")
    assert (job.state, job.name) == ("queued", "my-cat")
    done = until(runner, job, "finished")
    assert done.ended is not None and done.started is not None


def test_names_are_never_used_twice(make: Make, tmp_path: Path) -> None:
    runner, _ = make(ENDS)
    (tmp_path / "runs" / "cat-2").mkdir(parents=True)
    assert [runner.submit("cat", "").name for _ in range(3)] == ["cat", "cat-3", "cat-4"]
    with pytest.raises(RunError):
        runner.submit("../..", "")


def test_one_at_a_time(make: Make, tmp_path: Path) -> None:
    runner, work = make(SLEEPS)
    first, second = runner.submit("a", ""), runner.submit("b", "")
    until(runner, first, "running")
    wait_for(tmp_path / "up")
    runner.tick()
    assert runner.get(second.id).state == "queued" and work.num_starts == 1
    runner.stop(first.id)
    until(runner, first, "stopped")
    until(runner, second, "running")


def test_stop_then_resume(make: Make, tmp_path: Path) -> None:
    runner, work = make(SLEEPS)
    job = runner.submit("a", "")
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    assert runner.stop(job.id).state == "stopping"
    until(runner, job, "stopped")
    runner.resume(job.id)
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    assert runner.get(job.id).error == ""


def test_waiting_job_stops_at_once(make: Make) -> None:
    runner, work = make(ENDS)
    job = runner.submit("a", "")
    assert runner.stop(job.id).state == "stopped"
    runner.tick()
    assert work.num_starts == 0
    with pytest.raises(RunError, match="nothing to stop"):
        runner.stop(job.id)


def test_user_error_fails_with_its_message_and_is_not_tried_again(make: Make) -> None:
    runner, work = make(REFUSES)
    failed = until(runner, runner.submit("a", ""), "failed")
    assert failed.error == "the rank is 0; allowed: 1 to 256.\n  and more"
    runner.tick()
    assert work.num_starts == 1


def test_crash_goes_on_by_itself(make: Make) -> None:
    runner, work = make(CRASHES_ONCE)
    until(runner, runner.submit("a", ""), "finished")
    assert work.num_starts == 2


def test_crash_after_crash_fails_with_last_words(make: Make) -> None:
    runner, work = make(CRASHES)
    failed = until(runner, runner.submit("a", ""), "failed")
    assert work.num_starts == MAX_ATTEMPTS and "out of paint" in failed.error


def test_crashes_that_get_further_do_not_count(make: Make, tmp_path: Path) -> None:
    source = _PRELUDE + (
        f"n = len(starts.read_text())\n(here / 'saved').write_text(str(n * 10))\nsys.exit(1) if n < "
        f"{MAX_ATTEMPTS + 2} else (here / 'done').touch()\n"
    )
    runner, work = make(source)
    until(runner, runner.submit("a", ""), "finished")
    assert work.num_starts == MAX_ATTEMPTS + 2


def test_new_server_finds_the_living_child(make: Make, tmp_path: Path) -> None:
    runner, work = make(SLEEPS)
    job = runner.submit("a", "")
    until(runner, job, "running")
    wait_for(tmp_path / "up")
    again, _ = make(SLEEPS)  # a server that knows nothing but the table
    again.tick()
    job_again = again.get(job.id)
    assert job_again.state == "running" and work.num_starts == 1
    again.stop(job.id)
    until(again, job, "stopped")


def test_new_server_resumes_the_dead_child(make: Make, tmp_path: Path) -> None:
    runner, work = make(SLEEPS)
    job = until(runner, runner.submit("a", ""), "running")
    wait_for(tmp_path / "up")
    (tmp_path / "up").unlink()
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    runner._children[job.id].wait(10)
    again, _ = make(SLEEPS)
    again.tick()
    wait_for(tmp_path / "up")
    job_again = again.get(job.id)
    assert job_again.state == "running" and job_again.pid != job.pid and job_again.attempt == 2 and work.num_starts == 2


def test_child_that_finished_while_no_server_ran_is_finished(make: Make, tmp_path: Path) -> None:
    runner, work = make(SLEEPS)
    job = until(runner, runner.submit("a", ""), "running")
    wait_for(tmp_path / "up")
    (tmp_path / "done").touch()
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    runner._children[job.id].wait(10)
    again, _ = make(SLEEPS)
    again.tick()
    assert again.get(job.id).state == "finished" and work.num_starts == 1


def test_other_process_with_the_same_id_is_not_taken_for_the_child(make: Make) -> None:
    runner, _ = make(ENDS)
    job = runner.submit("a", "")
    with runner._connect() as connection:
        connection.execute(
            "UPDATE job SET state = 'running', pid = ?, pid_start = ? WHERE id = ?",
            (os.getpid(), time.time() - 1e6, job.id),
        )
    runner.tick()
    assert runner.get(job.id).state in ("interrupted", "running") and runner.get(job.id).pid != os.getpid()
    until(runner, job, "finished")


def test_child_outlives_its_server(tmp_path: Path) -> None:
    """The server is a process here; it is killed, its child is not."""
    import subprocess

    (tmp_path / "script.py").write_text(SLEEPS.replace("{folder!r}", repr(str(tmp_path))))
    server = (
        "import sys, time; sys.path[:0] = ['.', 'tests']\nfrom pathlib import Path\nfrom test_app_jobs import Script, "
        "SLEEPS\nfrom app.jobs import JobRunner\n"
        f"folder = Path({str(tmp_path)!r})\nrunner = JobRunner(folder, Script(folder, SLEEPS), folder / 'runs')\n"
        "runner.submit('a', '')\nrunner.start()\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", server], cwd=Path(__file__).parents[1])
    try:
        wait_for(tmp_path / "up")
        time.sleep(0.3)  # the row is written after the start
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    runner = JobRunner(tmp_path, Script(tmp_path, SLEEPS), tmp_path / "runs")
    (job,) = runner.every()
    runner.tick()
    assert runner.get(job.id).state == "running" and runner._process(job) is not None
    runner.stop(job.id)
    until(runner, job, "stopped")


def _refuse_updates(runner: JobRunner) -> None:
    with runner._connect() as connection:
        connection.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON job BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )


def test_watching_goes_on_after_an_error(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runner, _ = make(ENDS)
    job = runner.submit("a", "")
    _refuse_updates(runner)
    runner.start()
    try:
        deadline, printed = time.monotonic() + 20, ""
        while "disk is full" not in (printed := printed + capsys.readouterr().err):
            assert time.monotonic() < deadline
            time.sleep(0.03)
        with runner._connect() as connection:
            connection.execute("DROP TRIGGER full")
        while runner.get(job.id).state != "finished":
            assert time.monotonic() < deadline
            time.sleep(0.03)
    finally:
        runner.halt()


def test_child_of_a_server_killed_before_it_wrote_it_down_is_found_and_no_second_one_started(
    make: Make, tmp_path: Path
) -> None:
    runner, work = make(SLEEPS)
    job = runner.submit("a", "")
    child = runner._popen(job)
    try:
        wait_for(tmp_path / "up")
        again, _ = make(SLEEPS)
        again.tick()
        job_again = again.get(job.id)
        assert job_again.state == "running" and job_again.pid == child.pid and work.num_starts == 1
        again.stop(job.id)
        child.wait(10)
        until(again, job, "stopped")
    finally:
        child.kill()
        child.wait(10)
    assert work.num_starts == 1


def test_child_that_can_not_be_written_down_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = make(SLEEPS)
    job = runner.submit("a", "")
    _refuse_updates(runner)
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(sqlite3.Error, match="full"):
        runner.tick()
    assert {child.pid for child in psutil.Process().children()} <= before
    assert runner.get(job.id).state == "queued" and not runner._children


def test_job_that_can_not_be_started_fails_with_the_reason(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, work = make(ENDS)
    monkeypatch.setattr(work, "command", lambda job: ["/nowhere/python"])
    failed = until(runner, runner.submit("a", ""), "failed")
    assert "/nowhere/python" in failed.error


def test_stop_of_a_child_that_just_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = make(SLEEPS)
    job = until(runner, runner.submit("a", ""), "running")

    class Gone:
        def send_signal(self, number: int) -> None:
            raise psutil.NoSuchProcess(job.pid or 0)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_process", lambda job: Gone())
        assert runner.stop(job.id).state == "stopping"


@pytest.mark.parametrize("name", ["a" * 90, "é" * 90, "\U00020000" * 90])
def test_number_of_a_long_name_is_not_cut_off(make: Make, name: str) -> None:
    runner, _ = make(ENDS)
    names = [runner.submit(name, "").name for _ in range(12)]
    assert len({runs.slug(text) for text in names}) == 12 and [runs.slug(text) for text in names] == names


def test_answer_is_the_last_object_that_is_no_event(make: Make) -> None:
    lines = [
        '{"event": "step"}',
        '{"seconds_per_step": 1}',
        '{"seconds_per_step": 2}',
        '{"event": "warned"}',
        "[3]",
        "no json",
        "{",
    ]
    runner, _ = make(_PRELUDE + "(here / 'done').touch()\n" + "".join(f"print({line!r})\n" for line in lines))
    job = runner.submit("rehearsal", "", REHEARSAL)
    assert runner.answer(job) == {}
    assert runner.answer(until(runner, job, "finished")) == {"seconds_per_step": 2}


def test_rehearsal_that_finds_no_way_to_fit_is_an_answer_and_not_tried_again(make: Make) -> None:
    runner, work = make(_PRELUDE + "print('{\"fits\": false}')\nsys.exit(3)\n")
    job = runner.submit("rehearsal", "", REHEARSAL)
    assert (
        runner.answer(until(runner, job, "finished", "failed", "interrupted")) == {"fits": False}
        and work.num_starts == 1
    )


def test_rehearsal_runs_the_same_command_dry(tmp_path: Path) -> None:
    work = Training(tmp_path / "runs", tmp_path / "configs")
    job = Job(7, REHEARSAL, "rehearsal", "max_steps = 1", "queued", None, None, 0, 0, 0.0, None, None, "")
    command = work.command(job)
    assert command[-2:] == ["--rehearse", "--json"] and "--resume" not in command and not work.finished(job)
    assert Path(command[-5]).read_text() == "max_steps = 1"
