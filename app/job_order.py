"""In which order waiting jobs go, and which jobs the list no longer shows: a table of its own in the file of jobs.

A job's row is never taken out: a row that is missing was lost, and is written anew (`job_table.Table`). So what a
person moves or takes off the list stands beside the rows. If this table is lost, jobs go in the order of their
numbers again. What was begun goes before all that (`jobs.waiting`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from app import job_table
from app.job_table import Job

_SCHEMA = "CREATE TABLE IF NOT EXISTS job_order (id INTEGER PRIMARY KEY, place REAL, hidden INTEGER NOT NULL DEFAULT 0)"


def places(database: Path) -> dict[int, float]:
    """Where moved jobs stand, by number; a job that was never moved stands at its number."""
    return {job_id: place for job_id, place, _ in _rows(database) if isinstance(place, int | float)}


def hidden(database: Path) -> set[int]:
    """Numbers of the jobs that were taken off the list."""
    return {job_id for job_id, _, is_hidden in _rows(database) if is_hidden}


def sorted_by_place(jobs: Sequence[Job], places_by_id: Mapping[int, float]) -> list[Job]:
    """The jobs in the order of their places."""
    return sorted(jobs, key=lambda job: (places_by_id.get(job.id, float(job.id)), job.id))


def arrange(database: Path, jobs: Sequence[Job]) -> None:
    """Put the jobs in this order, at the places that they have among themselves now. Raises: sqlite3.Error."""
    # The places that these jobs have now are given out anew, so that no other job's place changes.
    known = places(database)
    free = sorted(known.get(job.id, float(job.id)) for job in jobs)
    with job_table.connected(database) as connection:
        connection.execute(_SCHEMA)
        connection.executemany(
            "INSERT INTO job_order (id, place) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET place = excluded.place",
            [(job.id, place) for job, place in zip(jobs, free, strict=True)],
        )


def hide(database: Path, job: Job) -> None:
    """Take the job off the list; its run and its files stay. Raises: sqlite3.Error."""
    with job_table.connected(database) as connection:
        connection.execute(_SCHEMA)
        connection.execute(
            "INSERT INTO job_order (id, hidden) VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET hidden = 1", (job.id,)
        )


def show_again(database: Path, job: Job) -> None:
    """Put a job back on the list. Raises: sqlite3.Error."""
    with job_table.connected(database) as connection:
        connection.execute(_SCHEMA)
        connection.execute("UPDATE job_order SET hidden = 0 WHERE id = ?", (job.id,))


def _rows(database: Path) -> list[tuple[int, float | None, int]]:
    """What the table holds; nothing before it is first written to, or while it can't be read."""
    try:
        with job_table.connected(database) as connection:
            return [tuple(row) for row in connection.execute("SELECT id, place, hidden FROM job_order")]
    except sqlite3.Error:
        return []
