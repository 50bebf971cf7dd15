"""What a job's child printed, read from the end of its log: the answer of a rehearsal, and the error a person can read.

A log may be long, damaged or gone; only its end is read, and what can't be read counts as nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.texts import say

_MOST_BYTES = 64 << 10
_LONGEST_ERROR = 4000  # characters
_LAST_LINES = 12  # of a log without an error of ours: where a traceback ends


def answer(log: Path) -> dict[str, Any]:
    """The last JSON object in the log that is no event; {} if there is none."""
    # Brackets first: 64 KiB may be as many lines, and each would be a failed try to read JSON.
    for line in (line for line in reversed(_last_lines(log)) if line.startswith("{")):
        with suppress(ValueError, RecursionError):
            printed = json.loads(line)
            if isinstance(printed, dict) and "event" not in printed:
                return printed
    return {}


def error_text(log: Path) -> str:
    """The error a person can read from the end of the log: ours from `error:` on, else the last lines."""
    lines = [line for line in _last_lines(log) if line.strip() and not line.startswith('{"event"')]
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    error = lines[starts[-1] :] if starts else []
    # A traceback below our error means that something else went wrong later.
    if not error or any(line.startswith("Traceback") for line in error):
        error = lines[-_LAST_LINES:]
    return "\n".join(error).removeprefix("error: ")[:_LONGEST_ERROR] or say("job.said_nothing")


def _last_lines(log: Path) -> list[str]:
    """The end of the log; nothing where there is none to read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MOST_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
