"""The curves of a report: what was gained on held-out pictures, and how the training loss went."""

from __future__ import annotations

from collections.abc import Sequence

from trainer import console
from trainer.events import Event, Folded, Step, Validated
from trainer.printing import escape
from trainer.report import svg_charts as report_charts
from trainer.report.html import bullets, sentence
from trainer.report.svg_charts import Point, Series

USUAL_DECAY = 0.95  # of a running mean: how much of it stays at each step


def heldout(log: list[Event]) -> str:
    """The charts and figures of the measurements on held-out pictures, and of the folds.

    They are the gain with its interval beside the gain on training pictures, the loss, the drift, and the loss by
    tenths of the schedule.
    """
    measured = sorted((event for event in log if isinstance(event, Validated)), key=lambda event: event.step)
    folds = _folds(log)
    if not measured:
        return folds

    # Every curve but that of training pictures begins with the base, at step 0.
    first, last, base = measured[0], measured[-1], measured[0].base_loss
    held = Series(
        "held-out pictures", "held",
        [(0, 0.0), *((event.step, event.gain) for event in measured)],
        [0.0, *(event.gain_low for event in measured)],
        [0.0, *(event.gain_high for event in measured)],
    )  # fmt: skip
    own_points = [(event.step, event.train_gain) for event in measured if event.train_gain is not None]
    own = Series("training pictures", "own", own_points)
    drifts = [(event.step, event.drift) for event in measured if event.drift is not None]
    drift = Series("drift on neutral prompts", "drift", [(0, 0.0), *drifts])
    loss = Series(
        "held-out loss", "held",
        [(0, base), *((event.step, event.loss) for event in measured)],
        [base, *(event.base_loss * (1 - event.gain_high) for event in measured)],  # a high gain is a low loss
        [base, *(event.base_loss * (1 - event.gain_low) for event in measured)],
    )  # fmt: skip

    # The charts, a sentence before them and the figures below.
    charts = [
        report_charts.lines([held, own], "Gain against the base by step, with its 95 % interval", _percent, base=0.0),
        report_charts.lines([loss], "Held-out loss by step", _short, base=first.base_loss),
        report_charts.lines([drift], "Drift of the base by step", _percent) if drifts else "",
        report_charts.bars(last.base_deciles, last.deciles, f"Held-out loss by noise level at step {last.step}"),
    ]
    summary = escape(sentence(console.gain(last)))
    opening = f"<p>{summary}. The gain is by how much the loss fell; bars are 95 % intervals over pictures.</p>"
    return f'{opening}<div class="charts">{"".join(charts)}</div>{_figures(measured)}{folds}'


def _figures(measured: list[Validated]) -> str:
    """A table of all measurements, folded away; the measurement of the lowest loss is marked."""
    best = min(measured, key=lambda event: event.loss)
    rows = []
    for event in measured:
        cells = (
            str(event.step), f"{event.loss:.4f}", f"{event.gain * 100:.1f} %",
            f"{event.gain_low * 100:.1f} to {event.gain_high * 100:.1f} %", f"{event.share_better * 100:.0f} %",
            "" if event.train_gain is None else f"{event.train_gain * 100:.1f} %",
            "" if event.drift is None else f"{event.drift * 100:.1f} %",
        )  # fmt: skip
        rows.append(f"<tr{' class=best' if event is best else ''}>" + "".join(f"<td>{cell}" for cell in cells))
    heads = "<th>Step<th>Loss<th>Gain<th>95 % interval<th>Pictures better<th>Gain in training<th>Drift"
    table = f'<table class="numbers"><tr>{heads}</tr>{"".join(rows)}</table>'
    return f'<details><summary>The figures</summary><div class="wide">{table}</div></details>'


def _folds(log: list[Event]) -> str:
    lines = [f"Fold {event.fold}: {console.fold(event)}." for event in log if isinstance(event, Folded)]
    return f"<h3>Folds</h3>{bullets(lines)}" if lines else ""


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _short(value: float) -> str:
    return f"{value:.3g}"


def running_mean(log: Sequence[Event], decay: float = USUAL_DECAY) -> list[Point]:
    """The running mean of each step's loss; a step that is in the log twice, as after a stop, counts as it was last.

    It is over about 1 / (1 - decay) steps; a decay of 0 gives each step's own loss.
    """
    # An exponential mean, divided by the sum of its weights, so that the first steps don't pull it towards 0.
    mean, smooth = 0.0, []
    for number, event in enumerate(_steps(log), start=1):
        mean = decay * mean + (1 - decay) * event.loss
        smooth.append((float(event.step), mean / (1 - decay**number)))
    return smooth


def _steps(log: Sequence[Event]) -> list[Step]:
    by_step = {event.step: event for event in log if isinstance(event, Step)}
    return sorted(by_step.values(), key=lambda event: event.step)


def heldout_loss(log: Sequence[Event]) -> list[Point]:
    """The held-out loss at each measured step, which begins with the base's at step 0."""
    by_step = {event.step: event for event in log if isinstance(event, Validated)}
    measured = sorted(by_step.values(), key=lambda event: event.step)
    start = [(0.0, measured[0].base_loss)] if measured else []
    return [*start, *((float(event.step), event.loss) for event in measured)]


def training_loss(log: list[Event], decay: float = USUAL_DECAY, span: Point | None = None) -> str:
    """Each step's loss, pale, under its running mean, and the held-out loss as it was measured, as one chart.

    `span` is the stretch of steps that is shown, all without one.
    """
    each = [(event.step, event.loss) for event in _steps(log)]
    raw = Series("each step", "quiet" if decay else "own", each, dots=False)
    mean = Series("running mean", "own", running_mean(log, decay) if decay else [], dots=False)
    held = Series("held-out", "held", heldout_loss(log))
    return report_charts.lines([raw, mean, held], "Loss by step", _short, span=span)


def mean_steps(decay: float) -> int:
    """Over about how many steps a running mean is."""
    return round(1 / (1 - decay))


def learning_rate(log: list[Event], span: Point | None = None) -> str:
    """The learning rate at each step."""
    rates = sorted({event.step: event.learning_rate for event in log if isinstance(event, Step)}.items())
    line = Series("learning rate", "drift", rates, dots=False)
    return report_charts.lines([line], "Learning rate by step", _short, span=span)


def reach(logs: Sequence[Sequence[Event]]) -> tuple[int, int]:
    """The first and the last step that a chart of these losses shows; (0, 0) without any."""
    # What was measured is shown from step 0 on, where it is the base's.
    firsts, lasts = [], []
    for log in logs:
        steps = [event.step for event in log if isinstance(event, Step | Validated)]
        if steps:
            firsts.append(0 if any(isinstance(event, Validated) for event in log) else min(steps))
            lasts.append(max(steps))
    return (min(firsts), max(lasts)) if lasts else (0, 0)


def loss_and_rate(log: list[Event]) -> str:
    """The loss and the learning rate, side by side."""
    charts = [training_loss(log), learning_rate(log)]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""
