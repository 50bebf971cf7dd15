"""The table of jobs: one SQLite file, opened if it is ours and set aside, whole, if it is not.

A server that can't read its table must still open: what is damaged or another program's is renamed beside it, and the
page says so. Rows are used only where each value is of its kind; others are passed over.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from app.texts import say
from trainer import runs
from trainer.errors import RunError

_T = TypeVar("_T")
State = Literal["queued", "running", "stopping", "pausing", "stopped", "paused", "finished", "failed", "interrupted"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL UNIQUE,
    config TEXT NOT NULL, state TEXT NOT NULL,
    pid INTEGER, pid_start REAL, attempt INTEGER NOT NULL DEFAULT 0, saved_step INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, ended REAL, error TEXT NOT NULL DEFAULT ''
)
"""
_COLUMNS = "id, kind, name, config, state, pid, pid_start, attempt, saved_step, created, started, ended, error"
# In the message of an error that a sound table of ours may raise too, and that may pass.
_PASSING = ("locked", "readonly", "unable to open", "disk i/o", "full", "permission")
_SQLITE_FILES = ("", "-wal", "-shm", "-journal")  # endings of what SQLite keeps for one table


@dataclass(frozen=True)
class Job:
    """One row."""

    id: int
    kind: str
    name: str
    config: str  # TOML
    state: State
    pid: int | None
    pid_start: float | None
    attempt: int
    saved_step: int  # how far it was when it was last started: the newest checkpoint, or the number of pictures
    created: float
    started: float | None
    ended: float | None
    error: str


def open_table(path: Path) -> str:
    """What was set aside, in a sentence, or ""; the table is made if it isn't there.

    Raises: RunError if the file can't be used now.
    """
    notice = ""
    try:
        if problem := _problem(path):
            notice = say("job.table_anew", name=path.name, problem=problem, aside=_set_aside(path).name)
        _make(path)
    except (sqlite3.Error, OSError) as error:
        raise RunError(say("job.table_unusable", path=path, reason=error)) from None
    return notice


def _make(path: Path) -> None:
    with connected(path) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(_SCHEMA)


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are kept if the body ends well."""
    connection = sqlite3.connect(path, timeout=10)
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        with connection:
            yield connection
    except UnicodeDecodeError:  # of SQLite's own message, which names what it found
        raise sqlite3.DatabaseError(say("job.table_it_is_damaged")) from None
    finally:
        connection.close()


def every(path: Path) -> list[Job]:
    """All jobs, newest first."""
    with connected(path) as connection:
        return [job for row in connection.execute(f"SELECT {_COLUMNS} FROM job ORDER BY id DESC") if (job := _job(row))]


def _job(row: sqlite3.Row) -> Job | None:
    """The row, or None for a row that no version of ours wrote."""
    values = dict(row)
    # SQLite keeps any value in any column, whatever type the column was declared with.
    numbers = all(type(values[key]) is int for key in ("id", "attempt", "saved_step"))
    numbers = numbers and type(values["pid"]) in (int, type(None))
    texts = all(isinstance(values[key], str) for key in ("kind", "name", "config", "state", "error"))
    times = all(isinstance(values[key], int | float | None) for key in ("pid_start", "started", "ended"))
    times = times and isinstance(values["created"], int | float)
    valid = numbers and texts and times and values["state"] in get_args(State) and _is_slug(values["name"])
    return Job(**values) if valid else None


def _is_slug(name: str) -> bool:
    try:
        return runs.slug(name) == name
    except RunError:
        return False


def _may_pass(error: sqlite3.Error) -> bool:
    """Whether a sound table of ours may raise this too, so that the file is to be left alone."""
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error).lower() for word in _PASSING)


def _problem(path: Path) -> str:
    """Why the file is no table of ours; "" if it is one, is empty, or isn't there.

    Raises: sqlite3.Error for what may pass.
    """
    if not path.exists():
        return ""
    if not path.is_file():
        return say("job.table_no_file")
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            columns = {row[1]: row for row in connection.execute("PRAGMA table_info(job)")}
            ours = set(_COLUMNS.split(", "))
            # Columns that must be given, by NOT NULL without a default, and that we don't give.
            unfilled = [name for name, row in columns.items() if name not in ours and row[3] and row[4] is None]
            if tables and (ours - columns.keys() or unfilled):
                return say("job.table_foreign")
            return "" if connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok" else say("job.table_damaged")
    except sqlite3.DatabaseError as error:
        if _may_pass(error):
            raise
        return say("job.table_unreadable", reason=error)
    except UnicodeDecodeError:  # of SQLite's own message, which names what it found
        return say("job.table_damaged")


def _set_aside(path: Path) -> Path:
    """Where the file was renamed to, with what SQLite keeps beside it."""
    number, aside = 1, path.with_name(f"{path.stem}-set-aside{path.suffix}")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.stem}-set-aside-{number}{path.suffix}")
    for ending in _SQLITE_FILES:
        if os.path.lexists(f"{path}{ending}"):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside


def put(path: Path, job: Job, **changes: Any) -> None:
    """Change these columns of a job."""
    named = ", ".join(f"{column} = ?" for column in changes)
    with connected(path) as connection:
        connection.execute(f"UPDATE job SET {named} WHERE id = ?", (*changes.values(), job.id))


class Table:
    """The table of a server that runs; a file that is lost, damaged or exchanged meanwhile is written anew.

    It then has the rows that were last read: what waits still waits, and what runs is still known by its process. No
    row is ever taken out, so a row that is missing was lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice = open_table(path)  # what became of the file, for the page; "" while nothing did
        self._rows: dict[int, Job] = {}
        self._lock = threading.RLock()
        self.every()

    def every(self) -> list[Job]:
        """All jobs, newest first. Raises: sqlite3.Error for what may pass."""
        with self._lock:
            jobs = self.safely(lambda: every(self.path))
            # Rows are never taken out: if any is missing, the file was lost or exchanged.
            if self._rows.keys() - {job.id for job in jobs}:
                self._renew()
                jobs = every(self.path)
            self._rows = {job.id: job for job in jobs}
        return jobs

    def last_known(self) -> list[Job]:
        """The same as it was last read or written, for when it can't be read now."""
        return sorted(self._rows.values(), key=lambda job: -job.id)

    def get(self, job_id: int) -> Job:
        """The job as it is now. Raises: RunError if there is none, sqlite3.Error for what may pass."""
        job = next((job for job in self.every() if job.id == job_id), None)
        if job is None:
            raise RunError(say("job.none", job=job_id))
        return job

    def put(self, job: Job, **changes: Any) -> None:
        """Change these columns of a job. Raises: sqlite3.Error for what may pass."""
        with self._lock:
            # Then read again, so that the change is known should the file be lost next.
            self.safely(lambda: put(self.path, job, **changes))
            self.every()

    def safely(self, act: Callable[[], _T]) -> _T:
        """What the act gives, done again on a file written anew if the first was lost or damaged.

        Raises: sqlite3.Error for what may pass.
        """
        with self._lock:
            try:
                return act()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.IntegrityError) or _may_pass(error) and not self.path.is_dir():
                    raise
                self._renew()
                return act()

    def _renew(self) -> None:
        """Write the last known rows into a table that lacks them. Raises: sqlite3.Error for what may pass."""
        # A file that is no table of ours goes out of the way.
        problem = _problem(self.path)
        aside = ""
        try:
            if problem:
                aside = _set_aside(self.path).name
        except OSError as error:
            raise sqlite3.OperationalError(say("job.table_stuck", problem=problem, reason=error)) from None

        # Rows that the table still has stay as they are there.
        _make(self.path)
        with connected(self.path) as connection:
            marks = ", ".join("?" * len(_COLUMNS.split(", ")))
            rows = list(map(astuple, self.last_known()))
            num = connection.executemany(f"INSERT OR IGNORE INTO job ({_COLUMNS}) VALUES ({marks})", rows).rowcount
        if num > 0 or problem:
            self.notice = (
                say("job.table_kept", name=self.path.name, problem=problem, aside=aside, num=len(rows))
                if problem
                else say("job.table_gone", name=self.path.name, num=len(rows))
            )
