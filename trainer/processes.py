"""Which process a number means: numbers are given again, so a process is known by when it began and by a mark."""

from __future__ import annotations

import psutil

_SAME_START_S = 2.0  # a start time is read from the clock, which may be set in between


def began_s(pid: int) -> float:
    """When the process with this number began, in seconds since 1970. Raises: psutil.NoSuchProcess."""
    return float(psutil.Process(pid).create_time())


def same_process(pid: int, began: float, mark: tuple[str, str]) -> psutil.Process | None:
    """The live process with this number if it is still the process that began then; None if not.

    A number is given to another process once it is free, and number and time can both come again after the clock was
    set. `mark` is a name and value in its environment, which settles it.
    """
    try:
        process = psutil.Process(pid)
        began_then = abs(process.create_time() - began) < _SAME_START_S
        # A zombie has ended, and waits only for its parent to look.
        if not began_then or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process if process.environ().get(mark[0]) == mark[1] else None
    except (psutil.Error, OSError, ValueError, OverflowError):  # gone, another user's, or a number that no process has
        return None
