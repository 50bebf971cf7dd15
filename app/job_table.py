"""The table of jobs: one SQLite file, opened if it is ours and set aside, whole, if it is not.

A server that can't read its table must still open: what is damaged or another program's goes by another name beside it, and is said.
Rows are taken at their word only where each value is of its kind; others are passed over.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from trainer import runs
from trainer.errors import RunError

State = Literal["queued", "running", "stopping", "stopped", "finished", "failed", "interrupted"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, name TEXT NOT NULL UNIQUE, config TEXT NOT NULL, state TEXT NOT NULL,
    pid INTEGER, pid_start REAL, attempt INTEGER NOT NULL DEFAULT 0, saved_step INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, started REAL, ended REAL, error TEXT NOT NULL DEFAULT ''
)
"""
_COLUMNS = "id, kind, name, config, state, pid, pid_start, attempt, saved_step, created, started, ended, error"
_PASSING = ("locked", "readonly", "unable to open", "disk i/o", "full", "permission")  # what a table that is ours may say too
_BESIDE = ("", "-wal", "-shm", "-journal")


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
    """Make the table if it isn't there; what was set aside for it, in a sentence, or "". Raises: RunError if the file can't be used now."""
    said = ""
    try:
        if problem := _problem(path):
            said = f"{path.name} {problem}: it is kept as {_set_aside(path).name}, and the list of jobs begins anew; the runs themselves are all there."
        with connected(path) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_SCHEMA)
    except (sqlite3.Error, OSError) as error:
        raise RunError(f"the list of jobs, {path}, can't be used: {error}. Let go of the file, or make it and its folder writable.") from None
    return said


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are kept if the body ends well."""
    connection = sqlite3.connect(path, timeout=10)
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def every(path: Path) -> list[Job]:
    """All jobs, newest first."""
    with connected(path) as connection:
        return [job for row in connection.execute(f"SELECT {_COLUMNS} FROM job ORDER BY id DESC") if (job := _job(row))]


def get(path: Path, job_id: int) -> Job:
    """The job as it is now. Raises: RunError if there is none."""
    with connected(path) as connection:
        row = connection.execute(f"SELECT {_COLUMNS} FROM job WHERE id = ?", (job_id,)).fetchone()
    job = _job(row) if row else None
    if job is None:
        raise RunError(f"there is no job {job_id}.")
    return job


def _job(row: sqlite3.Row) -> Job | None:
    """The row, or None for one that no version of ours wrote."""
    values = dict(row)
    whole = all(type(values[key]) is int for key in ("id", "attempt", "saved_step")) and type(values["pid"]) in (int, type(None))
    texts = all(isinstance(values[key], str) for key in ("kind", "name", "config", "state", "error"))
    times = all(isinstance(values[key], int | float | None) for key in ("pid_start", "started", "ended")) and isinstance(values["created"], int | float)
    return Job(**values) if whole and texts and times and values["state"] in get_args(State) and _is_slug(values["name"]) else None


def _is_slug(name: str) -> bool:
    try:
        return runs.slug(name) == name
    except RunError:
        return False


def _problem(path: Path) -> str:
    """Why the file is no table of ours; "" if it is one, or isn't there. Raises: sqlite3.Error for what may pass."""
    if not path.exists():
        return ""
    if not path.is_file():
        return "is no file"
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            columns = {row[1]: row for row in connection.execute("PRAGMA table_info(job)")}
            ours = set(_COLUMNS.split(", "))
            strangers = [name for name, row in columns.items() if name not in ours and row[3] and row[4] is None]  # must be given, and we don't
            if tables and (ours - columns.keys() or strangers):
                return "is another program's"
            return "" if connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok" else "is damaged"
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and any(word in str(error).lower() for word in _PASSING):
            raise
        return f"can't be read ({error})"


def _set_aside(path: Path) -> Path:
    """Where the file, and what SQLite keeps beside it, went."""
    number, aside = 1, path.with_name(f"{path.stem}-set-aside{path.suffix}")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.stem}-set-aside-{number}{path.suffix}")
    for ending in _BESIDE:
        if os.path.lexists(f"{path}{ending}"):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside


def put(path: Path, job: Job, **changes: Any) -> None:
    """Change these columns of a job."""
    named = ", ".join(f"{column} = ?" for column in changes)
    with connected(path) as connection:
        connection.execute(f"UPDATE job SET {named} WHERE id = ?", (*changes.values(), job.id))
