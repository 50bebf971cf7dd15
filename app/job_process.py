"""Which process is a job's own: told by a mark in its environment, whatever a row says."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from app.job_table import Job
from trainer import processes

MARK = "VELATURA_JOB"  # in a child's environment: which job it is, since a process id and a start time may come again


def mark(job: Job) -> str:
    """What tells a job's own process from another that has its number."""
    return f"{job.id} {job.created!r}"


def orphan(job: Job) -> psutil.Process | None:
    """A living process of the job, whatever its row says: the eldest that has its mark.

    The mark is handed down to what the job starts, so that younger processes may have it too.
    """
    matches = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark(job) and process.status() != psutil.STATUS_ZOMBIE:
                matches.append((process.create_time(), process))
    return min(matches, key=lambda match: match[0])[1] if matches else None


def began_s(pid: int) -> float:
    """When the process began; now, if it has ended already."""
    try:
        return processes.began_s(pid)
    except psutil.NoSuchProcess:
        return time.time()
