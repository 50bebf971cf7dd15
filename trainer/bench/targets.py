"""`velatura bench targets`: what this program is meant to reach on a GPU, each figure measured and held against it.

What is measured is the rows of `velatura bench gpu` and of folding, by the same processes. They get ready side by side
as the GPU's memory allows (`side_by_side`), so that seconds to make a base and to the first step are those of a machine
with other work; steps are measured alone. Rows come in the order of what they say, and are told of as they are
measured; what the time does not allow is listed as not run. Processes share no base: to make one on the GPU takes a
second or two, to compile its blocks half a minute.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from trainer import error_output, system
from trainer.bench import folding, gpu, side_by_side, stacking
from trainer.bench.gpu import Bench, Row
from trainer.bench.gpu_loops import Job, Measured
from trainer.bench.side_by_side import Ended, Task
from trainer.errors import ConfigError

_STACK = "sdxl"  # the model that is folded into
_FOLDING = "folding"  # its task; all others are named after their row
_STACK_GIB = 14.0
_SPARE_GIB = 4.0  # of the GPU: contexts, and what our estimates below are short of
_MOST_AT_ONCE = 5
STEPS = 4  # of each row, on a GPU


@dataclass(frozen=True)
class Wanted:
    """A row of the GPU bench, and what its process needs on the GPU, generously: only what runs together goes by it."""

    model: str
    batch: int
    loop: str
    gib: float
    changes: tuple[str, ...] = ()

    @property
    def needs_gpu(self) -> bool:
        """True if a CPU can't do it, or only takes its time: to compile brings it nothing."""
        return self.loop == "plain-compiled" or any(
            change.startswith(("memory.offload", "memory.budget_gib", "memory.compile=graphs"))
            for change in self.changes
        )


_CHECKPOINTED = "memory.gradient_checkpointing=true"
# In order of use. Blocks that wait on the CPU are not compiled, so what they are compared with isn't either.
ROWS = {
    "sdxl plain-compiled": Wanted("sdxl", 1, "plain-compiled", 13),
    "sdxl": Wanted("sdxl", 1, "ours", 14),
    "sdxl graphs": Wanted("sdxl", 1, "ours", 18, ("memory.compile=graphs",)),
    "flux plain": Wanted("flux", 1, "plain", 50),
    "flux": Wanted("flux", 1, "ours", 48),
    "flux int8": Wanted("flux", 1, "ours", 37, ("memory.quantise=int8",)),
    "flux fp8": Wanted("flux", 1, "ours", 37, ("memory.quantise=fp8",)),
    "sdxl batch 4": Wanted("sdxl", 4, "ours", 33),
    "flux 8 GiB": Wanted("flux", 1, "ours", 9, (_CHECKPOINTED, "memory.offload=blocks", "memory.budget_gib=8")),
    "flux checkpointed": Wanted("flux", 1, "ours", 28, (_CHECKPOINTED, "memory.compile=off")),
    "sdxl 6 GiB": Wanted("sdxl", 1, "ours", 7, ("memory.budget_gib=6", "memory.compile=off")),
    "flux nf4": Wanted("flux", 1, "ours", 32, ("memory.quantise=nf4",)),
    "sdxl batch 4 plain-compiled": Wanted("sdxl", 4, "plain-compiled", 33),
}


@dataclass(frozen=True)
class Target:
    """A figure of these rows, and the most or the least that it is to be."""

    what: str
    rows: tuple[str, ...]
    figure: Callable[..., float]  # of the fastest of `either`, if there are any, and of those rows, in that order
    unit: str
    limit: float
    is_most: bool = True
    either: tuple[str, ...] = ()  # ways that may fail as long as one way is left

    @property
    def needs(self) -> tuple[str, ...]:
        """All rows that are measured for it."""
        return (*self.either, *self.rows)

    def holds(self, figure: float) -> bool:
        return figure <= self.limit if self.is_most else figure >= self.limit


@dataclass(frozen=True)
class Verdict:
    """A target and what was measured of it."""

    name: str
    what: str
    measured: float | None
    unit: str
    limit: float
    is_most: bool
    held: str  # yes, no, not run, needs a GPU
    note: str = ""  # why it failed, or which settings a run chose for itself


@dataclass(frozen=True)
class Report:
    """All verdicts, and the rows they stand on."""

    table: gpu.Table
    stack: tuple[stacking.Row, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float


@dataclass
class Found:
    """What the processes gave so far, by row."""

    rows: dict[str, Row | stacking.Row] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def _seconds(row: Row) -> float:
    assert row.s_per_step is not None
    return row.s_per_step


def _gib(row: Row) -> float:
    """What the allocator took from the device, which is what a smaller GPU must have."""
    peak = row.reserved_gib or row.peak_gib
    assert peak is not None
    return peak


def _times_faster(ours: Row, other: Row) -> float:
    return _seconds(other) / _seconds(ours)


def _times_slower(ours: Row, other: Row) -> float:
    return _seconds(ours) / _seconds(other)


def _times_the_peak(ours: Row, other: Row) -> float:
    """Of what was allocated: what two allocators hold in reserve is chance."""
    assert ours.peak_gib is not None and other.peak_gib is not None
    return ours.peak_gib / other.peak_gib


def _fold_seconds(row: stacking.Row) -> float:
    return row.ours


def _folding_targets() -> dict[str, Target]:
    """Folding into a whole base, and ten times that into a quantised base."""
    limits = {
        "change": (folding.CHANGE, "change one weight of two", 0.020),
        "swap": (folding.SWAP, "swap a resident LoRA", 0.040),
        "fold": (folding.FIRST_FOLD, "first fold of one file", 0.4),
    }
    targets = {}
    for kind in folding.KINDS:
        for name, (row, what, limit) in limits.items():
            key, times, base = (name, 1, "") if kind == "none" else (f"{name}-{kind}", 10, f", {kind} base")
            targets[key] = Target(
                f"SDXL stack: {what}{base}", (folding.what(row, kind),), _fold_seconds, "s", times * limit
            )
    return targets


_SDXL = ("sdxl", "sdxl graphs")
TARGETS = {
    "sdxl-step": Target("SDXL, batch 1: a step", (), _seconds, "s", 0.15, either=_SDXL),
    "sdxl-faster": Target(
        "SDXL, batch 1: times faster than plain, compiled",
        ("sdxl plain-compiled",),
        _times_faster,
        "x",
        2.0,
        False,
        _SDXL,
    ),
    "sdxl-peak": Target(
        "SDXL, batch 1: peak over plain's, compiled", ("sdxl", "sdxl plain-compiled"), _times_the_peak, "x", 1.0
    ),
    "sdxl-batch-4": Target("SDXL, batch 4: a step", ("sdxl batch 4",), _seconds, "s", 0.35),
    "sdxl-batch-4-peak": Target(
        "SDXL, batch 4: peak over plain's, compiled",
        ("sdxl batch 4", "sdxl batch 4 plain-compiled"),
        _times_the_peak,
        "x",
        1.0,
    ),
    "sdxl-graphs": Target(
        "SDXL, batch 1: CUDA graphs, a step over compiled blocks'", ("sdxl graphs", "sdxl"), _times_slower, "x", 1.0
    ),
    "sdxl-6gib": Target("SDXL with memory.budget_gib=6: memory", ("sdxl 6 GiB",), _gib, "GiB", 6.0),
    "flux-faster": Target(
        "FLUX.1, bf16: times faster than plain", ("flux", "flux plain"), _times_faster, "x", 1.25, False
    ),
    "flux-8-bit": Target(
        "FLUX.1, int8 or fp8: a step over bf16's", ("flux",), _times_slower, "x", 1.0, either=("flux int8", "flux fp8")
    ),
    "flux-nf4": Target("FLUX.1, nf4: a step over bf16's", ("flux nf4", "flux"), _times_slower, "x", 1.25),
    "flux-8gib": Target("FLUX.1, blocks offloaded: memory", ("flux 8 GiB",), _gib, "GiB", 8.0),
    "flux-offload": Target(
        "FLUX.1, blocks offloaded: a step over the checkpointed one's",
        ("flux 8 GiB", "flux checkpointed"),
        _times_slower,
        "x",
        1.35,
    ),
    **_folding_targets(),
}


class Targets:
    """A run over some targets, for so many minutes."""

    def __init__(self, names: Sequence[str], bench: Bench, minutes: float) -> None:
        self.names, self.bench, self.minutes = names, bench, minutes
        self.on_gpu = torch.cuda.is_available()
        self.found = Found()
        self._jobs: dict[str, Job] = {}
        self._told: set[str] = set()
        self._began = time.monotonic()

    def run(self) -> Iterator[Row | stacking.Row | Verdict]:
        """Each row as it is measured, and each verdict once its rows are. Raises: ConfigError."""
        with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
            tasks = self._tasks(Path(scratch))
            for ended in side_by_side.run(self._groups(tasks), self._began + 60 * self.minutes):
                yield from self._take(ended)
                yield from self._decided()

    def report(self) -> Report:
        """What was found; to be called once the run is over."""
        found = self.found.rows.values()
        rows = [row for row in found if isinstance(row, Row)]
        folds = tuple(row for row in found if isinstance(row, stacking.Row))
        verdicts = tuple(self._verdict(name, TARGETS[name]) for name in self.names)
        return Report(self.bench.table(rows), folds, verdicts, round(time.monotonic() - self._began, 1))

    # Processes.

    def _tasks(self, scratch: Path) -> list[Task]:
        """A process for each row of steps that some target needs and this device can do, and one for all folding."""
        needed = {row for name in self.names for row in TARGETS[name].needs}
        self._jobs = {
            name: self.bench.job(wanted.model, wanted.loop, wanted.changes, wanted.batch, scratch)
            for name, wanted in ROWS.items()
            if name in needed and (self.on_gpu or not wanted.needs_gpu)
        }
        tasks = [Task(name, (*gpu.command(job), "--in-turn"), ROWS[name].gib) for name, job in self._jobs.items()]
        kinds = [kind for kind in folding.KINDS if not needed.isdisjoint(folding.names([kind]))]
        if kinds:
            depth = ("--depth", str(self.bench.depth)) if self.bench.depth else ()
            command = (sys.executable, "-m", "trainer", "bench", "one-folding", _STACK, *depth, *kinds)
            tasks.append(Task(_FOLDING, command, _STACK_GIB))
        return tasks

    def _groups(self, tasks: list[Task]) -> list[list[Task]]:
        """What gets ready together: by memory and cores on a GPU, one by one on a CPU."""
        if not self.on_gpu:
            return side_by_side.grouped(tasks, 0.0, 1)
        room_gib = torch.cuda.mem_get_info()[0] / 2**30 - _SPARE_GIB
        return side_by_side.grouped(
            tasks, room_gib, min(_MOST_AT_ONCE, max(1, system.num_cpus() // side_by_side.CORES_EACH))
        )

    def _take(self, ended: Ended) -> Iterator[Row | stacking.Row]:
        """Keep what a process gave; its rows."""
        error = error_output.cause(ended.error) if ended.error else ""
        if ended.name in self._jobs:
            if ended.has_run:
                values = error or Measured(**json.loads(ended.lines[-1]))
                row = self.bench.row(self._jobs[ended.name], values)
                self.found.rows[ended.name] = row
                if error:
                    self.found.errors[ended.name] = error
                yield row
            return
        for line in ended.lines:
            folded = stacking.Row(**json.loads(line))
            self.found.rows[folded.what] = folded
            yield folded
        # Folding that failed half-way: the error is why its other rows are missing.
        for name in folding.names() if error else ():
            if name not in self.found.rows:
                self.found.errors[name] = error

    # Verdicts.

    def _decided(self) -> Iterator[Verdict]:
        """The verdicts that were not told yet and that no row is missing for."""
        # What may still come.
        coming = {*self._jobs, *folding.names()} - {*self.found.rows} - {*self.found.errors}
        for name in self.names:
            if name not in self._told and coming.isdisjoint(TARGETS[name].needs):
                self._told.add(name)
                yield self._verdict(name, TARGETS[name])

    def _verdict(self, name: str, target: Target) -> Verdict:
        """What was measured of a target, and whether it holds."""
        # Of several ways the fastest that worked.
        ways = [row for row in target.either if row in self.found.rows and row not in self.found.errors]
        fastest = min(ways, key=self._step_seconds, default=target.either[0] if target.either else None)
        names = [*([fastest] if fastest else []), *target.rows]
        rows = [self.found.rows.get(row) for row in names]
        errors = [self.found.errors[row] for row in names if row in self.found.errors]
        figure = target.figure(*rows) if all(rows) and not errors else None

        # A CPU's figures say nothing of the target.
        if not self.on_gpu:
            held = "needs a GPU"
        elif errors:
            held = "no"
        elif figure is None:
            held = "not run"
        else:
            held = "yes" if target.holds(figure) else "no"
        notes = errors or [note for row in rows if isinstance(row, Row) for note in row.notes]
        if figure is not None and len(ways) > 1:
            notes.insert(0, f"{fastest} is the faster")
        return Verdict(
            name, target.what, figure, target.unit, target.limit, target.is_most, held, "; ".join(dict.fromkeys(notes))
        )

    def _step_seconds(self, name: str) -> float:
        row = self.found.rows[name]
        assert isinstance(row, Row)
        return _seconds(row)


def named(wanted: Sequence[str]) -> list[str]:
    """The targets of these names, or whose names begin so. Raises: ConfigError for a target that there isn't."""
    names: dict[str, None] = {}
    for text in wanted:
        found = [text] if text in TARGETS else [name for name in TARGETS if name.startswith(text) and text]
        if not found:
            raise ConfigError(f"--only is {text!r}; allowed: {', '.join(TARGETS)}, or the beginning of such.")
        names |= dict.fromkeys(found)
    return [*names] or [*TARGETS]


# In words.


def line(told: Row | stacking.Row | Verdict) -> str:
    """A row or a verdict in Markdown."""
    if isinstance(told, Verdict):
        return _line(told)
    return gpu.line(told) if isinstance(told, Row) else stacking.line(told)


def json_line(told: Row | stacking.Row | Verdict) -> str:
    """A row or a verdict as one line of JSON, by its kind."""
    kind = {Row: "row", stacking.Row: "fold", Verdict: "verdict"}[type(told)]
    return json.dumps({kind: asdict(told)})


def describe(report: Report) -> str:
    """The verdicts in Markdown, then the rows they stand on."""
    counts = Counter(verdict.held for verdict in report.verdicts)
    lines = [
        "| target | measured | wanted | held |",
        "|---|---|---|---|",
        *map(_line, report.verdicts),
        "",
        f"{counts['yes']} held, {counts['no']} not, {counts['not run']} not run, {counts['needs a GPU']} need a GPU; "
        f"{report.seconds:.0f} s",
    ]
    if missed := [verdict.name for verdict in report.verdicts if verdict.held == "not run"]:
        lines.append("for those: velatura bench targets " + " ".join(f"--only {name}" for name in missed))
    lines += ["", gpu.describe(report.table)]
    if report.stack:
        lines += ["", stacking.describe([*report.stack])]
    return "\n".join(lines)


def _line(verdict: Verdict) -> str:
    measured = "" if verdict.measured is None else f"{verdict.measured:.3g} {verdict.unit}"
    if verdict.note:
        measured = f"{measured} ({verdict.note.replace('|', '/')})".strip()
    bound = "at most" if verdict.is_most else "at least"
    return f"| {verdict.what} | {measured} | {bound} {verdict.limit:g} {verdict.unit} | {verdict.held} |"


def to_json(report: Report) -> str:
    """All of it as the last line of JSON."""
    return json.dumps({"report": asdict(report)})
