"""A run's events on a terminal: a progress bar with loss and ETA, a line for each thing worth reading, or JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer import events
from trainer.events import Cached, Event, Failed, Finished, Saved, Started, Step, Stopped, Validated, Warned

_PLAIN_EVERY = 25  # steps, where there is no terminal to redraw


def show_json(stream: Iterable[Event]) -> Event | None:
    """Print every event as a JSON line; the last one."""
    last = None
    for last in stream:
        sys.stdout.write(events.to_line(last))
        sys.stdout.flush()
    return last


def show(stream: Iterable[Event], folder: Path) -> Event | None:
    """Print a run for people; the last event."""
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
    last, seconds = None, []
    with bar:
        task = bar.add_task("training", total=None, loss="-")
        for last in stream:
            if isinstance(last, Started):
                bar.update(task, total=last.max_steps, completed=last.from_step)
            if isinstance(last, Step):
                seconds.append(last.seconds)
                bar.update(task, completed=last.step, loss=f"{last.loss:.4f}")
                if console.is_terminal or last.step % _PLAIN_EVERY:
                    continue
            text = line(last, folder, sum(seconds[-20:]) / max(1, len(seconds[-20:])))
            if text:
                bar.console.print(text, markup=False)
    return last


def line(event: Event, folder: Path, step_s: float = 0.0) -> str:
    """One event in words, or nothing."""
    match event:
        case Started():
            start = f"from step {event.from_step}" if event.from_step else f"{event.max_steps} steps"
            held = f", {event.num_heldout} held out" if event.num_heldout else ""
            run = f"run {event.name}: {start}, {event.num_pictures} pictures{held}, base {event.base}"
            return f"{run}, {event.num_trainable:,} parameters, {event.device} {event.dtype}"
        case Cached():
            return f"cached {event.num_entries} latents and captions, {event.num_computed} new, in {event.seconds:.1f} s"
        case Step():
            return f"step {event.step}: loss {event.loss:.4f}, {step_s:.2f} s a step"
        case Validated():
            return f"step {event.step}: {gain(event)}"
        case Warned():
            return f"note: {event.message}"
        case Stopped():
            return f"stopped after step {event.step}; saved. Go on with: velatura train --resume --name {folder.name} --out {folder.parent}"
        case Finished():
            report = f"report {folder / 'report.html'}"
            return f"finished in {event.seconds:.0f} s: {folder / event.file} (opened again and compared; norm {event.adapter_norm:.3f}), {report}"
        case Failed():
            return f"failed: {event.message}"
        case Saved():
            return ""
    return ""


def gain(event: Validated) -> str:
    """The held-out result in words, with its spread."""
    fell = "below" if event.gain >= 0 else "above"
    interval = f"95 % interval of the gain {event.gain_low * 100:.1f} to {event.gain_high * 100:.1f} %"
    better = f"better on {event.share_better * 100:.0f} % of {event.num_pictures} pictures"
    return f"held-out loss {event.loss:.4f}, {abs(event.gain) * 100:.1f} % {fell} the base's {event.base_loss:.4f} ({interval}, {better})"
