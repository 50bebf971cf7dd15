"""A run's events on a terminal: a progress bar and a line for each thing worth reading, or JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer import events, printing
from trainer.events import (
    Adjusted,
    Cached,
    Event,
    Failed,
    Finished,
    Folded,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Saved,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)

# Where lines would be too many or too long.
_PLAIN_EVERY = 25  # steps, where there is no terminal to redraw
_MOST_BUCKETS = 8  # named in a line


# A whole run.


def show_json(stream: Iterable[Event]) -> Event | None:
    """Print every event as a JSON line; the last event."""
    last = None
    for last in stream:
        sys.stdout.write(events.to_line(last))
        sys.stdout.flush()
    return last


def show(stream: Iterable[Event], folder: Path) -> Event | None:
    """Print a run for people; the last event."""
    # A bar, which lines scroll above; where there is no terminal, lines alone.
    console = Console(highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    last, seconds, is_alarmed = None, [], False
    with bar:
        task = bar.add_task("training", total=None, loss="-")
        for last in stream:
            if isinstance(last, Started):
                bar.update(task, total=last.max_steps, completed=last.from_step)
            # Steps move the bar, and are printed only where there is none.
            if isinstance(last, Step):
                seconds.append(last.seconds)
                bar.update(task, completed=last.step, loss=f"{last.loss:.4f}")
                if console.is_terminal or last.step % _PLAIN_EVERY:
                    continue
            if isinstance(last, Overtrained):
                if is_alarmed:  # once is enough
                    continue
                is_alarmed = True
            latest = seconds[-20:]
            text = line(last, folder, sum(latest) / max(1, len(latest)))
            if text:
                bar.console.print(text, markup=False)
    return last


# One event in words.


def line(event: Event, folder: Path, step_s: float = 0.0) -> str:
    """One event in words, or nothing."""
    match event:
        # The beginning.
        case Started():
            start = f"from step {event.from_step}" if event.from_step else f"{event.max_steps} steps"
            held = f", {event.num_heldout} held out" if event.num_heldout else ""
            run = f"run {event.name}: {start}, {event.num_pictures} pictures{held}, base {event.base}"
            return f"{run}, {event.num_trainable:,} parameters, {event.device} {event.dtype}"
        case Planned():
            return f"plan: {plan(event)}"
        case Cached():
            return (
                f"cached {event.num_entries} latents and captions, {event.num_computed} new, in {event.seconds:.1f} s"
            )
        # Training, and what was measured.
        case Step():
            return f"step {event.step}: loss {event.loss:.4f}, {step_s:.2f} s a step"
        case Validated():
            return f"step {event.step}: {gain(event)}{beside(event)}"
        case Folded():
            return f"fold {event.fold}: {fold(event)}"
        case Adjusted():
            return f"step {event.step}: memory ran out, so from here on {event.message}"
        case Overtrained():
            return f"over-training at step {event.step}: {event.message}"
        case Recommended():
            return f"use step {event.step}, {folder / event.file}: {event.reason}"
        case Warned():
            return f"note: {event.message}"
        # The end.
        case Stopped():
            return (
                f"stopped after step {event.step}; saved. Go on with: velatura train --resume --name {folder.name} "
                f"--out {folder.parent}"
            )
        case Finished():
            peak = f", at most {memory(event.peak_memory_bytes)}" if event.peak_memory_bytes else ""
            checked = f"opened again and compared; norm {event.adapter_norm:.3f}"
            return (
                f"finished in {event.seconds:.0f} s{peak}: {folder / event.file} ({checked}), report "
                f"{folder / 'report.html'}"
            )
        case Failed():
            return f"failed: {event.message}"
        # So many that they would hide the others; they are in the run's folder.
        case Saved() | Sampled():
            return ""
    return ""


def plan(event: Planned) -> str:
    """The buckets, the fullest first: "44 pictures in 2 buckets, 7 batches an epoch: 128x128 30, 160x96 14"."""
    fullest = sorted((bucket for bucket in event.buckets if len(bucket) == 3), key=lambda bucket: -bucket[2])
    total = _many(sum(count for _, _, count in fullest), "picture")
    named = ", ".join(f"{width}x{height} {count}" for width, height, count in fullest[:_MOST_BUCKETS])
    more = f", and {len(fullest) - _MOST_BUCKETS} more sizes" if len(fullest) > _MOST_BUCKETS else ""
    cropped = ""
    if event.num_cropped:
        cropped = f"; {event.num_cropped} {'lose' if event.num_cropped > 1 else 'loses'} more than a tenth to the crop"
    return (
        f"{total} in {_many(len(fullest), 'bucket')}, {_many(event.num_batches, 'batch', 'batches')} an epoch: "
        f"{named}{more}{cropped}"
    )


def gain(event: Validated) -> str:
    """The held-out result in words, with its spread."""
    fell = "below" if event.gain >= 0 else "above"
    interval = f"95 % interval of the gain {event.gain_low * 100:.1f} to {event.gain_high * 100:.1f} %"
    better = f"better on {event.share_better * 100:.0f} % of {_many(event.num_pictures, 'picture')}"
    return (
        f"held-out loss {event.loss:.4f}, {abs(event.gain) * 100:.1f} % {fell} the base's {event.base_loss:.4f} "
        f"({interval}, {better})"
    )


def beside(event: Validated) -> str:
    """What else was measured, each after a semicolon: the gain on training pictures, and how far the base moved."""
    own = f"; gain on training pictures {event.train_gain * 100:.1f} %" if event.train_gain is not None else ""
    return own + (f"; drift on neutral prompts {event.drift * 100:.1f} %" if event.drift is not None else "")


def fold(event: Folded) -> str:
    """Where a fold's loss on the pictures it left out was lowest."""
    trained = f"trained without {_many(event.num_left_out, 'picture')}"
    # A fold that was stopped before its first measurement, or a log that was cut.
    if not event.losses or not event.steps or not event.base_loss:
        return trained
    loss, step = min(zip(event.losses, event.steps, strict=False))
    return f"{trained}, whose loss was lowest at step {step}, {printing.beside_base(1 - loss / event.base_loss)}"


def memory(num_bytes: int) -> str:
    """`2.4 GiB`, or `640 MiB` below one."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _many(count: int, singular: str, plural: str = "") -> str:
    """`1 batch`, `2 batches`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
