"""The job runner: trainings and batches as rows of a table, each a child process that outlives the page and the server.

A row says what was wanted; whether it runs is asked of the system each time, by process id *and* start time, so a crash
can leave no phantom behind. One child at a time; the others wait. After a restart of the server live children are found
again, dead ones go on where they were: a training from its last checkpoint, a batch from its last picture
(`app.batches`).
"""

from __future__ import annotations

import csv
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import trainer
from app import job_order, job_output, job_plans, job_process, job_table
from app.job_table import Job, State
from app.job_work import CAPTIONS, REHEARSAL, TRAINING, Work
from app.texts import say
from trainer import processes, runs, system
from trainer.errors import RunError, UserError

LIVE: tuple[State, ...] = ("running", "stopping", "pausing")
WAITING: tuple[State, ...] = ("interrupted", "queued")  # in this order: what was begun is ended first
RESUMABLE: tuple[State, ...] = ("stopped", "paused", "failed")
MAX_ATTEMPTS = 3  # without a new checkpoint in between
_SECOND_STOP_AFTER_S, _LAST_LOOK_S = 10.0, 5.0
# `runs.slug` cuts a name at 80 characters and 200 bytes, and a job's number must not be what is cut off.
_LONGEST_STEM_CHARS, _LONGEST_STEM_BYTES = 70, 190
# What reading a folder that may hold anything raises, and writing into it; an error of the table itself is not among
# them.
_FILE_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
                csv.Error, UserError)  # fmt: skip


class JobRunner:
    """The job table of a workspace and the one thread that starts, watches and ends its children.

    Raises: RunError if the table can't be used.
    """

    def __init__(self, workspace: Path, work: Work, runs_folder: Path) -> None:
        self.database = workspace / "jobs.sqlite"
        self.logs = workspace / "logs"
        self.work = work
        self.runs_folder = runs_folder
        self.grid_of: Callable[[Job], tuple[str, str, str]] | None = None  # a job -> its grid's name, text and kind
        self.when_finished: Callable[[Job], None] | None = None  # told of each job that is, once its row says so
        self._lock = threading.RLock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # those that this server started, to be reaped
        self._stop_asked: dict[int, float] = {}  # when, by the monotonic clock
        self._halt = threading.Event()
        self._watching: threading.Thread | None = None
        self.logs.mkdir(parents=True, exist_ok=True)
        self.table = job_table.Table(self.database)
        if self.table.notice:
            _print(self.table.notice)

    # The table.

    def _connect(self) -> AbstractContextManager[sqlite3.Connection]:
        return job_table.connected(self.database)

    def every(self) -> list[Job]:
        """All jobs, newest first; as they were last known while the table can't be read, as a page asks each second."""
        try:
            return self.table.every()
        except sqlite3.Error:
            return self.table.last_known()

    def get(self, job_id: int) -> Job:
        """The job as it is now. Raises: RunError if there is none, or the table can't be read now."""
        with self._table_errors_in_words():
            return self.table.get(job_id)

    @contextmanager
    def _table_errors_in_words(self) -> Iterator[None]:
        """Raises: RunError for what is wrong with the table."""
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(say("job.table_busy", name=self.database.name, reason=error)) from None

    def _put(self, job: Job, state: State, error: str = "", ended: bool = False) -> None:
        self.table.put(job, state=state, error=error, ended=time.time() if ended else None)

    # What people ask for.

    def submit(self, name: str, config: str, kind: str = TRAINING) -> Job:
        """A new job, waiting its turn, under a name that no job and no run has.

        Raises: RunError for a name without letters.
        """
        wanted = runs.slug(name)
        with self._lock, self._table_errors_in_words():
            return self.table.get(self.table.safely(lambda: self._insert(wanted, config, kind)))

    def _insert(self, wanted: str, config: str, kind: str, grid_of: int = 0) -> int:
        """The number of a new row; no job and no log has it. It may be the grid of a job."""
        with self._connect() as connection:
            # A name that is free; not every file system tells case apart.
            stem = wanted[:_LONGEST_STEM_CHARS].encode()[:_LONGEST_STEM_BYTES].decode(errors="ignore").rstrip("-. ")
            taken = {str(row["name"]).lower() for row in connection.execute("SELECT name FROM job")}
            free, number = wanted, 1
            while free.lower() in taken or (self.runs_folder / free).exists():
                number += 1
                free = f"{stem}-{number}"

            # A number beyond those of all logs too: a table that begins anew must not begin with another job's log.
            logged = [int(digits) for path in self.logs.glob("job-*.log") if (digits := path.stem[4:][:15]).isdecimal()]
            used = [row["seq"] for row in connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'")]
            values = max([0, *logged, *used]) + 1, kind, free, config, time.time()
            cursor = connection.execute(
                "INSERT INTO job (id, kind, name, config, state, created) VALUES (?, ?, ?, ?, 'queued', ?)", values
            )
            if grid_of:
                job_plans.grid_queued(connection, grid_of)
            return int(cursor.lastrowid or 0)

    def stop(self, job_id: int) -> Job:
        """The job, asked to finish its step, save and end; asked again later, it ends at once.

        Raises: RunError if it isn't running.
        """
        with self._lock, self._table_errors_in_words():
            job = self.get(job_id)
            if job.state in (*WAITING, "paused"):
                self._put(job, "stopped", ended=True)
            elif job.state not in LIVE:
                raise RunError(say("job.cannot_stop", name=job.name, state=job.state))
            elif job.state == "pausing":  # it was asked to end already
                self._put(job, "stopping")
            elif job.state == "running" or time.monotonic() - self._stop_asked.get(job.id, 0.0) > _SECOND_STOP_AFTER_S:
                self._ask_to_end(job, "stopping")
            return self.get(job_id)

    def _ask_to_end(self, job: Job, state: State) -> None:
        """Ask the job's process to save and end, for the job to be in that state meanwhile."""
        self._stop_asked[job.id] = time.monotonic()
        self._put(job, state)
        if (process := self._process(job)) is not None:
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile; the next tick settles it
                system.ask_to_end(process)

    def pause(self, job_id: int) -> Job:
        """The training or batch, asked to finish its step, save and wait in the list until it is resumed.

        Raises: RunError if it isn't running.
        """
        with self._lock, self._table_errors_in_words():
            job = self.get(job_id)
            if job.state != "running" or job.kind in (REHEARSAL, CAPTIONS):
                raise RunError(say("job.cannot_pause", name=job.name, state=job.state))
            self._ask_to_end(job, "pausing")
            return self.get(job_id)

    def resume(self, job_id: int, config: str = "") -> Job:
        """A stopped, paused or failed job, let go on from its last checkpoint; with other settings also a finished one.

        One that was paused goes first. Raises: RunError if it is at work or done.
        """
        with self._lock, self._table_errors_in_words():
            job = self.get(job_id)
            if job.state not in (*RESUMABLE, *(("finished",) if config else ())):
                raise RunError(say("job.cannot_resume", name=job.name, state=job.state))
            state = "interrupted" if job.state == "paused" else "queued"
            self.table.put(job, state=state, attempt=0, error="", ended=None, config=config or job.config)
            return self.get(job_id)

    def waiting(self) -> list[Job]:
        """The jobs that wait, in the order in which they will go: what was begun is ended first."""
        waiting = [job for job in self.every() if job.state in WAITING]
        in_order = job_order.sorted_by_place(waiting, job_order.places(self.database))
        return sorted(in_order, key=lambda job: WAITING.index(job.state))

    def move(self, job_id: int, by: int) -> None:
        """Let a waiting job change places with the one before it (-1) or after it (1).

        Raises: RunError if it doesn't wait.
        """
        with self._lock, self._table_errors_in_words():
            job = self.get(job_id)
            alike = [other for other in self.waiting() if other.state == job.state]
            place = next((place for place, other in enumerate(alike) if other.id == job_id), None)
            if job.state not in WAITING or place is None:
                raise RunError(say("job.cannot_move", name=job.name, state=job.state))
            if 0 <= place + by < len(alike):
                alike[place], alike[place + by] = alike[place + by], alike[place]
                job_order.arrange(self.database, alike)

    def remove(self, job_id: int) -> None:
        """Take a job that isn't at work off the list; its run and files stay. Raises: RunError if it is at work."""
        with self._lock, self._table_errors_in_words():
            job = self.get(job_id)
            if job.state in LIVE:
                raise RunError(say("job.stop_first", name=job.name, state=job.state))
            if job.state in (*WAITING, "paused"):
                self._put(job, "stopped", ended=True)
            job_order.hide(self.database, job)

    def show_again(self, job: Job) -> None:
        """Put a job back on the list that was taken off it. Raises: RunError."""
        with self._lock, self._table_errors_in_words():
            job_order.show_again(self.database, job)

    def want_grid(self, job_id: int) -> None:
        """Have a training's grid queued once it is finished. Raises: RunError if there is no such job."""
        with self._lock, self._table_errors_in_words():
            job_plans.want_grid(self.database, self.table.get(job_id).id)

    def wants_grid(self, job: Job) -> bool:
        """Whether a grid is still to be queued for it."""
        return job.id in job_plans.grids_wanted(self.database)

    def let_go_on(self, wanted: bool) -> None:
        """Let the queue go on while a job is paused, or wait for it. Raises: RunError."""
        with self._lock, self._table_errors_in_words():
            job_plans.let_go_on(self.database, wanted)

    def shown(self) -> list[Job]:
        """All jobs that were not taken off the list, newest first."""
        hidden = job_order.hidden(self.database)
        return [job for job in self.every() if job.id not in hidden]

    # The thread.

    def start(self) -> None:
        """Watch and start jobs from now on, once a second, until the server ends; children live on."""
        self._watching = threading.Thread(target=self._watch, name="jobs", daemon=True)
        self._watching.start()

    def halt(self) -> None:
        """Stop watching, and wait for what is looked at just then; children go on."""
        self._halt.set()
        if self._watching:
            self._watching.join(_LAST_LOOK_S)

    def _watch(self) -> None:
        """Tick once a second until `halt`."""
        printed_error, printed_notice = "", self.table.notice
        while not self._halt.is_set():
            try:
                self.tick()
                printed_error = ""
                if self.table.notice != printed_notice:
                    printed_notice = self.table.notice
                    _print(printed_notice)
            except (*_FILE_ERRORS, sqlite3.Error, psutil.Error) as error:
                # Printed once, then tried again: nobody would notice that this thread is dead.
                message = f"jobs: {type(error).__name__}: {error}"
                if message != printed_error:
                    _print(message)
                printed_error = message
            self._halt.wait(1.0)

    def tick(self) -> None:
        """Settle every job whose process is gone, then start the next one if none is at work."""
        with self._lock:
            live = [job for job in self.table.every() if job.state in LIVE]
            at_work = 0
            for job in live:
                if self._is_alive(job):
                    at_work += 1
                else:
                    self._failing_alone(self._settle, job)
            self._queue_grids()
            waiting = self.waiting()
            # What was begun is ended first, even while the queue is held by a paused job.
            if at_work or not waiting or (waiting[0].state == "queued" and self.held_by()):
                return
            self._failing_alone(self._spawn, waiting[0])

    def held_by(self) -> Job | None:
        """The paused job that the queue waits for; None where none is paused, or the queue may go on."""
        paused = next((job for job in self.every() if job.state == "paused"), None)
        return None if paused is None or job_plans.goes_on(self.database) else paused

    def _queue_grids(self) -> None:
        """Queue, once, the grid of each finished training whose grid is wanted."""
        wanted = job_plans.grids_wanted(self.database) - job_order.hidden(self.database)
        for job in self.table.every() if wanted else ():
            if job.id not in wanted or job.state != "finished" or self.grid_of is None:
                continue
            try:
                name, text, kind = self.grid_of(job)
            except _FILE_ERRORS as error:
                _print(f"jobs: {job.name}: its grid can't be drawn: {error}")
                job_plans.want_grid(self.database, job.id, wanted=False)  # or it would be tried each second
                continue
            self.table.safely(partial(self._insert, runs.slug(name), text, kind, job.id))

    def _failing_alone(self, act: Callable[[Job], None], job: Job) -> None:
        """Do it; what is wrong with the job's own folder or files fails this job and no other."""
        try:
            act(job)
        except _FILE_ERRORS as error:
            problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:300]}"
            message = say("job.strange_files", problem=problem)
            self._put(job, "failed", message, ended=True)

    def _process(self, job: Job) -> psutil.Process | None:
        """The job's process if it is alive and still the process that was started, whoever started it."""
        if job.pid is None or job.pid_start is None:
            return None
        return processes.same_process(job.pid, job.pid_start, (job_process.MARK, job_process.mark(job)))

    def _is_alive(self, job: Job) -> bool:
        child = self._children.get(job.id)
        return child.poll() is None if child is not None else self._process(job) is not None

    def _settle(self, job: Job) -> None:
        """Give a job whose process is gone the state it ended in."""
        child = self._children.pop(job.id, None)
        code = child.returncode if child is not None else None  # unknown after a restart of the server
        self._stop_asked.pop(job.id, None)
        # A rehearsal's result is its answer: where nothing fits it ends with 3, and is done all the same.
        if code == 0 or (self.answer(job) if job.kind == REHEARSAL else self.work.finished(job)):
            self._put(job, "finished", ended=True)
            if self.when_finished:
                self.when_finished(job)
        elif job.state in ("stopping", "pausing"):
            self._put(job, "stopped" if job.state == "stopping" else "paused", ended=True)
        elif code == 2:  # a user error, which would only come again
            self._put(job, "failed", job_output.error_text(self.log_file(job)), ended=True)
        elif self._attempts(job) >= MAX_ATTEMPTS:
            message = say("job.gave_up", num=MAX_ATTEMPTS, output=job_output.error_text(self.log_file(job)))
            self._put(job, "failed", message, ended=True)
        else:
            self._put(job, "interrupted", say("job.ended_early"))

    def _attempts(self, job: Job) -> int:
        """Starts so far without a new checkpoint."""
        return 0 if self.work.saved_step(job) > job.saved_step else job.attempt

    def _spawn(self, job: Job) -> None:
        """Start the job's child and write it down in the job's row."""
        attempt, saved_step = self._attempts(job) + 1, self.work.saved_step(job)

        def write_down(pid: int, pid_start: float, began: float) -> None:
            started = began if job.started is None else job.started
            self.table.put(
                job, state="running", attempt=attempt, saved_step=saved_step, ended=None, error="",
                pid=pid, pid_start=pid_start, started=started,
            )  # fmt: skip

        # A server that was killed between starting a child and writing it down has left a child that works.
        if (orphan := job_process.orphan(job)) is not None:
            write_down(orphan.pid, orphan.create_time(), orphan.create_time())
            return
        try:
            child = self._popen(job)
        except OSError as error:
            self._put(job, "failed", say("job.cannot_start", reason=error), ended=True)
            return
        try:
            write_down(child.pid, job_process.began_s(child.pid), time.time())
        except BaseException:  # a child that can't be written down is ended, as nobody would know of it
            child.kill()
            child.wait()
            raise
        self._children[job.id] = child

    def _popen(self, job: Job) -> subprocess.Popen[bytes]:
        # The child imports the trainer that this server has, whatever lies in its working folder.
        environment = os.environ | {
            "PYTHONPATH": str(Path(trainer.__file__).parents[1]), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        environment |= {job_process.MARK: job_process.mark(job)} | system.text_as_utf8()
        environment.pop("PYTHONSTARTUP", None)
        with self.log_file(job).open("ab") as log:
            return subprocess.Popen(
                self.work.command(job), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, cwd=self.logs, **system.own_group(),
            )  # fmt: skip

    def log_file(self, job: Job) -> Path:
        """What its child says, events as JSON lines among it."""
        return self.logs / f"job-{job.id}.log"

    def answer(self, job: Job) -> dict[str, Any]:
        """The last JSON object that the job's child printed and that is no event; {} if there is none."""
        return job_output.answer(self.log_file(job))


def _print(text: str) -> None:
    """A line on the server's own terminal, if it has one."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
