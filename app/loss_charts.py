"""The losses of a run as its chart: each step's, their running mean, what is held out, and the learning rate below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import chart_look, job_progress
from app.chart_look import USUAL, ChartLook, Look
from app.context import Context
from app.job_table import Job
from app.notices import mended
from app.texts import say
from trainer import report
from trainer.events import Event, Step, Validated
from trainer.report import curves


def html(events: list[Event], look: Look = USUAL, key: str = "") -> str:
    """Loss by step with its mean, the held-out loss and the learning rate; "" before there are two steps.

    `key` names the run in a stretch of the look.
    """
    reach = curves.reach([events])
    span = look.span(key, reach)
    charts = [report.training_loss(events, look.decay, span), report.learning_rate(events, span)]
    # A stretch in which there is nothing, as between two parts of a log that was cut.
    if span and not charts[0]:
        return html(events, Look(look.smoothing))
    return chart_look.html(charts, reach, span, _note(events, look))


def signature(events: list[Event], look: Look, key: str) -> tuple[str, object, int]:
    """By which it is seen that the chart is another: a step beyond the stretch that is shown changes nothing."""
    span = look.span(key, curves.reach([events]))
    steps = (event.step for event in events if isinstance(event, Step | Validated))
    num = sum(span is None or event <= span[1] for event in steps)
    return look.smoothing, span, num


def _note(events: list[Event], look: Look) -> str:
    """What is smoothed and what is not."""
    if not look.decay:
        return say("chart.not_smoothed")
    if any(isinstance(event, Validated) for event in events):
        return say("chart.smoothed_but_heldout", num=curves.mean_steps(look.decay))
    return say("chart.smoothed", num=curves.mean_steps(look.decay))


class LossChart:
    """The chart in a training's view, with the fields above it."""

    def __init__(self, context: Context) -> None:
        self.context, self.look = context, ChartLook("loss", "loss")

    def draw(self) -> None:
        """Draw it, unseen until there are steps."""
        self.look.draw()
        self.plot = gr.HTML(js_on_load=chart_look.SCRIPT, visible=False, elem_id="loss")

    def outputs(self) -> list[Any]:
        """Everything that `part` may change."""
        return [self.look.row, self.plot]

    def part(self, job: Job, events: list[Event], look: Look) -> tuple[Any, Callable[[], dict[Any, Any]]]:
        """What the chart depends on, and its update; it is drawn only when a point is new."""
        key = str(job.id)

        def drawn() -> dict[Any, Any]:
            shown = html(events, look, key)
            return {
                self.look.row: gr.update(visible=bool(shown)),
                self.plot: gr.update(value=shown, visible=bool(shown)),
            }

        return (job.id, *signature(events, look, key)), drawn

    def none(self) -> dict[Any, Any]:
        """No chart."""
        return {self.look.row: gr.update(visible=False), self.plot: gr.update(value="", visible=False)}

    def connect(self, job: gr.Dropdown, seen: gr.State, latest: dict[str, Any]) -> None:
        """Answer the fields; `job` holds the chosen job, `seen` what the page was last sent, part by part."""
        given, shown = [job, seen, *self.look.fields()], [*self.outputs(), self.look.stretch, seen]

        def again(chosen: int | None, before: dict[str, Any], look: Look) -> dict[Any, Any]:
            """The chart as it is looked at now, and nothing else of the job."""
            found = next((job for job in self.context.runner.shown() if job.id == chosen), None)
            if found is None:
                return {}
            events, _ = job_progress.run_events(self.context, self.context.runs / found.name)
            depends, change = self.part(found, events, look)
            return change() | {seen: before | {"curve": depends}}

        @mended
        def smooth(chosen: int | None, before: dict[str, Any], smoothing: str, stretch: str) -> Any:
            return again(chosen, before, Look(smoothing, stretch)) or gr.skip()

        @mended
        def zoom(chosen: int | None, before: dict[str, Any], smoothing: str, _: str, event: gr.EventData) -> Any:
            stretch = chart_look.asked(event, str(chosen))
            drawn = again(chosen, before, Look(smoothing, stretch))
            return drawn | {self.look.stretch: stretch} if drawn else gr.skip()

        self.look.smoothing.input(smooth, given, shown, **latest)
        self.plot.zoomed(zoom, given, shown, **latest)
