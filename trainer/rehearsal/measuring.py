"""A measured dry run: one step per bucket, one look at what a run looks at, one save and reload; what the run will take.

Everything is the run's own code on the run's own pictures, in a folder that is gone afterwards; the weights it trains are
thrown away. What it encodes stays in the cache, where the run finds it. Nothing is estimated from sizes: no formula knows
a model, a method, an optimizer and a machine together.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer import bases, checkpoint, console, data, export, families, loop, optim, run_evaluation, session
from trainer.config import TrainConfig
from trainer.data import buckets, folds
from trainer.events import Event, Sampled, Validated, Warned
from trainer.memory import arranging, compiling, mechanics
from trainer.runs import Run
from trainer.training_model import TrainingModel

_ENOUGH_S = 1.0  # of measuring one bucket
_MOST = 5  # steps of one bucket
_CLEARLY = 1.05  # times faster, before another way of attention is worth a setting


@dataclass(frozen=True)
class Shape:
    """What one bucket takes."""

    width_px: int
    height_px: int
    num_pictures: int
    num_batches: int  # an epoch
    batch_s: float  # forward and backward of its fullest batch


@dataclass(frozen=True)
class Try:
    """One rehearsal with these memory settings beyond those asked for; `peak_bytes` is 0 where it could not be measured."""

    settings: list[str]
    peak_bytes: int
    message: str


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and what follows for the whole run. Seconds are those from the run's start to its end as it logs them."""

    device: str
    dtype: str
    max_steps: int
    shapes: list[Shape]
    step_s: float  # mean over an epoch, accumulation and update included
    start_s: float  # base, adapter and first measurements
    caching_s: float  # what it took here; the run finds it done
    num_cached: int  # latents and captions that were new
    preview_s: float
    num_previews: int
    validation_s: float
    num_validations: int
    checkpoint_s: float
    num_checkpoints: int
    export_s: float
    num_folds: int
    eta_s: float
    peak_bytes: int
    peaks: dict[str, int]  # by phase: loading, training, watching, saving
    free_bytes: int  # memory that was free at the start
    checkpoint_bytes: int
    disk_bytes: int  # of the run folder at its fullest
    cache_bytes: int  # of the cache that runs beside each other share
    free_disk_bytes: int
    memory: dict[str, str | int | float | bool]  # the options in use
    warnings: list[str] = field(default_factory=list)
    budget_bytes: int = 0  # 0: none
    fits: bool = True
    settings: list[str] = field(default_factory=list)  # `--set` arguments that were chosen to fit
    tried: list[Try] = field(default_factory=list)


def to_json(rehearsal: Rehearsal) -> str:
    """One line."""
    return json.dumps(asdict(rehearsal))


def from_json(text: str) -> Rehearsal:
    """The rehearsal that `to_json` wrote. Raises: ValueError, KeyError or TypeError for anything else."""
    values = json.loads(text)
    values["shapes"], values["tried"] = [Shape(**one) for one in values["shapes"]], [Try(**one) for one in values["tried"]]
    return Rehearsal(**values)


# Measuring.


def measure(config: TrainConfig, out: Path, download: bool = False) -> Rehearsal:
    """Rehearse in this process, with the memory settings as they are. `out` is where run folders are made, with the cache beside them.

    Raises: UserError as a run would; whatever is raised where memory runs out (`mechanics.is_shortage`).
    """
    family = families.registry()[config.family]
    folder = bases.resolve(config.base, family, download)
    session.refuse_unread(config, folder)
    dataset, heldout = data.scan(config), data.scan_heldout(config)
    dataset, left_out = folds.leave_out(dataset, config)
    one_batch = config.model_copy(update={"accumulation": 1})  # a step is then a batch, of one bucket
    free, peaks = _free_bytes(), _Peaks()
    with tempfile.TemporaryDirectory(prefix="velatura-rehearsal-") as temporary:
        run = Run(Path(temporary), cache_folder=out / ".cache")
        began = time.monotonic()
        with peaks.phase("loading"):
            model = TrainingModel.open(one_batch)
            opened = time.monotonic()
            _, num_cached = model.prepare(run.cache, dataset, left_out or heldout)
            cached = time.monotonic()
            parameters = model.attach(None)
            optimizer = optim.build(optim.groups(parameters, config), config)
        said = list(run_evaluation.opening(model, run, optim.advice(config), (0, 0), 0.0))
        attached = time.monotonic()
        with peaks.phase("training"):
            optim.set_rate(optimizer, config, config.optimizer.warmup_steps)
            shapes, update_s = _train(model, optimizer)
        watched = time.monotonic()
        with peaks.phase("watching"):
            evaluation = run_evaluation.Evaluation(
                model, run, optimizer, optim.Mean(parameters, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
            )
            model.release()
            looked = time.monotonic()
            seconds, seen = _look(evaluation, config.max_steps)
        said += seen
        with peaks.phase("saving"):
            saving = time.monotonic()
            kept = _save(run, evaluation)
            saved = time.monotonic()
            with evaluation.shown():
                export.write(model, run.lora_file, dataset, {})
            exported = time.monotonic()
        peak_bytes, slower = max(peaks.found.values()), _attention(model) + _compiling(model)
        batch_s = sum(shape.batch_s * shape.num_batches for shape in shapes) / sum(shape.num_batches for shape in shapes)
        previews, validations, checkpoints = _times(config, evaluation.questions is not None)
        found = Rehearsal(
            device=model.device, dtype=str(model.dtype).removeprefix("torch."), max_steps=config.max_steps, shapes=shapes,
            step_s=config.accumulation * batch_s + update_s, start_s=(opened - began) + (attached - cached) + (looked - watched),
            caching_s=cached - opened, num_cached=num_cached,
            preview_s=seconds["preview"], num_previews=previews, validation_s=seconds["validation"], num_validations=validations,
            checkpoint_s=saved - saving, num_checkpoints=checkpoints, export_s=exported - saved, num_folds=config.validation.folds, eta_s=0.0,
            peak_bytes=peak_bytes, peaks=peaks.found, free_bytes=free, checkpoint_bytes=kept,
            disk_bytes=kept * (config.keep_checkpoints + 1) + _size(run.folder) - kept + _size(run.folder / "samples") * max(0, previews - 1),
            cache_bytes=_size(run.cache), free_disk_bytes=_free_disk_bytes(out), memory=config.memory.model_dump(),
            warnings=[*(event.message for event in said if isinstance(event, Warned)), *slower],
        )  # fmt: skip
    return _with_eta(found)


class _Peaks:
    """The most memory held in each phase; where the system can't start anew, a later phase shows the highest so far."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        mechanics.reset_peak()
        yield
        self.found[name] = mechanics.peak_bytes()


def _train(model: TrainingModel, optimizer: torch.optim.Optimizer) -> tuple[list[Shape], float]:
    """What the fullest batch of each bucket takes, after one to warm up; and the mean seconds of an update."""
    order, entries = model.encoded.order, model.encoded.entries
    batches: dict[buckets.Bucket, list[int]] = {}
    for number in range(order.num_batches):
        batches.setdefault(order.batch(number)[0].bucket, []).append(number)
    shapes: list[Shape] = []
    updates: list[float] = []
    for bucket, numbers in sorted(batches.items()):
        fullest = max(numbers, key=lambda number: len(order.batch(number)))
        learned: list[float] = []
        while len(learned) < 2 or (sum(learned) < _ENOUGH_S and len(learned) < _MOST):
            learn_s, update_s = _step(model, optimizer, fullest)
            learned.append(learn_s)
            updates.append(update_s)
            if learn_s > 10 * _ENOUGH_S and shapes:  # warming up is nothing beside it
                break
        count = sum(entry.bucket == bucket for entry in entries)
        shapes.append(Shape(*bucket, count, len(numbers), statistics.median(learned[1:] or learned)))
    return shapes, statistics.median(updates)


def _step(model: TrainingModel, optimizer: torch.optim.Optimizer, number: int) -> tuple[float, float]:
    """Seconds of forward and backward, and of the update."""
    began = _now()
    loop.learn(model, number)
    learned = _now()
    model.scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters().values(), model.config.optimizer.max_grad_norm)
    optimizer.step()
    model.scaler.update()
    optimizer.zero_grad(set_to_none=True)
    model.limit_norms()
    return learned - began, _now() - learned


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _look(evaluation: run_evaluation.Evaluation, last_step: int) -> tuple[dict[str, float], list[Event]]:
    """Seconds of one validation and of one round of previews, and what they said."""
    seconds, said = {"validation": 0.0, "preview": 0.0}, []
    began = _now()
    for event in evaluation.look(last_step):
        now = _now()
        seconds["validation" if isinstance(event, Validated) else "preview"] += now - began if isinstance(event, Validated | Sampled | Warned) else 0.0
        began = now
        said.append(event)
    return seconds, said


def _save(run: Run, evaluation: run_evaluation.Evaluation) -> int:
    """Write a checkpoint as a run does and read it again; its size in bytes."""
    model = evaluation.model
    tensors, values = optim.state(evaluation.optimizer)
    groups = {"adapter": {**model.parameters(), **model.constants()}, "optimizer": tensors, **evaluation.tensors()}
    checkpoint.save(run.checkpoints, 1, groups, {"optimizer": values, **evaluation.state()}, 1)
    checkpoint.load_latest(run.checkpoints)
    return _size(run.checkpoints)


def _attention(model: TrainingModel) -> list[str]:
    """A sentence if on this machine the fused kernel is clearly faster than the rule that `memory.attention = auto` follows."""
    order = model.encoded.order
    fullest = max(range(order.num_batches), key=lambda number: len(order.batch(number)))
    if model.memory.attention != "auto" or model.device != "cpu" or model.dtype == torch.float32:
        return []
    taken: dict[str, list[float]] = {"auto": [], "fused": []}
    while sum(map(sum, taken.values())) < 2 * _ENOUGH_S and len(taken["auto"]) < _MOST:
        for way, seconds in taken.items():
            model.memory = model.memory.model_copy(update={"attention": way})
            arranging.arrange(model)
            began = _now()
            loop.learn(model, fullest)
            seconds.append(_now() - began)
    auto, fused = (min(seconds) for seconds in taken.values())
    return [f"memory.attention=fused takes {fused:.3f} s where auto takes {auto:.3f} s a batch here."] if auto > _CLEARLY * fused else []


def _compiling(model: TrainingModel) -> list[str]:
    """A sentence on what compiled blocks would bring this run, where `memory.compile = auto` had to go by its length alone."""
    if model.config.memory.compile != "auto" or not compiling.is_possible(model.memory, model.device):
        return []
    passes = arranging.num_passes(model)
    took = {way: _passes(model, way) for way in ("off", "blocks")}
    (_, eager_s), (compile_s, compiled_s) = took["off"], took["blocks"]
    saved = passes * (eager_s - compiled_s) - compile_s
    better = "blocks" if saved > 0 else "off"
    chosen = model.memory.compile
    advice = f"memory.compile={better} would be {clock(abs(saved))} faster" if better != chosen else f"auto chooses {chosen}, {clock(abs(saved))} faster"
    return [f"compiled blocks take {compiled_s:.3f} s a batch instead of {eager_s:.3f} s, after {clock(compile_s)} of compiling; for this run {advice}."]


def _passes(model: TrainingModel, way: str) -> tuple[float, float]:
    """Seconds of the first pass over the fullest batch, with what it compiles, beyond a later one's; and of a later one."""
    order, chosen = model.encoded.order, model.memory
    fullest = max(range(order.num_batches), key=lambda number: len(order.batch(number)))
    model.memory = chosen.model_copy(update={"compile": way})
    torch.compiler.reset()
    arranging.arrange(model)
    seconds = []
    for _ in range(4):
        began = _now()
        loop.learn(model, fullest)
        seconds.append(_now() - began)
    model.memory = chosen
    later = min(seconds[1:])
    return max(0.0, seconds[0] - later), later


# What follows.


def _times(config: TrainConfig, measured: bool) -> tuple[int, int, int]:
    """How often a run previews, validates and saves."""
    last = config.max_steps

    def count(every: int, first: int) -> int:
        return len({*range(first, last + 1, every), last})

    previews = count(config.preview_every_steps, 0) if config.preview_every_steps and config.preview.prompts else 0
    return (
        previews,
        count(config.validate_every_steps, config.validate_every_steps) if measured else 0,
        count(config.checkpoint_every_steps, config.checkpoint_every_steps),
    )


def _with_eta(found: Rehearsal) -> Rehearsal:
    """The whole run: start, steps, previews, validations, checkpoints and files, and each fold's own training."""
    steps = found.max_steps * found.step_s + found.num_checkpoints * found.checkpoint_s
    looks = found.num_previews * found.preview_s + found.num_validations * found.validation_s
    files = found.export_s * (2 if found.num_validations else 1)  # the best beside the last
    eta = found.start_s + steps + looks + files + found.num_folds * (found.start_s + steps + found.export_s)
    return Rehearsal(**{**vars(found), "eta_s": eta})


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _free_disk_bytes(out: Path) -> int:
    import shutil

    return shutil.disk_usage(out if out.exists() else Path.cwd()).free


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# In words.


def describe(found: Rehearsal) -> str:
    """The rehearsal for people."""
    rows = [
        f"  {shape.width_px}x{shape.height_px}".ljust(14) + f"{shape.num_pictures:>6} pictures{shape.num_batches:>6} batches{shape.batch_s:>10.3f} s a batch"
        for shape in found.shapes
    ]
    peak = max(found.peaks, key=lambda phase: found.peaks[phase])
    options = ", ".join(f"{name} {_word(value)}" for name, value in found.memory.items() if name != "budget_gib")
    again = f", {found.num_folds} folds before it" if found.num_folds else ""
    lines = [
        "buckets, an epoch each:",
        *rows,
        f"a step: {found.step_s:.3f} s; {found.max_steps} steps: {clock(found.max_steps * found.step_s)}",
        f"start: {found.start_s:.1f} s; caching: {found.caching_s:.1f} s here for {found.num_cached} new entries, which the run finds done",
        f"previews: {found.num_previews} rounds of {found.preview_s:.1f} s; validations: {found.num_validations} of {found.validation_s:.1f} s; "
        f"checkpoints: {found.num_checkpoints} of {found.checkpoint_s:.2f} s; file: {found.export_s:.1f} s{again}",
        f"the whole run: about {clock(found.eta_s)}",
        f"peak memory: {console.memory(found.peak_bytes)}, while {peak}; free at the start: {console.memory(found.free_bytes)}",
        f"disk: {console.memory(found.disk_bytes)} at most, checkpoints of {console.memory(found.checkpoint_bytes)}; "
        f"the cache holds {console.memory(found.cache_bytes)}; free: {console.memory(found.free_disk_bytes)}",
        f"{found.device}, {found.dtype}; {options}",
        *(f"note: {warning}" for warning in found.warnings),
    ]  # fmt: skip
    if found.free_disk_bytes < found.disk_bytes:
        lines.append("note: the disk has less free than the run needs; make room, or lower keep_checkpoints.")
    if found.budget_bytes:
        lines.append(_verdict(found))
    if found.settings:
        lines.append("to train so: " + " ".join(f"--set {setting}" for setting in found.settings))
    return "\n".join(lines)


def _verdict(found: Rehearsal) -> str:
    budget = console.memory(found.budget_bytes)
    if found.fits:
        return f"fits into {budget}" + (f", with {len(found.settings)} memory settings changed" if found.settings else ", as it is")
    alone = found.peaks["loading"]
    least = f"loading the base alone takes {console.memory(alone)}" if alone > found.budget_bytes else f"it still takes {console.memory(found.peak_bytes)}"
    return f"nothing fits into {budget}: {least}. Allowed: a larger memory.budget_gib, a lower resolution_px, or a smaller base."


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
