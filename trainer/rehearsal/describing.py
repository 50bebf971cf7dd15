"""A rehearsal in words."""

from __future__ import annotations

from typing import Any

from trainer import console
from trainer.rehearsal.result import Rehearsal


def describe(rehearsal: Rehearsal) -> str:
    """The rehearsal for people."""
    # What each bucket takes, and what the totals are made of.
    rows = [
        f"  {shape.width_px}x{shape.height_px}".ljust(14)
        + f"{shape.num_pictures:>6} pictures{shape.num_batches:>6} batches{shape.batch_s:>10.3f} s a batch"
        for shape in rehearsal.shapes
    ]
    peak = max(rehearsal.peaks, key=lambda phase: rehearsal.peaks[phase])
    options = ", ".join(f"{name} {_word(value)}" for name, value in rehearsal.memory.items() if name != "budget_gib")
    fold_runs = f", {rehearsal.num_folds} folds before it" if rehearsal.num_folds else ""
    compiling = f", {clock(rehearsal.compile_s)} of it compiling" if rehearsal.compile_s >= 0.5 else ""
    steps, gib = rehearsal.max_steps, console.memory
    lines = [
        "buckets, an epoch each:",
        *rows,
        f"a step: {rehearsal.step_s:.3f} s; {steps} steps: {clock(steps * rehearsal.step_s)}",
        f"start: {rehearsal.start_s:.1f} s{compiling}; caching: {rehearsal.caching_s:.1f} s here for "
        f"{rehearsal.num_cached} new entries, which the run finds done",
        f"previews: {rehearsal.num_previews} rounds of {rehearsal.preview_s:.1f} s; validations: "
        f"{rehearsal.num_validations} of {rehearsal.validation_s:.1f} s; checkpoints: {rehearsal.num_checkpoints} of "
        f"{rehearsal.checkpoint_s:.2f} s; file: {rehearsal.export_s:.1f} s{fold_runs}",
        f"the whole run: about {clock(rehearsal.eta_s)}",
        f"peak memory: {gib(rehearsal.peak_bytes)}, while {peak}; free at the start: {gib(rehearsal.free_bytes)}",
        f"disk: {gib(rehearsal.disk_bytes)} at most, checkpoints of {gib(rehearsal.checkpoint_bytes)}; the cache holds "
        f"{gib(rehearsal.cache_bytes)}; free: {gib(rehearsal.free_disk_bytes)}",
        f"{rehearsal.device}, {rehearsal.dtype}; {options}",
        *(f"note: {warning}" for warning in rehearsal.warnings),
    ]

    # What to mind.
    if rehearsal.free_disk_bytes < rehearsal.disk_bytes:
        lines.append("note: the disk has less free than the run needs; make room, or lower keep_checkpoints.")
    if rehearsal.budget_bytes:
        lines.append(_verdict(rehearsal))
    if rehearsal.settings:
        lines.append("to train so: " + " ".join(f"--set {setting}" for setting in rehearsal.settings))
    return "\n".join(lines)


def _verdict(rehearsal: Rehearsal) -> str:
    budget = console.memory(rehearsal.budget_bytes)
    if rehearsal.fits:
        how = f"with {len(rehearsal.settings)} memory settings changed" if rehearsal.settings else "as it is"
        return f"fits into {budget}, {how}"
    loading_bytes = rehearsal.peaks["loading"]
    reason = (
        f"loading the base alone takes {console.memory(loading_bytes)}"
        if loading_bytes > rehearsal.budget_bytes
        else f"it still takes {console.memory(rehearsal.peak_bytes)}"
    )
    return (
        f"nothing fits into {budget}: {reason}. Allowed: a larger memory.budget_gib, a lower resolution_px, or a "
        f"smaller base."
    )


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s` or `2 h 5 min`."""
    minutes, rest_s = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest_s} s"
    return f"{minutes} min {rest_s} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
