"""Rehearsing until a run fits into its memory: each try in a process of its own, as a process's peak never falls.

A try that runs out, or is killed by a system that ran out, is one that did not fit. The next takes one rung more of the
ladder that a run climbs on its own when memory runs out, so that both end at the same settings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import trainer
from trainer import bases, console, file_names, presets, system
from trainer.config import MemoryConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.memory import ladder, mechanics
from trainer.rehearsal import measuring
from trainer.rehearsal.result import Rehearsal, Try, from_json, to_json

_SHORTAGE = "shortage"
_CLEARLY = 1.15  # times faster, for which weights may be rounded to 8 bits


def once(config: TrainConfig, out: Path, download: bool) -> str:
    """One try in this process, as a JSON line: a `Rehearsal`, or that memory ran out."""
    with _ended_by_signals():
        try:
            return to_json(measuring.measure(config, out, download))
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error):
                raise
            return json.dumps({_SHORTAGE: str(error).strip().split("\n")[0]})


def fit(config: TrainConfig, out: Path, download: bool = False) -> Iterator[Try | Rehearsal]:
    """Every try that does not fit, then the rehearsal that does, or the last with `fits` false.

    The budget is `memory.budget_gib`, or what is free on a GPU; on a CPU without a budget the first try is the answer.
    Raises: UserError as a run would; ConfigError if memory ran out in every try.
    """
    settings, device = config.memory, bases.hardware(config.device, "float32")[0]
    attempts: list[Try] = []
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="velatura-rehearsal-") as temporary:
        while True:
            result = _try(config.model_copy(update={"memory": settings}), out, download, Path(temporary))
            rung = ladder.next_rung(settings, config, config.batch_size, device)
            changed = _changed(config.memory, settings)

            # It fits, or no rung would help: the last answer.
            if isinstance(result, Rehearsal):
                budget = int(settings.budget_gib * mechanics.GIB) or (result.free_bytes if device == "cuda" else 0)
                fits = not budget or result.peak_bytes <= budget
                result = replace(result, budget_bytes=budget, fits=fits, settings=changed, tried=attempts)
                shrinks = device == "cuda" and settings.offload != "blocks"  # a base that is fetched isn't loaded whole
                if fits or rung is None or (result.peaks["loading"] > budget and not shrinks):
                    yield from _or_narrow(config, settings, result, out, download, Path(temporary))
                    return
                message = f"{console.memory(result.peak_bytes)}, more than {console.memory(budget)}"
            else:
                message = f"memory ran out: {result}"

            # It doesn't fit: a rung more.
            if rung is None:
                raise ConfigError(
                    f"memory ran out with every memory setting there is, at last: {result}. Allowed: a lower "
                    f"resolution_px, or a smaller base."
                )
            attempts.append(Try(changed, result.peak_bytes if isinstance(result, Rehearsal) else 0, message))
            yield replace(attempts[-1], message=f"{message}; next: {rung[1]}")
            settings = rung[0]


def _or_narrow(
    config: TrainConfig, settings: MemoryConfig, fitted: Rehearsal, out: Path, download: bool, temporary: Path
) -> Iterator[Try | Rehearsal]:
    """The rehearsal that was found, or a rehearsal with a base in 8 bits that is clearly faster.

    It is tried where blocks are fetched: in 8 bits the base may stay on the GPU, and needs no fetching.
    """
    if settings.offload == "blocks" and fitted.fits and config.memory.offload != "blocks":
        for kind in ("int8", "fp8"):
            change = {"quantise": kind, "offload": "encoders", "offload_activations": False}
            narrow = config.model_copy(update={"memory": settings.model_copy(update=change)})
            if ladder.check(narrow):
                continue

            # Rounding costs a little quality, so that it must be worth it.
            faster, changed = _try(narrow, out, download, temporary), _changed(config.memory, narrow.memory)
            if (
                isinstance(faster, Rehearsal)
                and faster.peak_bytes <= fitted.budget_bytes
                and faster.step_s * _CLEARLY < fitted.step_s
            ):
                message = f"it fits at {fitted.step_s:.3f} s a step; {kind} takes {faster.step_s:.3f} s"
                yield Try(fitted.settings, fitted.peak_bytes, message)
                fitted = replace(
                    faster, budget_bytes=fitted.budget_bytes, fits=True, settings=changed, tried=fitted.tried
                )
    yield fitted


def _changed(before: MemoryConfig, now: MemoryConfig) -> list[str]:
    """The settings that differ, as `--set` takes them."""
    old = before.model_dump()
    return [
        f"memory.{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in now.model_dump().items()
        if value != old[name]
    ]


def _try(config: TrainConfig, out: Path, download: bool, temporary: Path) -> Rehearsal | str:
    """What a child process measured, or how memory ran out in it.

    Raises: ConfigError with the child's own message, if it refused the settings.
    """
    presets.save(config, temporary / file_names.CONFIG)

    # The command, in an environment in which it finds this package, and leaves what it is killed with in our folder.
    command = [sys.executable, "-m", "trainer", "train", str(temporary / file_names.CONFIG)]
    command += ["--rehearse", "--once", "--out", str(out.absolute()), *(["--download"] if download else [])]
    path = os.pathsep.join(filter(None, (str(Path(trainer.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary), "TEMP": str(temporary)}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            output, errors = child.communicate()
        finally:
            if child.poll() is None:
                child.terminate()

    # How it ended.
    if system.was_asked_to_end(child.returncode):
        raise KeyboardInterrupt
    if system.was_ended_by_system(child.returncode):
        return "the system ended the process"
    if child.returncode == 2:
        raise ConfigError(errors.rpartition("error: ")[2].strip())
    if child.returncode:
        raise RuntimeError(f"the rehearsal's process ended with {child.returncode}:\n{errors}")
    last = output.strip().rpartition("\n")[2]
    shortage = json.loads(last).get(_SHORTAGE)
    return from_json(last) if shortage is None else str(shortage)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the body as Ctrl-C does, so that temporary folders go.

    Does nothing in another thread than the main one, where signals can't be had.
    """

    def end(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        restore = system.on_signals(end, system.ENDING)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        restore()
