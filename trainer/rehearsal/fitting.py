"""Rehearsing until a run fits into its memory: each try in a process of its own, as a process's peak never falls.

A try that runs out, or is killed by a system that ran out, is one that did not fit. The next takes one rung more of the ladder
that a run climbs on its own when memory runs out, so that both end at the same settings.
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
from trainer import bases, console, presets, system
from trainer.config import MemoryConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.memory import ladder, mechanics
from trainer.rehearsal import measuring
from trainer.rehearsal.measuring import Rehearsal, Try

_SHORTAGE = "shortage"
_CLEARLY = 1.15  # times faster, for which weights may be rounded to 8 bits


def once(config: TrainConfig, out: Path, download: bool) -> str:
    """One try in this process, as a JSON line: a `Rehearsal`, or that memory ran out."""
    with _ended_by_signals():
        try:
            return measuring.to_json(measuring.measure(config, out, download))
        except (RuntimeError, MemoryError) as error:
            if not mechanics.is_shortage(error):
                raise
            return json.dumps({_SHORTAGE: str(error).strip().split("\n")[0]})


def fit(config: TrainConfig, out: Path, download: bool = False) -> Iterator[Try | Rehearsal]:
    """Every try that does not fit, then the rehearsal that does, or the last one with `fits` false.

    The budget is `memory.budget_gib`, or what is free on a GPU; on a CPU without one the first try is the answer.
    Raises: UserError as a run would; ConfigError if memory ran out in every try.
    """
    settings, device = config.memory, bases.hardware(config.device, "float32")[0]
    tried: list[Try] = []
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="velatura-rehearsal-") as temporary:
        while True:
            found = _try(config.model_copy(update={"memory": settings}), out, download, Path(temporary))
            rung = ladder.next_rung(settings, config, config.batch_size, device)
            changed = _changed(config.memory, settings)
            if isinstance(found, Rehearsal):
                budget = int(settings.budget_gib * mechanics.GIB) or (found.free_bytes if device == "cuda" else 0)
                fits = not budget or found.peak_bytes <= budget
                found = replace(found, budget_bytes=budget, fits=fits, settings=changed, tried=tried)
                shrinks = device == "cuda" and settings.offload != "blocks"  # a base that is fetched is not loaded whole
                if fits or rung is None or (found.peaks["loading"] > budget and not shrinks):
                    yield from _or_narrow(config, settings, found, out, download, Path(temporary))
                    return
                message = f"{console.memory(found.peak_bytes)}, more than {console.memory(budget)}"
            else:
                message = f"memory ran out: {found}"
            if rung is None:
                raise ConfigError(f"memory ran out with every memory setting there is, at last: {found}. Allowed: a lower resolution_px, or a smaller base.")
            tried.append(Try(changed, found.peak_bytes if isinstance(found, Rehearsal) else 0, message))
            yield replace(tried[-1], message=f"{message}; next: {rung[1]}")
            settings = rung[0]


def _or_narrow(config: TrainConfig, settings: MemoryConfig, found: Rehearsal, out: Path, download: bool, temporary: Path) -> Iterator[Try | Rehearsal]:
    """The rehearsal that was found; where its blocks are fetched, a base in 8 bits that stays on the GPU instead if it fits and is clearly faster."""
    if settings.offload == "blocks" and found.fits and config.memory.offload != "blocks":
        for kind in ("int8", "fp8"):
            change = {"quantise": kind, "offload": "encoders", "offload_activations": False}
            narrow = config.model_copy(update={"memory": settings.model_copy(update=change)})
            if ladder.check(narrow):
                continue
            other, changed = _try(narrow, out, download, temporary), _changed(config.memory, narrow.memory)
            if isinstance(other, Rehearsal) and other.peak_bytes <= found.budget_bytes and other.step_s * _CLEARLY < found.step_s:
                message = f"it fits at {found.step_s:.3f} s a step; {kind} takes {other.step_s:.3f} s"
                yield Try(found.settings, found.peak_bytes, message)
                found = replace(other, budget_bytes=found.budget_bytes, fits=True, settings=changed, tried=found.tried)
    yield found


def _changed(before: MemoryConfig, now: MemoryConfig) -> list[str]:
    """The settings that differ, as `--set` takes them."""
    old = before.model_dump()
    return [f"memory.{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in now.model_dump().items() if value != old[name]]


def _try(config: TrainConfig, out: Path, download: bool, temporary: Path) -> Rehearsal | str:
    """What a child process measured, or how memory ran out in it. Raises: ConfigError with what it said, if that was another error."""
    presets.save(config, temporary / "config.toml")
    command = [sys.executable, "-m", "trainer", "train", str(temporary / "config.toml"), "--rehearse", "--once", "--out", str(out.absolute())]
    home = os.pathsep.join(filter(None, (str(Path(trainer.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": home, "TMPDIR": str(temporary), "TEMP": str(temporary)}  # what it leaves when it is killed goes with ours
    with subprocess.Popen(
        [*command, *(["--download"] if download else [])], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            said, errors = child.communicate()
        finally:
            if child.poll() is None:
                child.terminate()
    if system.was_asked_to_end(child.returncode):
        raise KeyboardInterrupt
    if system.was_ended_by_system(child.returncode):
        return "the system ended the process"
    if child.returncode == 2:
        raise ConfigError(errors.rpartition("error: ")[2].strip())
    if child.returncode:
        raise RuntimeError(f"the rehearsal's process ended with {child.returncode}:\n{errors}")
    last = said.strip().rpartition("\n")[2]
    shortage = json.loads(last).get(_SHORTAGE)
    return measuring.from_json(last) if shortage is None else str(shortage)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the body as Ctrl-C does, so that temporary folders go; nothing where signals can't be had (another thread)."""

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
