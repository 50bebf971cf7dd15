"""`report.html` of a run: how it went, which file to use and why, what to do next. One file, no script, no network.

It is written from what the run's folder holds, whole or not: also a run that failed, was stopped or is at work has one,
and a log that was cut short or edited leaves out what can't be shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

from trainer import console, files
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.events import (
    Adjusted,
    Event,
    Failed,
    Finished,
    Folded,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Started,
    Step,
    Stopped,
    Validated,
    Warned,
)
from trainer.printing import escape
from trainer.report import charts as report_charts
from trainer.report import pictures as report_pictures
from trainer.report.advising import advice
from trainer.report.charts import Series
from trainer.report.plausible import plausible
from trainer.report.style import STYLE
from trainer.runs import Run

if TYPE_CHECKING:
    from trainer.data import Dataset

_SMOOTHING = 0.95
_MAX_NOTES, _NOTE_CHARS = 100, 4000
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PLACE = re.compile(r"""(["'])((?:/|~|[A-Za-z]:[\\/]|\\\\)[^"'\n]{1,4000})""")  # a path in a file that is shown as it stands
_E = TypeVar("_E")


def write(run: Run, dataset: Dataset | None = None, ends: Event | None = None) -> None:
    """Write the report of what the run's folder holds now, and of how it `ends`; with the `dataset` also what it trained on."""
    log, config = plausible([*run.events(), *([ends] if ends else [])]), _config(run)
    plan = _last(log, Planned)
    trained_on = [report_pictures.plan_table(plan)] if plan else []
    trained_on += [report_pictures.dataset_table(dataset, config, plan)] if dataset else []
    parts = [
        f"<header><h1>{escape(run.name)}</h1>{_outcome(log, config)}</header>",
        _use(log),
        _section("What to do next", _list(advice(log, config))),
        _section("On pictures it never saw", _heldout(log)),
        _section("Training loss", _loss(log)),
        _section("Previews", report_pictures.strips(run.folder, [event for event in log if isinstance(event, Sampled)])),
        _section("What it was trained on", "".join(trained_on)),
        _section("Notes", _list(_notes(log))),
        _section("Settings", _settings(run, config)),
    ]
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}"><meta name="viewport" content="width=device-width">'
    page = f'<!doctype html><html lang="en"><head>{head}<title>{escape(run.name)}</title><style>{STYLE}</style></head><body>{"".join(parts)}</body></html>'
    page = _without_places(page, run, config)
    files.write(run.report_file, page.encode("utf-8", "replace"))


def _without_places(page: str, run: Run, config: TrainConfig | None) -> str:
    """The page with the last names only of folders and files of this machine, which are nobody else's business: a report is sent on."""
    places = {run.folder, run.folder.parent, Path.home()}
    if config:
        lines = [line.rpartition(":")[0] or line for line in config.against.adapters]
        data = config.data
        places |= {
            Path(value) for value in (data.folder, data.heldout, data.regularisation, data.mask_folder, config.base, *config.against.adapters, *lines) if value
        }
    spelled = {text: path.name for path in places if path.is_absolute() for text in (str(path), str(path.resolve())) if len(path.parts) > 1}
    for text in sorted(spelled, key=len, reverse=True):
        page = page.replace(escape(text), escape(spelled[text]))
    return page


def _config(run: Run) -> TrainConfig | None:
    """The run's settings, None where they can't be read."""
    try:
        return run.config()
    except (UserError, OSError):
        return None


def _last(log: list[Event], kind: type[_E]) -> _E | None:
    return next((event for event in reversed(log) if isinstance(event, kind)), None)


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>" if inside else ""


def _list(lines: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}' for line in lines)}</ul>" if lines else ""


def _outcome(log: list[Event], config: TrainConfig | None) -> str:
    """How it ended, and what it was, in two lines."""
    end, started, step = next((event for event in reversed(log) if isinstance(event, Finished | Stopped | Failed)), None), _last(log, Started), _last(log, Step)
    at = f"{step.step} of {started.max_steps} steps" if step and started else f"{step.step} steps" if step else "no step yet"
    match end:
        case Finished():
            said = (
                f"Finished: {end.step} steps in {_duration(end.seconds)}. The file was opened again and compared; its update has length {end.adapter_norm:.3g}."
            )
            said += f" It took at most {console.memory(end.peak_memory_bytes)} of memory." if end.peak_memory_bytes > 0 else ""
        case Stopped():
            said = f"Stopped on request after step {end.step}; it can go on from there."
        case Failed():
            said = f"Failed after {at}: {end.message[:_NOTE_CHARS]}"
        case _:
            said = f"Not finished: {at}."
    facts = []
    if started:
        facts = [f"{started.num_pictures} pictures", *([f"{started.num_heldout} held out"] if started.num_heldout else [])]
        facts += [f"base {started.base}", f"{started.num_trainable:,} parameters", f"{started.device}, {started.dtype}"]
    if config:
        facts.append(config.adapter.method)
    style = ' class="bad"' if isinstance(end, Failed) else ""
    return f'<p{style}>{escape(said)}</p><p class="facts">{escape(" · ".join(facts))}</p>'


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _use(log: list[Event]) -> str:
    """Which file to use and why; the alarm, if it was raised."""
    found, alarm, done = _last(log, Recommended), _last(log, Overtrained), _last(log, Finished)
    boxes = []
    if found:
        boxes.append(f'<div class="box good"><h2>Use step {found.step}: <code>{escape(found.file)}</code></h2><p>{escape(_sentence(found.reason))}</p></div>')
    elif done:
        boxes.append(
            f'<div class="box"><h2>The file: <code>{escape(done.file)}</code></h2><p>It is the last step; nothing was measured that would say more.</p></div>'
        )
    if alarm:
        boxes.append(f'<div class="box bad"><h2>It over-trains from step {alarm.best_step} on</h2><p>{escape(_sentence(alarm.message))}</p></div>')
    return "".join(boxes)


def _sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _heldout(log: list[Event]) -> str:
    """The gain with its interval beside the gain on training pictures, the drift, the tenths of the schedule and the figures."""
    measured, folds = sorted((event for event in log if isinstance(event, Validated)), key=lambda event: event.step), _folds(log)
    if not measured:
        return folds
    held = Series(
        "held-out pictures", "held", [(0, 0.0), *((event.step, event.gain) for event in measured)],
        [0.0, *(event.gain_low for event in measured)], [0.0, *(event.gain_high for event in measured)],
    )  # fmt: skip
    own = Series("training pictures", "own", [(event.step, event.train_gain) for event in measured if event.train_gain is not None])
    drift = Series("drift on neutral prompts", "drift", [(0, 0.0), *((event.step, event.drift) for event in measured if event.drift is not None)])
    loss = Series(
        "held-out loss", "held", [(0, measured[0].base_loss), *((event.step, event.loss) for event in measured)],
        [measured[0].base_loss, *(event.base_loss * (1 - event.gain_high) for event in measured)],
        [measured[0].base_loss, *(event.base_loss * (1 - event.gain_low) for event in measured)],
    )  # fmt: skip
    charts = [
        report_charts.lines([held, own], "Gain against the base by step, with its 95 % interval", _percent, base=0.0),
        report_charts.lines([loss], "Held-out loss by step", _short, base=measured[0].base_loss),
        report_charts.lines([drift], "Drift of the base by step", _percent) if len(drift.points) > 1 else "",
        report_charts.bars(measured[-1].base_deciles, measured[-1].deciles, f"Held-out loss by noise level at step {measured[-1].step}"),
    ]
    said = f"<p>{escape(_sentence(console.gain(measured[-1])))}. The gain is by how much the loss fell; bars are 95 % intervals over pictures.</p>"
    return f'{said}<div class="charts">{"".join(charts)}</div>{_figures(measured)}{folds}'


def _figures(measured: list[Validated]) -> str:
    best = min(measured, key=lambda event: event.loss)
    rows = "".join(
        f"<tr{' class=best' if event is best else ''}><td>{event.step}<td>{event.loss:.4f}<td>{event.gain * 100:.1f} %"
        f"<td>{event.gain_low * 100:.1f} to {event.gain_high * 100:.1f} %<td>{event.share_better * 100:.0f} %"
        f"<td>{'' if event.train_gain is None else f'{event.train_gain * 100:.1f} %'}<td>{'' if event.drift is None else f'{event.drift * 100:.1f} %'}"
        for event in measured
    )
    heads = "<th>Step<th>Loss<th>Gain<th>95 % interval<th>Pictures better<th>Gain in training<th>Drift"
    return f'<details><summary>The figures</summary><div class="wide"><table class="numbers"><tr>{heads}</tr>{rows}</table></div></details>'


def _folds(log: list[Event]) -> str:
    lines = [f"Fold {event.fold}: {console.fold(event)}." for event in log if isinstance(event, Folded)]
    return f"<h3>Folds</h3>{_list(lines)}" if lines else ""


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _short(value: float) -> str:
    return f"{value:.3g}"


def training_loss(log: list[Event]) -> str:
    """Each step's loss, pale, under its running mean, and the held-out loss, as one chart; a step said twice counts as last said."""
    steps = list({event.step: event for event in log if isinstance(event, Step)}.values())
    steps.sort(key=lambda event: event.step)
    mean, smooth = 0.0, []
    for number, event in enumerate(steps, start=1):
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * event.loss
        smooth.append((float(event.step), mean / (1 - _SMOOTHING**number)))
    raw = Series("each step", "quiet", [(event.step, event.loss) for event in steps], dots=False)
    measured = sorted({event.step: event for event in log if isinstance(event, Validated)}.values(), key=lambda event: event.step)
    held = Series("held-out", "held", [(0, measured[0].base_loss), *((event.step, event.loss) for event in measured)] if measured else [])
    return report_charts.lines([raw, Series("running mean", "own", smooth, dots=False), held], "Loss by step", _short)


def _loss(log: list[Event]) -> str:
    """The loss and the learning rate, side by side."""
    rates = sorted({event.step: event.learning_rate for event in log if isinstance(event, Step)}.items())
    charts = [training_loss(log), report_charts.lines([Series("learning rate", "drift", rates, dots=False)], "Learning rate by step", _short)]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _notes(log: list[Event]) -> list[str]:
    said = [
        f"At step {event.step} memory ran out; from there on {event.message}." if isinstance(event, Adjusted) else event.message
        for event in log
        if isinstance(event, Warned | Adjusted)
    ]
    return [line[:_NOTE_CHARS] for line in dict.fromkeys(said)][:_MAX_NOTES]


def _settings(run: Run, config: TrainConfig | None) -> str:
    """What differs from the defaults, then everything; the bare file if it can't be read."""
    if config is None:
        try:
            text = run.config_file.read_bytes()[:100_000].decode("utf-8", "replace")
        except OSError:
            return ""
        return f"<pre>{escape(_PLACE.sub(lambda place: place[1] + PurePath(place[2]).name, text))}</pre>"
    rows = list(_rows(config))
    changed = [row for row in rows if row[3] is not None and row[2] != row[3]]
    return (
        f"<p>{len(changed)} of {len(rows)} differ from the defaults:</p>{_table(changed, with_default=True)}"
        f"<details><summary>All settings</summary>{_table(rows, with_default=False)}</details>"
    )


def _rows(group: Any, prefix: str = "") -> Iterator[tuple[str, str, str, str | None]]:
    """`(key, label, value, default)` of every setting; a setting without default counts as changed."""
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if hasattr(type(value), "model_fields"):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.title or name, _said(value), "" if field.is_required() else _said(field.default)


def _said(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else f"{value:g}" if isinstance(value, float) else str(value)


def _table(rows: list[tuple[str, str, str, str | None]], with_default: bool) -> str:
    """The settings as a table."""
    cells = []
    for key, label, value, default in rows:
        before = f'<td class="quietly">{_lines(default)}' if with_default else ""
        cells.append(f'<tr><td>{escape(label)}<td><code>{escape(key)}</code><td class="words">{_lines(value)}{before}')
    return f'<div class="wide"><table><tr><th>Setting<th>Key<th>Value{"<th>Default" if with_default else ""}</tr>{"".join(cells)}</table></div>'


def _lines(text: str | None) -> str:
    return escape(text or "").replace("\n", "<br>") or "–"
