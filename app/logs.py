"""Run logs read as they grow: only new lines are parsed, so that a poll each second costs nothing on a long run."""

from __future__ import annotations

import json
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from trainer.events import KINDS, Event
from trainer.report.plausible import is_plausible

_MAX_LOGS = 32  # kept at once; the one that was first read is forgotten first


@dataclass
class _Log:
    """What was read of one file so far."""

    inode: int
    read_bytes: int = 0
    events: list[Event] = field(default_factory=list)


class EventLogs:
    """Events by file. A resumed run replaces its log, which a new inode or a shorter file tells."""

    def __init__(self) -> None:
        self._logs: dict[Path, _Log] = {}
        self._lock = threading.Lock()

    def read(self, path: Path) -> list[Event]:
        """All whole events of a log, oldest first; none if there is no log yet."""
        with self._lock:
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    return []
            except (OSError, ValueError):  # none yet, or a name that no file can have
                self._logs.pop(path, None)
                return []
            # Another file under the same name, or one that was cut, is read anew.
            log = self._logs.get(path)
            if log is None or log.inode != status.st_ino or status.st_size < log.read_bytes:
                if len(self._logs) >= _MAX_LOGS:
                    self._logs.pop(next(iter(self._logs)))
                log = self._logs[path] = _Log(status.st_ino)
            if status.st_size > log.read_bytes:
                with suppress(OSError):
                    self._read_on(path, log)
            return list(log.events)

    def _read_on(self, path: Path, log: _Log) -> None:
        """Read the lines that came since the last time; those that are no event are passed over."""
        with path.open("rb") as file:
            file.seek(log.read_bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be on its way
        log.read_bytes += len(whole)
        for line in whole.splitlines():
            try:
                fields = json.loads(line)
                event = KINDS[fields.pop("event")](**fields)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
            if is_plausible(event):
                log.events.append(event)
