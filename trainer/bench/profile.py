"""`velatura bench profile`: where a step's time goes, and how near it is to what the processor can do.

The processor's peak is measured as the best of large matrix products in the run's dtype. A step's floating-point
operations are counted by torch's own counter (products and convolutions; nothing else counts).
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from trainer import attaching, data, loop
from trainer.bench import training
from trainer.training_model import TrainingModel

if TYPE_CHECKING:
    import torch

_SIDE = 2048


@dataclass(frozen=True)
class Profile:
    """One step: its seconds, operations and the shares of its time by operation; the processor's measured peak."""

    model: str
    dtype: str
    step_s: float
    step_flop: float
    peak_flop_per_s: float
    operations: list[tuple[str, float, int]]  # name, seconds of its own, calls


def run(model: str, rows: int) -> Profile:
    """Profile the third step of ours on a model."""

    with tempfile.TemporaryDirectory(prefix="velatura-bench-") as scratch:
        base = training.prepare(model, Path(scratch))
        config = training.config(model, base, Path(scratch) / f"pictures-{model}", 1, [])
        studio = TrainingModel.open(config)
        studio.prepare(Path(scratch) / "cache", data.scan(config), None)
        attaching.attach(studio, None)
        # Two steps of warm-up, then the step that counts.
        for _ in range(2):
            loop.learn(studio, 0)
        began = time.perf_counter()
        loop.learn(studio, 0)
        seconds = time.perf_counter() - began
        # A counter and a profiler slow a step down, so each has its own.
        with FlopCounterMode(display=False) as counter:
            loop.learn(studio, 0)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            loop.learn(studio, 0)
    events = sorted(found.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)[:rows]
    operations = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in events]
    kind = str(studio.dtype).removeprefix("torch.")
    return Profile(
        model, kind, seconds, float(counter.get_total_flops()), peak_rate(studio.dtype, studio.device), operations
    )


def peak_rate(dtype: torch.dtype, device: str, side: int = _SIDE) -> float:
    """Floating-point operations a second of the best of ten large products."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        float((left @ right)[0, 0])
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def describe(found: Profile) -> str:
    """The profile in Markdown."""
    rate = found.step_flop / found.step_s
    head = (
        f"{found.model}, {found.dtype}: {found.step_s:.2f} s a step, {found.step_flop / 1e12:.3f} TFLOP, "
        f"{rate / 1e9:.0f} GFLOP/s: "
        f"{rate / found.peak_flop_per_s * 100:.0f} % of the {found.peak_flop_per_s / 1e9:.0f} GFLOP/s that a {_SIDE} "
        f"x {_SIDE} product reaches here"
    )
    total = sum(seconds for _, seconds, _ in found.operations)
    lines = [
        f"| {name} | {seconds * 1000:.0f} | {seconds / total * 100:.0f} % | {calls} |"
        for name, seconds, calls in found.operations
    ]
    return "\n".join([head, "", "| operation | ms of its own | share of these | calls |", "|---|---|---|---|", *lines])
