"""What a card showed, what was predicted and what a run then really took, beside each other."""

from __future__ import annotations

import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer import console, predicted_cost, run_facts
from trainer.card_file import bundle, reading
from trainer.card_file.contents import Evidence
from trainer.card_file.reading import Opened
from trainer.errors import UserError
from trainer.events import Event, Finished, Started, Step, Validated
from trainer.predicted_cost import Prediction
from trainer.printing import escape
from trainer.report import svg_charts as report_charts
from trainer.report.svg_charts import Series


@dataclass(frozen=True)
class Row:
    """A figure of the card, as it was predicted, and as it came; "" where it isn't known."""

    title: str
    card: str
    predicted: str
    run: str


def card_of(folder: Path) -> Opened | None:
    """The card that a run was started from; None without a card, or where it can't be read."""
    with suppress(UserError, OSError):
        return reading.read(folder / bundle.IN_RUN) if (folder / bundle.IN_RUN).is_file() else None
    return None


def rows(folder: Path, log: list[Event]) -> list[Row]:
    """The figures that are known of at least two of card, prediction and run."""
    card, prediction = card_of(folder), predicted_cost.read(folder / predicted_cost.FILE)
    evidence = card.card.evidence if card else None
    if evidence is None and prediction is None:
        return []
    columns = zip(_of_card(evidence), _of_prediction(prediction), _of_run(folder, log), strict=True)
    figures = [Row(title, *texts) for title, texts in zip(_TITLES, columns, strict=True)]
    return [row for row in figures if sum(map(bool, (row.card, row.predicted, row.run))) > 1]


_TITLES = ("Device", "Pictures", "A step", "Steps", "In all", "Memory", "Best gain")


def _of_card(evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return [""] * len(_TITLES)
    best = max(evidence.heldout, key=lambda point: point.gain, default=None)
    return [
        evidence.device, str(evidence.dataset.num_pictures or ""), _seconds(evidence.step_s), str(evidence.num_steps),
        console.duration(evidence.total_s) if evidence.total_s else "", _memory(evidence.peak_memory_bytes),
        f"{best.gain:.1%} at step {best.step}" if best else "",
    ]  # fmt: skip


def _of_prediction(prediction: Prediction | None) -> list[str]:
    if prediction is None:
        return [""] * len(_TITLES)
    total = console.duration(prediction.total_s) if prediction.total_s else ""
    return ["", "", _seconds(prediction.step_s), "", total, _memory(prediction.peak_bytes), ""]


def _of_run(folder: Path, log: list[Event]) -> list[str]:
    kept = run_facts.kept(folder)
    started = next((event for event in reversed(log) if isinstance(event, Started)), None)
    done = next((event for event in reversed(log) if isinstance(event, Finished)), None)
    steps = [event for event in log if isinstance(event, Step)]
    measured = [event for event in log if isinstance(event, Validated)]
    best = max(measured, key=lambda event: event.gain, default=None)
    return [
        kept.device if kept else started.device if started else "", str(started.num_pictures) if started else "",
        _seconds(statistics.median(event.seconds for event in steps)) if steps else "",
        str(steps[-1].step) if steps else "", console.duration(done.seconds) if done else "",
        _memory(done.peak_memory_bytes) if done else "", f"{best.gain:.1%} at step {best.step}" if best else "",
    ]  # fmt: skip


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value else ""


def _memory(num_bytes: int) -> str:
    return console.memory(num_bytes) if num_bytes else ""


def html(folder: Path, log: list[Event]) -> str:
    """The table, and both held-out curves in one chart; nothing without a card and a prediction."""
    figures = rows(folder, log)
    if not figures:
        return ""

    # A column that nobody fills is left out.
    shown = [("card", "The card"), ("predicted", "Predicted"), ("run", "This run")]
    shown = [(name, title) for name, title in shown if any(getattr(row, name) for row in figures)]
    heads = "".join(f"<th>{title}" for _, title in shown)
    lines = "".join(
        f"<tr><td>{row.title}" + "".join(f"<td>{escape(getattr(row, name), 200) or '–'}" for name, _ in shown)
        for row in figures
    )
    return f'<div class="wide"><table><tr><th>{heads}</tr>{lines}</table></div>{_curves(card_of(folder), log)}'


def _curves(card: Opened | None, log: list[Event]) -> str:
    """The gain on held-out pictures by step, the card's and the run's."""
    points = card.card.evidence.heldout if card and card.card.evidence else ()
    # Both curves begin with the base, which gains nothing.
    theirs = [(0.0, 0.0), *((float(point.step), point.gain) for point in points)] if points else []
    own = [(float(event.step), event.gain) for event in log if isinstance(event, Validated)]
    series = [Series("this run", "held", [(0.0, 0.0), *own] if own else []), Series("the card", "drift", theirs)]
    return report_charts.lines(series, "Gain on held-out pictures by step", lambda value: f"{value * 100:.3g} %", 0.0)
