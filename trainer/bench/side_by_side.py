"""Child processes that get ready side by side and measure one at a time.

To start Python, make a base and compile its blocks takes half a minute of one or two cores; to measure takes a few
seconds, but wants the GPU and the CPU for itself. So a group of processes gets ready together, then each measures
while all others stand still. A process stops at two gates (`gate`): when it has imported what it needs, before it
touches the device, and when it has warmed up, before it measures. The next group imports while this one gets ready.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

CORES_EACH = 3  # of a process that compiles
_AT_GATE = "velatura bench: at a gate"


@dataclass(frozen=True)
class Task:
    """What one process is to do: it passes two gates and prints lines of JSON. `gib` is what it needs on the device."""

    name: str
    command: tuple[str, ...]
    gib: float


@dataclass(frozen=True)
class Ended:
    """What became of a task: its lines of JSON, the error output if it failed, or that there was no time."""

    name: str
    lines: tuple[str, ...] = ()
    error: str = ""
    has_run: bool = True


def gate() -> None:
    """Wait until the process that started this process says to go on. Raises: SystemExit if it is gone."""
    sys.stdout.write(f"{_AT_GATE}\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        raise SystemExit("the process that this one measured for is gone")


def no_gate() -> None:
    """In the place of `gate` where a process runs alone."""


def grouped(tasks: Sequence[Task], room_gib: float, most: int) -> list[list[Task]]:
    """The tasks in groups of at most so many that fit into the room together.

    The first one left opens a group, and each later one that still fits joins it: order is kept where room allows.
    """
    groups, left = [], list(tasks)
    while left:
        group = [left.pop(0)]
        for task in list(left):
            if len(group) < most and sum(member.gib for member in group) + task.gib <= room_gib:
                group.append(task)
                left.remove(task)
        groups.append(group)
    return groups


def run(groups: Sequence[Sequence[Task]], deadline: float) -> Iterator[Ended]:
    """What became of each task, as it ends. At the deadline, by `time.monotonic`, the rest is ended or not begun."""
    running = {0: [_Child(task) for task in groups[0]]} if groups else {}
    try:
        for number, tasks in enumerate(groups):
            if number + 1 < len(groups) and time.monotonic() < deadline:
                running[number + 1] = [_Child(task) for task in groups[number + 1]]
            yield from _measure(running.get(number, []), running.get(number + 1, []), deadline)
            # Tasks of a group that was never started.
            yield from (Ended(task.name, has_run=False) for task in tasks if number not in running)
    finally:
        for child in (child for children in running.values() for child in children):
            child.end()


def _measure(group: list[_Child], waiting: list[_Child], deadline: float) -> Iterator[Ended]:
    """Let a group get ready, then each of it measure while the others, and those waiting, stand at their gates."""
    for child in group:
        child.is_at_gate(deadline)
    for child in group:
        child.go_on()
    for child in [*group, *waiting]:
        child.is_at_gate(deadline)
    for child in group:
        child.go_on()
        yield child.result(deadline)


class _Child:
    """A running task, read by a thread of its own."""

    def __init__(self, task: Task) -> None:
        self.task, self.lines = task, list[str]()
        # A file, not a pipe: nobody would read it while the process waits at a gate.
        self.errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # Else each would start a compiling process for every core.
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(CORES_EACH)} | os.environ
        self.process = subprocess.Popen(
            task.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self._news: queue.Queue[bool] = queue.Queue()  # True: at a gate; False: its output has ended
        self._is_at_gate: bool | None = None  # None: it is under way
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip() == _AT_GATE:
                self._news.put(True)
            elif line.startswith("{"):
                self.lines.append(line)
        self._news.put(False)

    def is_at_gate(self, deadline: float) -> bool:
        """True once it stands at a gate; False if it has ended, or is under way still at the deadline."""
        if self._is_at_gate is None:
            try:
                self._is_at_gate = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
        return self._is_at_gate

    def go_on(self) -> None:
        """Open the gate, if it stands at a gate."""
        if self._is_at_gate:
            self._is_at_gate = None
            assert self.process.stdin
            try:
                self.process.stdin.write("go on\n")
                self.process.stdin.flush()
            except OSError:  # it died at the gate; its exit status says how
                return

    def result(self, deadline: float) -> Ended:
        """What became of it, once it has ended or the deadline has come."""
        try:
            code = self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            return Ended(self.task.name, tuple(self.lines), has_run=False)
        while self.is_at_gate(deadline):  # until all it printed is read
            self._is_at_gate = None
        self.errors.seek(0)
        reason = f"ended by signal {-code}" if code < 0 else self.errors.read() or f"ended with status {code}"
        return Ended(self.task.name, tuple(self.lines), reason if code else "")

    def end(self) -> None:
        """End it if it runs still."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.errors.close()
