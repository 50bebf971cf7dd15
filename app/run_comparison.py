"""Runs beside each other: their losses in one chart, the settings that differ, and their last previews.

Drawn here as HTML, in as many points as a screen shows, so that the longest runs cost a page no more than short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import chart_look, preview_strip
from app.chart_look import ChartLook, Look
from app.context import Context
from app.form_words import labels
from app.notices import mended
from app.texts import say
from trainer import file_names, runs
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.events import Event, Sampled, Step, Validated
from trainer.printing import escape, plain
from trainer.report import curves, svg_charts
from trainer.report.settings_table import rows
from trainer.report.svg_charts import Series

MOST = 4  # runs at once; as many colours there are in styles/charts.css
_MOST_OFFERED = 200
_MOST_PROMPTS = 6
_POINTS = 400  # after as many parts of a run its curve is drawn anew
_EMPTY = f'<p class="quietly">{say("compare.choose")}</p>'


@dataclass(frozen=True)
class _Run:
    """A run that is compared, and the class of its colour."""

    name: str
    style: str
    folder: Path
    events: list[Event]
    config: TrainConfig | None


class RunComparison:
    """The folded part of the Train tab, and what is new in it."""

    def __init__(self, context: Context) -> None:
        self.context, self.look = context, ChartLook("compare", "comparison-chart")

    def draw(self) -> None:
        with gr.Accordion(say("compare.title"), open=False, elem_id="run-comparison"):
            self.chosen = gr.Dropdown(
                [], value=[], multiselect=True, max_choices=MOST, label=say("library.runs"), interactive=True,
                elem_id="compare-runs", elem_classes="unkept",
            )  # fmt: skip
            self.look.draw(kept=False)
            with gr.Column(elem_id="comparison"):
                self.chart = gr.HTML(js_on_load=chart_look.SCRIPT, visible=False, elem_id="comparison-chart")
                self.view = gr.HTML(_EMPTY, elem_id="comparison-rest")

    def inputs(self) -> list[Any]:
        """What `news` is told of: the runs, and how their chart is looked at."""
        return [self.chosen, *self.look.fields()]

    def outputs(self) -> list[Any]:
        return [self.chosen, self.look.row, self.chart, self.look.stretch, self.view]

    def connect(self, seen: gr.State, compare: Callable[..., Any], latest: dict[str, Any]) -> None:
        """Answer what is chosen with `compare`, which is given what was `seen` and the inputs."""
        given, shown = [seen, *self.inputs()], [*self.outputs(), seen]

        @mended
        def zoom(before: dict[str, Any], chosen: list[str] | None, smoothing: str, _: str, event: gr.EventData) -> Any:
            stretch = chart_look.asked(event, chart_look.key_of(self._wanted(chosen)))
            updates = compare(before, chosen, smoothing, stretch)
            return updates | {self.look.stretch: stretch} if seen in updates else updates

        self.chosen.change(compare, given, shown, **latest | {"queue": True})
        self.look.smoothing.input(compare, given, shown, **latest)
        self.chart.zoomed(zoom, given, shown, **latest)

    def _wanted(self, chosen: Sequence[str] | None) -> list[str]:
        """Of what was chosen the runs that are here."""
        offered = names(self.context)
        return [name for name in dict.fromkeys(chosen or []) if name in offered][:MOST]

    def news(self, chosen: Sequence[str] | None, before: Any, look: Look) -> tuple[Any, dict[Any, Any]]:
        """What it depends on now, and the updates of what changed since it depended on `before`."""
        offered = names(self.context)
        wanted = [name for name in dict.fromkeys(chosen or []) if name in offered][:MOST]
        after = (offered, [(name, _progress(self._events(name))) for name in wanted], (look.smoothing, look.stretch))
        offered_before, shown_before, look_before = before or (None, [], ())
        updates: dict[Any, Any] = {}
        if offered != offered_before:
            # A run that is gone can't stay chosen, or Gradio refuses every event that has the list.
            value = {"value": wanted} if wanted != list(chosen or []) else {}
            updates[self.chosen] = gr.update(choices=[(plain(name, 120), name) for name in offered], **value)
        if after[1] != shown_before:
            updates[self.view] = html(self.context, wanted)
        if after[1:] != (shown_before, look_before):
            chart = chart_html([self._run(name, number) for number, name in enumerate(wanted, start=1)], look)
            updates[self.chart] = gr.update(value=chart, visible=bool(chart))
            updates[self.look.row] = gr.update(visible="zoomable" in chart)
        return after, updates

    def _run(self, name: str, number: int) -> _Run:
        return _Run(name, f"run-{number}", self.context.runs / name, self._events(name), None)

    def _events(self, name: str) -> list[Event]:
        return self.context.logs.read(self.context.runs / name / file_names.EVENTS)


def names(context: Context) -> list[str]:
    """The runs of the workspace that have begun, the newest first."""
    begun = []
    with suppress(OSError):
        for folder in context.runs.iterdir():
            with suppress(OSError):
                if folder.name.startswith(".") or folder.is_symlink() or not (folder / file_names.EVENTS).is_file():
                    continue
                # By the time of its settings, as its log changes with each step.
                settings = folder / file_names.CONFIG
                begun.append((-settings.stat().st_mtime if settings.is_file() else 0.0, folder.name))
    return [name for _, name in sorted(begun)][:_MOST_OFFERED]


def _progress(events: Sequence[Event]) -> tuple[int, int]:
    """By which it is seen that a curve has visibly grown, or that there is a new preview."""
    num_points = sum(isinstance(event, Step | Validated) for event in events)
    return num_points // max(num_points // _POINTS, 1), sum(isinstance(event, Sampled) for event in events)


def html(context: Context, chosen: Sequence[str]) -> str:
    """These runs of the workspace, compared."""
    compared = []
    for number, name in enumerate(chosen[:MOST], start=1):
        folder = context.runs / name
        events = context.logs.read(folder / file_names.EVENTS)
        compared.append(_Run(name, f"run-{number}", folder, events, _settings(folder)))
    if not compared:
        return _EMPTY
    hint = _EMPTY if len(compared) == 1 else ""
    return f'<div class="comparison">{hint}{_table(compared)}{_previews(context, compared)}</div>'


def _settings(folder: Path) -> TrainConfig | None:
    try:
        return runs.Run(folder).config()
    except (UserError, OSError):
        return None


def chart_html(compared: Sequence[_Run], look: Look) -> str:
    """The running means of the training losses, and the held-out losses dashed; "" for no runs."""
    if not compared:
        return ""
    reach = curves.reach([run.events for run in compared])
    span = look.span(chart_look.key_of([run.name for run in compared]), reach)
    series = []
    for run in compared:
        series.append(Series(plain(run.name, 80), run.style, curves.running_mean(run.events, look.decay), dots=False))
        series.append(Series("", f"{run.style} dashed", curves.heldout_loss(run.events)))
    chart = svg_charts.lines(series, say("compare.chart"), lambda value: f"{value:.3g}", span=span)
    if not chart:
        return (
            chart_html(compared, Look(look.smoothing)) if span else f'<p class="quietly">{say("compare.no_steps")}</p>'
        )
    num = curves.mean_steps(look.decay)
    mean = say("compare.mean", num=num) if look.decay else say("compare.each_step")
    is_held = any(line.points for line in series[1::2])
    words = say("compare.losses_and_heldout", mean=mean) if is_held else say("compare.losses", mean=mean)
    return f'<div class="comparison">{chart_look.html([chart], reach, span, words)}</div>'


# Settings.


def _table(compared: Sequence[_Run]) -> str:
    """The settings that are not the same in all, in the form's words."""
    known = [run for run in compared if run.config is not None]
    unread = [run for run in compared if run.config is None]
    note = "".join(f'<p class="quietly">{say("compare.unreadable", run=escape(run.name, 80))}</p>' for run in unread)
    if len(known) < 2:
        return note
    # A row for each setting that is not the same in all; a run that lacks it has none there.
    values = [{key: (label, value) for key, label, value, _ in rows(run.config)} for run in known]
    lines = []
    for key in dict.fromkeys(key for settings in values for key in settings):
        of_each = [settings[key][1] if key in settings else None for settings in values]
        if len(set(of_each)) > 1:
            label = labels().get(key) or next(settings[key][0] for settings in values if key in settings)
            cells = "".join(f"<td>{_said(value)}</td>" for value in of_each)
            lines.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    if not lines:
        return f'<p class="quietly">{say("compare.same_settings")}</p>{note}'
    heads = "".join(f"<th>{_named(run)}</th>" for run in known)
    return (
        f'<h4>{say("compare.differ")}</h4><div class="table-view"><table><tr><th></th>{heads}</tr>{"".join(lines)}'
        f"</table></div>{note}"
    )


def _said(value: str | None) -> str:
    """A setting's value; of a path the last name alone, as where things lie is nobody's business."""
    if value is None:
        return "–"
    lines = [Path(line).name if Path(line).is_absolute() else line for line in value.split("\n")]
    words = [{"True": say("word.on"), "False": say("word.off")}.get(line, line) for line in lines if line]
    return "<br>".join(escape(word, 200) for word in words[:8]) or "–"


def _named(run: _Run) -> str:
    return f'<i class="{run.style}"></i>{escape(run.name, 80)}'


# Previews.


def _previews(context: Context, compared: Sequence[_Run]) -> str:
    """The last preview of each run for every prompt and seed that at least two of them draw."""
    # Pictures of other seeds are no comparison.
    by_prompt: dict[tuple[str, int, int | None], list[tuple[_Run, preview_strip.Preview]]] = {}
    for run in compared:
        seed = run.config.preview.seed if run.config else None
        for strip in preview_strip.strips(run.folder, run.events):
            by_prompt.setdefault((strip.prompt, strip.turn, seed), []).append((run, strip.previews[-1]))
    shared = [(key[0], shown) for key, shown in by_prompt.items() if len(shown) > 1]
    if not shared:
        none = f'<p class="quietly">{say("compare.no_preview")}</p>'
        return none if len(compared) > 1 else ""
    parts = []
    for prompt, shown in shared[:_MOST_PROMPTS]:
        figures = "".join(
            f'<figure class="frame">{picture}<figcaption>{_named(run)}<br>'
            f"{say('run.at_step', step=preview.event.step)}</figcaption></figure>"
            for run, preview in shown
            if (picture := preview_strip.link(context, preview, plain(run.name, 80)))
        )
        parts.append(f'<section class="strip"><h4><span>{escape(prompt, 300)}</span></h4>')
        parts.append(f'<div class="frames">{figures}</div></section>')
    more = len(shared) - _MOST_PROMPTS
    hidden = f'<p class="between">{say("run.more_prompts", num=more)}</p>' if more > 0 else ""
    return f'<h4>{say("compare.last_previews")}</h4><div class="strips viewing">{"".join(parts)}{hidden}</div>'
