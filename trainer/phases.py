"""What a run is doing while it has no event to tell: a line in a file of its folder, gone once it has one.

Loading a large base and encoding its pictures takes minutes, in which the log is empty; whoever watches must not
think that it hangs. It is no event, since nothing of it is worth keeping.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from trainer import files
from trainer.runs import Run

What = Literal["loading", "encoding", "adapting", "comparing"]
FILE = "phase.json"
_EVERY_S = 0.5
_MOST_BYTES = 4096


@dataclass(frozen=True)
class Phase:
    """What it does now, and how far that is; 0 of 0 where it can't be counted."""

    what: What
    done: int = 0
    total: int = 0


class Teller:
    """Writes the phase of a run, twice a second at most while one goes on."""

    def __init__(self, run: Run, speaks: bool) -> None:
        """Only one of several processes `speaks`."""
        self.path, self.speaks = run.folder / FILE, speaks
        self._last: tuple[What, float] = ("loading", 0.0)

    def tell(self, what: What, done: int = 0, total: int = 0) -> None:
        """Say where the run is; a disk that is full costs the line and nothing else."""
        now = time.monotonic()
        if not self.speaks or self._last[0] == what and now - self._last[1] < _EVERY_S:
            return
        self._last = (what, now)
        with suppress(OSError), files.replacing(self.path) as unnamed:
            unnamed.write_text(json.dumps(asdict(Phase(what, done, total))), encoding="utf-8")

    def encoding(self, done: int, total: int) -> None:
        """So many pictures and captions of all are encoded."""
        self.tell("encoding", done, total)

    def over(self) -> None:
        """The run's events tell from here on, or it has ended."""
        if self.speaks:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def read(run: Run) -> Phase | None:
    """What the run says that it does; None where its events tell, or for a file that nobody of ours wrote."""
    try:
        with (run.folder / FILE).open("rb") as file:
            phase = Phase(**json.loads(file.read(_MOST_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    numbers = (phase.done, phase.total)
    whole = all(type(number) is int and 0 <= number < 10**9 for number in numbers)
    return phase if phase.what in get_args(What) and whole else None
