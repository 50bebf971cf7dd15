"""What people want of jobs beside their rows: a grid once a training is finished, and a queue that waits or goes on.

A table of its own in the file of jobs, as `job_order` has one. If it is lost, no grid is drawn and the queue waits.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from app import job_table

_SCHEMA = "CREATE TABLE IF NOT EXISTS job_plan (id INTEGER PRIMARY KEY, grid INTEGER NOT NULL DEFAULT 0)"
_WANTED, _QUEUED = 1, 2  # of a grid; 0 is none
_QUEUE = 0  # no job's number: the row that says whether the queue goes on (1) while a job is paused


def grids_wanted(database: Path) -> set[int]:
    """Numbers of the jobs whose grid is wanted and not queued yet."""
    return {job_id for job_id, grid in _rows(database) if grid == _WANTED and job_id != _QUEUE}


def want_grid(database: Path, job_id: int, wanted: bool = True) -> None:
    """Have a grid drawn when the job is finished, or not. Raises: sqlite3.Error."""
    with job_table.connected(database) as connection:
        _put(connection, job_id, _WANTED if wanted else 0)


def grid_queued(connection: sqlite3.Connection, job_id: int) -> None:
    """Note within a transaction that the job's grid was queued with it."""
    _put(connection, job_id, _QUEUED)


def goes_on(database: Path) -> bool:
    """Whether other jobs may begin while one is paused."""
    return any(job_id == _QUEUE and value == 1 for job_id, value in _rows(database))


def let_go_on(database: Path, wanted: bool) -> None:
    """Let other jobs begin while one is paused, or not. Raises: sqlite3.Error."""
    with job_table.connected(database) as connection:
        _put(connection, _QUEUE, int(wanted))


def _put(connection: sqlite3.Connection, job_id: int, value: int) -> None:
    connection.execute(_SCHEMA)
    connection.execute(
        "INSERT INTO job_plan (id, grid) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET grid = excluded.grid",
        (job_id, value),
    )


def _rows(database: Path) -> list[tuple[int, int]]:
    """What the table holds; nothing before it is first written to, or while it can't be read."""
    try:
        with job_table.connected(database) as connection:
            return [tuple(row) for row in connection.execute("SELECT id, grid FROM job_plan")]
    except sqlite3.Error:
        return []
