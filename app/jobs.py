"""Trainings and batches as rows of a SQLite table, each a child process of its own that outlives the page and the server.

A row says what was wanted; whether it runs is asked of the system each time, by process id *and* start time, so a crash
can leave no phantom behind. One child at a time; the others wait. After a restart of the server live children are found
again, dead ones go on where they were: a training from its last checkpoint, a batch from its last picture (`app.batches`).
"""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

import trainer
from app import job_table
from app.job_table import Job as Job
from app.job_table import State
from trainer import runs, system
from trainer.errors import RunError, UserError
from trainer.events import Saved
from trainer.report.plausible import plausible

LIVE: tuple[State, ...] = ("running", "stopping")
WAITING: tuple[State, ...] = ("interrupted", "queued")  # in this order: what was begun is ended first
TRAINING, REHEARSAL = "train", "rehearse"  # a job's kind
MAX_ATTEMPTS = 3  # without a new checkpoint in between
_SECOND_STOP_AFTER_S = 10.0
_LONGEST_STEM = 70, 190  # characters and bytes: `runs.slug` cuts a name at 80 and 200, and its number must not be what is cut off
_LONGEST_ANSWER = 64 << 10  # bytes
_MARK = "VELATURA_JOB"  # in a child's environment: which job it is, since a process id and a start time may come again
# What reading a folder that may hold anything raises, and writing into it; an error of the table itself is not among them.
_WRONG = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError, csv.Error, UserError)


class Work(Protocol):
    """What a job is done by; a fake in the tests."""

    def command(self, job: Job) -> list[str]:
        """The child's command; the same to start and to go on."""
        ...

    def finished(self, job: Job) -> bool:
        """Whether its result is there, asked when no child works on it."""
        ...

    def saved_step(self, job: Job) -> int:
        """How far its result is: the newest checkpoint's step, 0 for none."""
        ...


class Training:
    """`python -m trainer train` with `--resume`: starts anew where there is no such run, and goes on otherwise.

    A job of kind "rehearse" is the same command's dry run, which leaves no run behind; its result is what it prints.
    """

    def __init__(self, runs_folder: Path, configs_folder: Path) -> None:
        self.runs_folder = runs_folder
        self.configs_folder = configs_folder

    def command(self, job: Job) -> list[str]:
        self.configs_folder.mkdir(parents=True, exist_ok=True)
        config = self.configs_folder / f"job-{job.id}.toml"
        config.write_text(job.config, encoding="utf-8")
        if job.kind == REHEARSAL:
            return [sys.executable, "-m", "trainer", "train", str(config), "--out", str(self.runs_folder), "--rehearse", "--json"]
        return [sys.executable, "-m", "trainer", "train", str(config), "--name", job.name, "--out", str(self.runs_folder), "--json", "--resume"]

    def finished(self, job: Job) -> bool:
        return runs.Run(self.runs_folder / job.name).state() == "finished" if (self.runs_folder / job.name).is_dir() else False

    def saved_step(self, job: Job) -> int:
        return max((event.step for event in plausible(runs.Run(self.runs_folder / job.name).events()) if isinstance(event, Saved)), default=0)


@dataclass(frozen=True)
class ByKind:
    """Each kind of job by its own work."""

    works: Mapping[str, Work]

    def _work(self, job: Job) -> Work:
        if job.kind not in self.works:
            raise RunError(f"{job.name} is a job of kind {job.kind[:40]!r}, which this version can't do; allowed: {', '.join(self.works)}.")
        return self.works[job.kind]

    def command(self, job: Job) -> list[str]:
        return self._work(job).command(job)

    def finished(self, job: Job) -> bool:
        return self._work(job).finished(job)

    def saved_step(self, job: Job) -> int:
        return self._work(job).saved_step(job)


class JobRunner:
    """The job table of a workspace and the one thread that starts, watches and ends its children. Raises: RunError if the table can't be used."""

    def __init__(self, workspace: Path, work: Work, runs_folder: Path) -> None:
        self.database = workspace / "jobs.sqlite"
        self.logs = workspace / "logs"
        self.work = work
        self.runs_folder = runs_folder
        self._lock = threading.RLock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._stop_asked: dict[int, float] = {}
        self._halt = threading.Event()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.table = job_table.Table(self.database)
        if self.table.said:
            _say(self.table.said)

    # The table.

    def _connect(self) -> AbstractContextManager[sqlite3.Connection]:
        return job_table.connected(self.database)

    def every(self) -> list[Job]:
        """All jobs, newest first; as they were last known while the table can't be read, since a page asks every second."""
        try:
            return self.table.every()
        except sqlite3.Error:
            return self.table.last_known()

    def get(self, job_id: int) -> Job:
        """The job as it is now. Raises: RunError if there is none, or the table can't be read now."""
        with self._in_words():
            return self.table.get(job_id)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Raises: RunError for what is wrong with the table."""
        try:
            yield
        except sqlite3.Error as error:
            raise RunError(
                f"the list of jobs, {self.database.name}, can't be used now: {error}. Let go of the file, or make it and its folder writable; then try again."
            ) from None

    def _put(self, job: Job, state: State, error: str = "", ended: bool = False) -> None:
        self.table.put(job, state=state, error=error, ended=time.time() if ended else None)

    # What people ask for.

    def submit(self, name: str, config: str, kind: str = TRAINING) -> Job:
        """A new job, waiting its turn, under a name that no job and no run has. Raises: RunError for a name without letters."""
        wanted = runs.slug(name)
        with self._lock, self._in_words():
            return self.table.get(self.table.safely(lambda: self._added(wanted, config, kind)))

    def _added(self, wanted: str, config: str, kind: str) -> int:
        """The new job's number, which no log has either: a table that begins anew doesn't begin with another job's log."""
        stem = wanted[: _LONGEST_STEM[0]].encode()[: _LONGEST_STEM[1]].decode(errors="ignore").rstrip("-. ")
        logged = [int(digits) for path in self.logs.glob("job-*.log") if (digits := path.stem[4:][:15]).isdecimal()]
        with self._connect() as connection:
            taken = {str(row["name"]).lower() for row in connection.execute("SELECT name FROM job")}
            free, number = wanted, 1
            while free.lower() in taken or (self.runs_folder / free).exists():
                number += 1
                free = f"{stem}-{number}"
            used = [row["seq"] for row in connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'")]
            values = max([0, *logged, *used]) + 1, kind, free, config, time.time()
            cursor = connection.execute("INSERT INTO job (id, kind, name, config, state, created) VALUES (?, ?, ?, ?, 'queued', ?)", values)
            return int(cursor.lastrowid or 0)

    def stop(self, job_id: int) -> Job:
        """Ask the job to finish its step, save and end; asked again later, it ends at once. Raises: RunError if it isn't running."""
        with self._lock, self._in_words():
            job = self.get(job_id)
            if job.state in WAITING:
                self._put(job, "stopped", ended=True)
            elif job.state not in LIVE:
                raise RunError(f"{job.name} is {job.state}; there is nothing to stop.")
            elif job.state == "running" or time.monotonic() - self._stop_asked.get(job.id, 0.0) > _SECOND_STOP_AFTER_S:
                self._stop_asked[job.id] = time.monotonic()
                self._put(job, "stopping")
                if (process := self._process(job)) is not None:
                    with suppress(psutil.NoSuchProcess):  # it ended meanwhile; the next tick settles it
                        system.ask_to_end(process)
            return self.get(job_id)

    def resume(self, job_id: int) -> Job:
        """Let a stopped or failed job go on from its last checkpoint. Raises: RunError if it is at work or done."""
        with self._lock, self._in_words():
            job = self.get(job_id)
            if job.state not in ("stopped", "failed"):
                raise RunError(f"{job.name} is {job.state}; only a stopped or failed one can go on.")
            self.table.put(job, state="queued", attempt=0, error="", ended=None)
            return self.get(job_id)

    # The thread.

    def start(self) -> None:
        """Watch and start jobs from now on, once a second, until the server ends; children live on."""
        threading.Thread(target=self._watch, name="jobs", daemon=True).start()

    def halt(self) -> None:
        """Stop watching; children go on."""
        self._halt.set()

    def _watch(self) -> None:
        """Tick on and on; whatever goes wrong is said once and tried again, since nobody else would notice a dead thread."""
        said, told = "", self.table.said
        while not self._halt.is_set():
            try:
                self.tick()
                said = ""
                if self.table.said != told:
                    told = self.table.said
                    _say(told)
            except (*_WRONG, sqlite3.Error, psutil.Error) as error:
                words = f"jobs: {type(error).__name__}: {error}"
                if words != said:
                    _say(words)
                said = words
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
                    self._guarded(self._settle, job)
            if at_work:
                return
            waiting = [job for job in self.table.every() if job.state in WAITING]
            if waiting:
                self._guarded(self._spawn, min(waiting, key=lambda job: (WAITING.index(job.state), job.id)))

    def _guarded(self, act: Callable[[Job], None], job: Job) -> None:
        """Do it; what is wrong with the job's own folder or files fails this job and no other."""
        try:
            act(job)
        except _WRONG as error:
            said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {str(error)[:300]}"
            self._put(
                job, "failed", f"what it wrote can't be read, so it is not known how far it is ({said}). Mend or remove that file, then go on.", ended=True
            )

    def _process(self, job: Job) -> psutil.Process | None:
        """The job's process if it is alive and still the one that was started, whoever started it."""
        if job.pid is None or job.pid_start is None:
            return None
        return system.same_process(job.pid, job.pid_start, (_MARK, _mark(job)))

    def _orphan(self, job: Job) -> psutil.Process | None:
        """A living process of the job whatever its row says: the eldest that has its mark, which is handed down to what it starts."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == _mark(job) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append((process.create_time(), process))
        return min(found, key=lambda one: one[0])[1] if found else None

    def _is_alive(self, job: Job) -> bool:
        child = self._children.get(job.id)
        return child.poll() is None if child is not None else self._process(job) is not None

    def _settle(self, job: Job) -> None:
        """Give a job whose process is gone the state it ended in."""
        child = self._children.pop(job.id, None)
        code = child.returncode if child is not None else None  # unknown after a restart of the server
        self._stop_asked.pop(job.id, None)
        if code == 0 or (self.answer(job) if job.kind == REHEARSAL else self.work.finished(job)):  # a rehearsal that finds no way to fit ends with 3
            self._put(job, "finished", ended=True)
        elif job.state == "stopping":
            self._put(job, "stopped", ended=True)
        elif code == 2:  # a user error, which would only come again
            self._put(job, "failed", self._last_words(job), ended=True)
        elif self._attempts(job) >= MAX_ATTEMPTS:
            self._put(job, "failed", f"it ended {MAX_ATTEMPTS} times without getting further:\n{self._last_words(job)}", ended=True)
        else:
            self._put(job, "interrupted", "it ended before it was done; it goes on where it was.")

    def _attempts(self, job: Job) -> int:
        """Starts so far without a new checkpoint."""
        return 0 if self.work.saved_step(job) > job.saved_step else job.attempt

    def _spawn(self, job: Job) -> None:
        """Start the job's child and write it down; a child that can't be written down is ended, as nobody would know of it.

        A server that was killed between the two has left one that works: that one is written down.
        """
        attempt, saved_step = self._attempts(job) + 1, self.work.saved_step(job)
        if (orphan := self._orphan(job)) is not None:
            began = {"pid": orphan.pid, "pid_start": orphan.create_time(), "started": orphan.create_time() if job.started is None else job.started}
            self.table.put(job, state="running", attempt=attempt, saved_step=saved_step, ended=None, error="", **began)
            return
        try:
            child = self._popen(job)
        except OSError as error:
            self._put(job, "failed", f"it can't be started: {error}", ended=True)
            return
        try:
            began = {"pid": child.pid, "pid_start": _began(child.pid), "started": time.time() if job.started is None else job.started}
            self.table.put(job, state="running", attempt=attempt, saved_step=saved_step, ended=None, error="", **began)
        except BaseException:
            child.kill()
            child.wait()
            raise
        self._children[job.id] = child

    def _popen(self, job: Job) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(Path(trainer.__file__).parents[1]), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        environment |= {_MARK: _mark(job)} | system.text_as_utf8()
        environment.pop("PYTHONSTARTUP", None)
        with self.log_file(job).open("ab") as log:
            return subprocess.Popen(
                self.work.command(job), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.logs, **system.own_group()
            )

    def log_file(self, job: Job) -> Path:
        """What its child says, events as JSON lines among it."""
        return self.logs / f"job-{job.id}.log"

    def answer(self, job: Job) -> dict[str, Any]:
        """The last JSON object that the job's child printed and that is no event; {} if there is none."""
        for line in (line for line in reversed(self._log_lines(job)) if line.startswith("{")):  # 64 KiB may be as many lines
            with suppress(ValueError, RecursionError):
                found = json.loads(line)
                if isinstance(found, dict) and "event" not in found:
                    return found
        return {}

    def _log_lines(self, job: Job) -> list[str]:
        """The end of the child's log; nothing where there is none to read."""
        path = self.log_file(job)
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _LONGEST_ANSWER))
                return file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def _last_words(self, job: Job) -> str:
        """The error a person can read from the end of the child's log: ours from `error:` on, else the last lines."""
        lines = [line for line in self._log_lines(job) if line.strip() and not line.startswith('{"event"')]
        marked = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        words = lines[marked[-1] :] if marked and not any(line.startswith("Traceback") for line in lines[marked[-1] :]) else lines[-12:]
        return "\n".join(words).removeprefix("error: ")[:4000] or "it said nothing."


def _mark(job: Job) -> str:
    """What tells a job's own process from another that has its number."""
    return f"{job.id} {job.created!r}"


def _say(words: str) -> None:
    """A line on the server's own terminal, if it has one."""
    with suppress(OSError):
        sys.stderr.write(words + "\n")
        sys.stderr.flush()


def _began(pid: int) -> float:
    try:
        return system.began_s(pid)
    except psutil.NoSuchProcess:
        return time.time()
