"""`velatura bench gpu`: our training step against a plain diffusers + PEFT loop, on random bases of full size, in one
run.

Every row is a process of its own (`gpu_loops` says what it does), so that nothing one loop compiled, cached or broke
touches the next; one that fails is a row with its error. All train rank 16 on attention at the same size and batch, on
the device's own dtype. The operations of a step are counted once, in the plain loop, and are every loop's: what a loop
computes twice (checkpointing) is no use of the card.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer import bases, error_output
from trainer.bench import full_size
from trainer.bench.gpu_loops import LOOPS, Job, Measured, config
from trainer.errors import ConfigError

MODELS = tuple(full_size.FAMILIES)
USUAL = ("sdxl", "flux")
SIZE_PX, SIZE_PX_ON_CPU = 1024, 128
MULTIPLE_PX = 32  # SDXL halves its latents twice
STEPS, STEPS_ON_CPU = 6, 2
_WARM, _WARM_ON_CPU = 3, 1
_PATIENCE_S = 900  # for one process


@dataclass(frozen=True)
class Row:
    """One loop on one base. Nothing but the error where it failed."""

    model: str
    batch: int
    loop: str  # with the settings of ours that were changed
    s_per_step: float | None = None  # median
    peak_gib: float | None = None  # in the measured steps: allocated on a GPU, resident elsewhere
    reserved_gib: float | None = None
    base_s: float | None = None
    first_step_s: float | None = None  # from the base to the end of the first step
    share_of_peak: float | None = None  # of what large products reach, which is 1
    step_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Table:
    """Rows, and what they were measured on."""

    device: dict[str, str]
    size_px: int
    depth: int | None
    rows: tuple[Row, ...]


def size_of(size_px: int | None) -> int:
    """The size of pictures in pixels, where it is left out one that this device draws in seconds."""
    return size_px or (SIZE_PX_ON_CPU if _on_cpu() else SIZE_PX)


def _on_cpu() -> bool:
    return bases.hardware("auto", "auto")[0] == "cpu"


class Bench:
    """A run of the bench; `device` is known once a row was measured."""

    def __init__(self, size_px: int | None, depth: int | None, steps: int | None, usual_steps: int = STEPS) -> None:
        """Raises: ConfigError for what this device can't hold."""
        on_cpu = _on_cpu()
        if on_cpu and depth is None:
            raise ConfigError("there is no GPU here, and whole models are for one; on a CPU add --depth 1.")
        self.size_px, self.depth = size_of(size_px), depth
        if self.size_px % MULTIPLE_PX:
            raise ConfigError(f"--size-px is {self.size_px}; allowed: multiples of {MULTIPLE_PX}.")
        self.steps = steps or (STEPS_ON_CPU if on_cpu else usual_steps)
        self.warm = _WARM_ON_CPU if on_cpu else _WARM
        self.device: dict[str, str] = {}
        self._flop: dict[str, float] = {}  # of one picture's step, by model

    def run(self, models: list[str], batches: list[int], loops: list[str], options: list[str]) -> Iterator[Row]:
        """The table, row by row. Each of `options` is KEY=VALUE, or several of them, and a row of ours with those.
        Raises: ConfigError.
        """
        kinds = [(loop, ()) for loop in LOOPS if loop in loops] + [
            ("ours", tuple(shlex.split(option))) for option in options
        ]
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            jobs = [
                self.job(model, loop, changes, batch, Path(scratch))
                for model in models
                for batch in batches
                for loop, changes in kinds
            ]
            for job in jobs:
                yield self.row(job, _child(job))

    def job(self, model: str, loop: str, changes: tuple[str, ...], batch: int, scratch: Path) -> Job:
        """What a process is to measure; models share nothing but the scratch folder. Raises: ConfigError for settings
        that there aren't.
        """
        job = Job(model, loop, changes, batch, self.warm, self.steps, self.size_px, self.depth, str(scratch / model))
        if loop == "ours":
            config(job)  # refuses before a process is started
        return job

    def row(self, job: Job, measured: Measured | str) -> Row:
        """The row of what a job's process measured, or of its error."""
        name = " ".join([job.loop, *job.options])
        if isinstance(measured, str):
            return Row(job.model, job.batch, name, error=measured)
        self.device = measured.device
        # Counted in the plain loop alone, which comes first, and true of every loop.
        if measured.flop:
            self._flop[job.model] = measured.flop / job.batch
        flop = self._flop.get(job.model)
        share = flop * job.batch / measured.seconds / measured.peak_flop_per_s if flop else None
        return Row(
            job.model,
            job.batch,
            name,
            s_per_step=measured.seconds,
            peak_gib=measured.peak_bytes / 2**30,
            reserved_gib=measured.reserved_bytes / 2**30 if measured.reserved_bytes else None,
            base_s=measured.base_s,
            first_step_s=measured.first_step_s,
            share_of_peak=share,
            step_s=tuple(measured.step_s),
            notes=tuple(measured.notes),
        )

    def table(self, rows: list[Row]) -> Table:
        return Table(self.device, self.size_px, self.depth, tuple(rows))


def command(job: Job) -> tuple[str, ...]:
    """What starts a job's process."""
    return (sys.executable, "-m", "trainer", "bench", "one-gpu", job.written())


def _child(job: Job) -> Measured | str:
    """What a process of its own measures, or what it died of."""
    try:
        done = subprocess.run(command(job), capture_output=True, text=True, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return f"took more than {_PATIENCE_S} s"
    if done.returncode:
        return f"ended by signal {-done.returncode}" if done.returncode < 0 else error_output.cause(done.stderr)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def describe(table: Table) -> str:
    """The table in Markdown."""
    about = ", ".join(
        [*table.device.values()][1:3]
        + [f"{name} {table.device[name]}" for name in ("torch", "diffusers", "peft") if name in table.device]
    )
    lines = [
        f"{about}; {table.size_px} px, {f'{table.depth} of each kind of block' if table.depth else 'whole models'}",
        "",
        "| base, batch | loop | s/step | peak GiB (reserved) | base made, s | first step, s | of the peak of products "
        "|",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(line, table.rows)])


def line(row: Row) -> str:
    """A row in Markdown."""
    head = f"| {row.model}, {row.batch} | {row.loop} "
    if row.s_per_step is None:
        return f"{head}| failed: {row.error.replace('|', '/')} | | | | |"
    reserved = f" ({row.reserved_gib:.1f})" if row.reserved_gib else ""
    share = f"{row.share_of_peak * 100:.0f} %" if row.share_of_peak is not None else ""
    notes = f" ({'; '.join(row.notes)})" if row.notes else ""
    return (
        f"{head}| {row.s_per_step:.3f}{notes} | {row.peak_gib:.1f}{reserved} | {row.base_s:.1f} | "
        f"{row.first_step_s:.1f} | {share} |"
    )


def to_json(table: Table) -> str:
    return json.dumps(asdict(table), indent=2)
