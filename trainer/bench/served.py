"""A server of `velatura serve` as a child process, to be measured from outside."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from trainer.errors import RunError

_START_S = 900.0


@dataclass(frozen=True)
class Served:
    """A server that is ready."""

    port: int
    process: int

    def cpu_s(self) -> float:
        """The time that it took of all cores so far."""
        return cpu_s(self.process)


def cpu_s(process: int | None = None) -> float:
    """The time that a process took of all cores so far; this one's if none is named."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


@contextmanager
def server(scratch: Path, options: Sequence[str] = ()) -> Iterator[Served]:
    """A server on a free port, whose keys are in `scratch`/keys.toml. Raises: RunError if it doesn't start."""
    # Free at this moment; the server takes it a little later.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "trainer", "serve", "--workspace", str(scratch), "--port", str(port)]
    command += ["--keys", str(scratch / "keys.toml"), *options]
    with (scratch / f"server-{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(process, port, scratch / f"server-{port}.log")
            yield Served(port, process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RunError(f"the server did not start: {log.read_text(errors='replace')[-600:]}")
