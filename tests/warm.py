"""The command in a process of its own that need not import torch and diffusers first: forked from one that has.

An import takes five seconds of a core, and the tests start more than a hundred commands. What is forked is a process
like any other: its own folder, environment, streams, signals and status, killed and waited for as one. Commands whose
start is what is tested, or whose imports read their environment, start cold (`subprocess`).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

# What a training or a rendering imports; none of it computes, so that no thread is there to be lost by forking.
_IMPORTED = [
    "diffusers", "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "transformers",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip", "peft", "safetensors.torch", "PIL.Image", "pytorch_optimizer",
    "gradio",  # what a page imports
]  # fmt: skip


@cache
def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


class Command:
    """`velatura ARGUMENTS` at work, with the part of `subprocess.Popen` that the tests use; text streams."""

    def __init__(self, arguments: list[str], folder: Path, more: dict[str, str] | None = None) -> None:
        """`more`: variables of its environment beside the test's own."""
        self._streams = tempfile.TemporaryDirectory()
        out, self._said = Path(self._streams.name) / "out", Path(self._streams.name) / "err"
        os.mkfifo(out)
        environment = {**os.environ, **(more or {})}  # as it is now: a test may have changed it since the first fork
        self._process = _server().Process(
            target=_run, args=(arguments, str(folder), str(out), str(self._said), environment)
        )
        self._process.start()
        self.pid: int = self._process.pid
        self.stdout = out.open(encoding="utf-8")

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    @property
    def returncode(self) -> int:
        """The status, negative for the signal that ended it."""
        code: int = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        self._process.join()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said on both streams since they were last read; killed after `timeout` seconds."""
        watch = threading.Timer(timeout or threading.TIMEOUT_MAX, self.kill)
        watch.daemon = True
        watch.start()
        with self.stdout:
            output = self.stdout.read()
        self.wait()
        watch.cancel()
        wrong = self._said.read_text(encoding="utf-8")
        self._streams.cleanup()
        return output, wrong


class Server:
    """`python -m app ARGUMENTS` at work, what it says in a log file."""

    def __init__(self, arguments: list[str], folder: Path, log: Path) -> None:
        environment = dict(os.environ)  # as it is now: a test may have changed it since the first fork
        self._process = _server().Process(
            target=_serve, args=(arguments, str(folder), str(log), environment), daemon=True
        )
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The status, or None while it is at work."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.poll()


def run(
    arguments: list[str], folder: Path, timeout: float, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`velatura ARGUMENTS` to its end."""
    process = Command(arguments, folder, more)
    output, wrong = process.communicate(timeout)
    return subprocess.CompletedProcess(["velatura", *arguments], process.returncode, output, wrong)


def _run(arguments: list[str], folder: str, out: str, err: str, environment: dict[str, str]) -> None:
    """In the forked process."""
    _put_streams(os.open(out, os.O_WRONLY), os.open(err, os.O_WRONLY | os.O_CREAT))
    _put_place(folder, environment)
    sys.argv = ["velatura", *arguments]
    from trainer.cli import main

    main()


def _serve(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    """In the forked process."""
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _put_streams(opened, opened)
    _put_place(folder, environment)
    sys.argv = ["app", *arguments]
    from app.__main__ import main

    main()


def _put_streams(out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    streams = (open(stream, "wb", closefd=False) for stream in (1, 2))  # noqa: SIM115 - they stay open
    sys.stdout, sys.stderr = (io.TextIOWrapper(stream, encoding="utf-8", line_buffering=True) for stream in streams)


def _put_place(folder: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
