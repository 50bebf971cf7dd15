"""A measured dry run: one step per bucket, one validation and round of previews, one save and reload.

Everything is the run's own code on the run's own pictures, in a folder that is gone afterwards; the weights it trains
are thrown away. What it encodes stays in the cache, where the run finds it. Nothing is estimated from sizes: no formula
knows a model, a method, an optimizer and a machine together.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import nn

from trainer import attaching, bases, checkpoint, data, export, families, file_names, optim, run_evaluation, session
from trainer.config import TrainConfig
from trainer.data import buckets, cross_validation
from trainer.events import Event, Sampled, Validated, Warned
from trainer.memory import ladder, mechanics
from trainer.rehearsal import alternatives
from trainer.rehearsal.result import Rehearsal, Shape
from trainer.rehearsal.timing import ENOUGH_S, MOST_TIMES, now, step
from trainer.run_evaluation import Evaluation
from trainer.runs import Run
from trainer.training_model import TrainingModel


def measure(config: TrainConfig, out: Path, download: bool = False) -> Rehearsal:
    """Rehearse in this process, with the memory settings as they are.

    `out` is where run folders are made, with the cache beside them. Raises: UserError as a run would; whatever is
    raised where memory runs out (`mechanics.is_shortage`).
    """
    # What a run refuses before it loads anything.
    folder = bases.resolve(config.base, families.registry()[config.family], download)
    session.refuse_unread(config, folder)
    dataset, heldout = data.scan(config), data.scan_heldout(config)
    dataset, left_out = cross_validation.leave_out(dataset, config)
    one_batch = config.model_copy(update={"accumulation": 1})  # a step is then a batch, of one bucket
    free_bytes, peaks = _free_bytes(), _Peaks()
    with tempfile.TemporaryDirectory(prefix="velatura-rehearsal-") as temporary:
        run = Run(Path(temporary), cache_folder=out / ".cache")
        # Loading: the base, what it encodes, the adapter and its optimizer.
        began = time.monotonic()
        with peaks.phase("loading"):
            model = TrainingModel.open(one_batch)
            model.accumulation = config.accumulation
            opened = time.monotonic()
            _, num_cached = model.prepare(run.cache, dataset, left_out or heldout)
            cached = time.monotonic()
            parameters = attaching.attach(model, None)
            optimizer = optim.build(optim.groups(parameters, config), config)
        attached = time.monotonic()
        optim.set_rate(optimizer, config, config.optimizer.warmup_steps)  # a first step of warm-up leaves zeros
        no_compiling = alternatives.weigh_compiling(model, optimizer)
        events = list(run_evaluation.opening(model, run, optim.advice(config), (0, 0), 0.0))

        # A few steps of each bucket, one evaluation, one checkpoint and one file.
        with peaks.phase("training"):
            shapes, update_s, compile_s, changed = _trained(model, optimizer)
        compile_s = max(compile_s, alternatives.compiling_s(model))  # less, if it was compiled a moment ago
        with peaks.phase("watching"):
            evaluation, ready_s = _evaluation(model, run, optimizer, parameters, config)
            seconds, evaluation_events = _evaluate(evaluation, config.max_steps)
        with peaks.phase("saving"):
            checkpoint_bytes, checkpoint_s = _save(run, evaluation)
            export_s = _export(run, evaluation, dataset)

        # Afterwards, as they arrange the model anew.
        warnings = [event.message for event in [*events, *evaluation_events] if isinstance(event, Warned)] + changed
        warnings += no_compiling + alternatives.attention(model)
        previews, validations, checkpoints = _times(config, evaluation.questions is not None)
        rehearsal = Rehearsal(
            device=model.device, dtype=str(model.dtype).removeprefix("torch."), max_steps=config.max_steps,
            shapes=shapes, step_s=config.accumulation * _mean_batch_s(shapes) + update_s,
            start_s=(opened - began) + (attached - cached) + ready_s + compile_s, compile_s=compile_s,
            caching_s=cached - opened, num_cached=num_cached,
            preview_s=seconds["preview"], num_previews=previews,
            validation_s=seconds["validation"], num_validations=validations,
            checkpoint_s=checkpoint_s, num_checkpoints=checkpoints, export_s=export_s,
            num_folds=config.validation.folds, eta_s=0.0, peak_bytes=max(peaks.bytes.values()), peaks=peaks.bytes,
            free_bytes=free_bytes, checkpoint_bytes=checkpoint_bytes,
            disk_bytes=_disk_bytes(run, checkpoint_bytes, config.keep_checkpoints, previews),
            cache_bytes=_size(run.cache), free_disk_bytes=_free_disk_bytes(out), memory=config.memory.model_dump(),
            warnings=warnings,
        )  # fmt: skip
    return _with_eta(rehearsal)


class _Peaks:
    """The most memory held in each phase; where the system can't start anew, a later phase shows the highest so far."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        mechanics.reset_peak()
        yield
        self.bytes[name] = mechanics.peak_bytes()


def _trained(model: TrainingModel, optimizer: torch.optim.Optimizer) -> tuple[list[Shape], float, float, list[str]]:
    """What `_train` measures, without compiled blocks where those fail, as a run goes on; and a sentence if so."""
    try:
        return *_train(model, optimizer), []
    except RuntimeError as error:
        sentence = None if mechanics.is_shortage(error) else ladder.without_compiling(model, error)
        if sentence is None:
            raise
    optimizer.zero_grad(set_to_none=True)
    return *_train(model, optimizer), [sentence]


def _train(model: TrainingModel, optimizer: torch.optim.Optimizer) -> tuple[list[Shape], float, float]:
    """What the fullest batch of each bucket takes, after a warm-up; the mean seconds of an update; and those that
    the first batches took beyond later batches, where they compiled.
    """
    order, entries = model.encoded.order, model.encoded.entries
    batches: dict[buckets.Bucket, list[int]] = {}
    for number in range(order.num_batches):
        batches.setdefault(order.batch(number)[0].bucket, []).append(number)
    shapes: list[Shape] = []
    updates: list[float] = []
    compile_s = 0.0

    # The first time warms up, and is left out where there are others.
    for bucket, numbers in sorted(batches.items()):
        fullest = max(numbers, key=lambda number: len(order.batch(number)))
        seconds: list[float] = []
        while len(seconds) < 2 or (sum(seconds) < ENOUGH_S and len(seconds) < MOST_TIMES):
            learn_s, update_s = step(model, optimizer, fullest)
            seconds.append(learn_s)
            updates.append(update_s)
            if learn_s > 10 * ENOUGH_S and shapes:  # warming up is nothing beside it
                break
        batch_s = statistics.median(seconds[1:] or seconds)
        compile_s += max(0.0, seconds[0] - batch_s) if model.memory.compile != "off" else 0.0
        num_entries = sum(entry.bucket == bucket for entry in entries)
        shapes.append(Shape(*bucket, num_entries, len(numbers), batch_s))
    return shapes, statistics.median(updates), compile_s


def _mean_batch_s(shapes: list[Shape]) -> float:
    """Seconds of a batch, over an epoch."""
    return sum(shape.batch_s * shape.num_batches for shape in shapes) / sum(shape.num_batches for shape in shapes)


def _evaluation(
    model: TrainingModel,
    run: Run,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
) -> tuple[Evaluation, float]:
    """What a run measures and previews with, and the seconds until it is ready."""
    began = time.monotonic()
    mean = optim.Mean(parameters, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    evaluation = Evaluation(model, run, optimizer, mean)
    model.release()
    return evaluation, time.monotonic() - began


def _evaluate(evaluation: Evaluation, last_step: int) -> tuple[dict[str, float], list[Event]]:
    """Seconds of one validation and of one round of previews, and their events."""
    seconds, events = {"validation": 0.0, "preview": 0.0}, []
    began = now()
    for event in evaluation.look(last_step):
        ended = now()
        if isinstance(event, Validated):
            seconds["validation"] += ended - began
        elif isinstance(event, Sampled | Warned):
            seconds["preview"] += ended - began
        began = ended
        events.append(event)
    return seconds, events


def _save(run: Run, evaluation: Evaluation) -> tuple[int, float]:
    """Write a checkpoint as a run does and read it again; its size in bytes, and the seconds."""
    began = time.monotonic()
    model = evaluation.model
    tensors, values = optim.state(evaluation.optimizer)
    groups = {"adapter": {**model.parameters(), **model.constants()}, "optimizer": tensors, **evaluation.tensors()}
    checkpoint.save(run.checkpoints, 1, groups, {"optimizer": values, **evaluation.state()}, 1)
    checkpoint.load_latest(run.checkpoints)
    return _size(run.checkpoints), time.monotonic() - began


def _export(run: Run, evaluation: Evaluation, dataset: data.Dataset) -> float:
    """Seconds to write the LoRA file."""
    began = time.monotonic()
    with evaluation.shown():
        export.write(evaluation.model, run.lora_file, dataset, {})
    return time.monotonic() - began


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


def _with_eta(rehearsal: Rehearsal) -> Rehearsal:
    """The whole run: start, steps, previews, validations, checkpoints and files, and each fold's own training."""
    steps = rehearsal.max_steps * rehearsal.step_s + rehearsal.num_checkpoints * rehearsal.checkpoint_s
    evaluations = rehearsal.num_previews * rehearsal.preview_s + rehearsal.num_validations * rehearsal.validation_s
    files = rehearsal.export_s * (2 if rehearsal.num_validations else 1)  # the best beside the last
    eta = (
        rehearsal.start_s
        + steps
        + evaluations
        + files
        + rehearsal.num_folds * (rehearsal.start_s + steps + rehearsal.export_s)
    )
    return Rehearsal(**{**vars(rehearsal), "eta_s": eta})


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def _free_disk_bytes(out: Path) -> int:
    return shutil.disk_usage(out if out.exists() else Path.cwd()).free


def _disk_bytes(run: Run, checkpoint_bytes: int, keep_checkpoints: int, num_previews: int) -> int:
    """What the run's folder holds at its fullest: one checkpoint more than are kept, and all previews."""
    others = _size(run.folder) - checkpoint_bytes
    previews = _size(run.folder / file_names.PREVIEWS) * max(0, num_previews - 1)
    return checkpoint_bytes * (keep_checkpoints + 1) + others + previews


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
