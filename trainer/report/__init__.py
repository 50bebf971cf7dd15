"""`report.html` of a run: how it went, which file to use and why, what to do next. One file, no script, no network.

It is written from what the run's folder holds, whole or not: also a run that failed, was stopped or is at work has one,
and a log that was cut short or edited leaves out what can't be shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer import console, files
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.events import (
    Adjusted,
    Event,
    Failed,
    Finished,
    Overtrained,
    Planned,
    Recommended,
    Sampled,
    Started,
    Step,
    Stopped,
    Warned,
    last,
)  # fmt: skip
from trainer.printing import escape
from trainer.report import beside_card, compared, curves
from trainer.report import pictures as report_pictures
from trainer.report.advising import advice
from trainer.report.curves import learning_rate, training_loss
from trainer.report.html import bullets, section, sentence
from trainer.report.plausible import plausible
from trainer.report.settings_table import settings
from trainer.runs import Run

if TYPE_CHECKING:
    from trainer.data import Dataset

__all__ = ["learning_rate", "training_loss", "write"]

_CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
_MAX_NOTES, _NOTE_CHARS = 100, 4000
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def write(run: Run, dataset: Dataset | None = None, ends: Event | None = None) -> None:
    """Write the report of what the run's folder holds now, of how it `ends`, and of the `dataset` if it is given."""
    # What there is to tell.
    log, config = plausible([*run.events(), *([ends] if ends else [])]), _config(run)
    plan = last(log, Planned)
    trained_on = [report_pictures.plan_table(plan)] if plan else []
    trained_on += [report_pictures.dataset_table(dataset, config, plan)] if dataset else []
    previews = report_pictures.strips(run.folder, [event for event in log if isinstance(event, Sampled)])
    parts = [
        f"<header><h1>{escape(run.name)}</h1>{_outcome(log, config)}</header>",
        _use(log),
        section("What to do next", bullets([rule.text for rule in advice(log, config)])),
        section("Against the old one", compared.html(run.folder)),
        section("On pictures it never saw", curves.heldout(log)),
        section("Beside the card and what was predicted", beside_card.html(run.folder, log)),
        section("Training loss", curves.loss_and_rate(log)),
        section("Previews", previews),
        section("What it was trained on", "".join(trained_on)),
        section("Notes", bullets(_notes(log))),
        section("Settings", settings(run, config)),
    ]

    # The page, which may load nothing and run nothing.
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(run.name)}</title><style>\n{_CSS}</style>'
    )
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'
    page = _without_places(page, run, config)
    files.write(run.report_file, page.encode("utf-8", "replace"))


def _without_places(page: str, run: Run, config: TrainConfig | None) -> str:
    """The page with folders and files of this machine by their last names only.

    A report is sent on, and where things lie here is nobody else's business.
    """
    # Every place that the settings name, spelled as it stands and resolved.
    places = {run.folder, run.folder.parent, Path.home()}
    if config:
        data, adapters = config.data, config.against.adapters
        without_weights = [line.rpartition(":")[0] or line for line in adapters]
        named = (data.folder, data.heldout, data.regularisation, data.mask_folder, config.base)
        places |= {Path(value) for value in (*named, *adapters, *without_weights) if value}
    names = {
        text: path.name
        for path in places
        if path.is_absolute()
        for text in (str(path), str(path.resolve()))
        if len(path.parts) > 1
    }

    # The longest first: a folder's own path is the beginning of those inside it.
    for text in sorted(names, key=len, reverse=True):
        page = page.replace(escape(text), escape(names[text]))
    return page


def _config(run: Run) -> TrainConfig | None:
    """The run's settings, None where they can't be read."""
    try:
        return run.config()
    except (UserError, OSError):
        return None


def _outcome(log: list[Event], config: TrainConfig | None) -> str:
    """How it ended, and what it was, in two lines."""
    end = next((event for event in reversed(log) if isinstance(event, Finished | Stopped | Failed)), None)
    started, step = last(log, Started), last(log, Step)

    # How far it came, and how it ended.
    progress = "no step yet"
    if step:
        progress = f"{step.step} of {started.max_steps} steps" if started else f"{step.step} steps"
    match end:
        case Finished():
            outcome = (
                f"Finished: {end.step} steps in {console.duration(end.seconds)}. The file was opened again and "
                f"compared; its update has length {end.adapter_norm:.3g}."
            )
            if end.peak_memory_bytes > 0:
                outcome += f" It took at most {console.memory(end.peak_memory_bytes)} of memory."
        case Stopped():
            outcome = f"Stopped on request after step {end.step}; it can go on from there."
        case Failed():
            outcome = f"Failed after {progress}: {end.message[:_NOTE_CHARS]}"
        case _:
            outcome = f"Not finished: {progress}."

    # What was trained, on what.
    facts = []
    if started:
        facts.append(f"{started.num_pictures} pictures")
        facts += [f"{started.num_heldout} held out"] if started.num_heldout else []
        facts += [f"base {started.base}", f"{started.num_trainable:,} parameters", f"{started.device}, {started.dtype}"]
    if config:
        facts.append(config.adapter.method)
    style = ' class="bad"' if isinstance(end, Failed) else ""
    return f'<p{style}>{escape(outcome)}</p><p class="facts">{escape(" · ".join(facts))}</p>'


def _use(log: list[Event]) -> str:
    """Which file to use and why; the alarm, if it was raised."""
    best, alarm, done = last(log, Recommended), last(log, Overtrained), last(log, Finished)
    boxes = []
    if best:
        title = f"Use step {best.step}: <code>{escape(best.file)}</code>"
        boxes.append(_box("good", title, escape(sentence(best.reason))))
    elif done:
        reason = "It is the last step; nothing was measured that would say more."
        boxes.append(_box("", f"The file: <code>{escape(done.file)}</code>", reason))
    if alarm:
        title = f"It over-trains from step {alarm.best_step} on"
        boxes.append(_box("bad", title, escape(sentence(alarm.message))))
    return "".join(boxes)


def _box(kind: str, title: str, text: str) -> str:
    return f'<div class="{f"box {kind}".strip()}"><h2>{title}</h2><p>{text}</p></div>'


def _notes(log: list[Event]) -> list[str]:
    """The warnings and the changes of settings, each once; the first hundred."""
    lines = [
        f"At step {event.step} memory ran out; from there on {event.message}."
        if isinstance(event, Adjusted)
        else event.message
        for event in log
        if isinstance(event, Warned | Adjusted)
    ]
    return [line[:_NOTE_CHARS] for line in dict.fromkeys(lines)][:_MAX_NOTES]
