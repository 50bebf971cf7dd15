"""The queue as a list: what is at work, what waits and in which order, and buttons to change that.

One component for all rows. A button sends the number of the job that its row showed when it was pressed, so that it
acts on that job, whatever has happened to the queue since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app import job_plans, views
from app.context import Context
from app.job_table import Job
from app.job_work import CAPTIONS, REHEARSAL, TRAINING
from app.jobs import LIVE
from app.texts import say, say_num
from trainer.errors import RunError
from trainer.printing import escape

MOST_ROWS = 8
_WORDS = {
    "up": say("button.up"),
    "down": say("button.down"),
    "resume": say("button.resume"),
    "remove": say("button.remove"),
}
_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-act]');
  if (button) trigger('acted', {act: button.dataset.act, job: Number(button.dataset.job)});
});
"""
_KINDS = {TRAINING: say("queue.training"), REHEARSAL: say("queue.rehearsal"), CAPTIONS: say("queue.captions")}
Part = tuple[Any, Callable[[], dict[Any, Any]]]


class QueueView:
    """The queue's rows and their updates."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw the list, hidden while nothing is at work or waits."""
        with gr.Column(visible=False, elem_classes="queue", elem_id="queue") as self.box:
            self.head = gr.HTML(elem_id="queue-head", padding=False)
            self.list = gr.HTML(elem_id="queue-list", js_on_load=_SCRIPT, padding=False)
            self.goes_on = gr.Checkbox(
                False, label=say("queue.goes_on"), info=say("queue.goes_on_help"), visible=False,
                elem_id="queue-goes-on", elem_classes="unkept",
            )  # fmt: skip

    def outputs(self) -> list[Any]:
        """Everything that an update may change."""
        return [self.box, self.head, self.list, self.goes_on]

    def part(self, jobs: Sequence[Job]) -> Part:
        """What the list depends on, and its update; `jobs` are all that are shown anywhere."""
        runner = self.context.runner
        # What is at work, what is paused, then what waits, in its order.
        begun = [job for job in jobs if job.state in LIVE] + [job for job in jobs if job.state == "paused"]
        waiting = [job for job in runner.waiting() if job in jobs]
        listed = [*begun, *waiting]
        with_grid = job_plans.grids_wanted(runner.database) & {job.id for job in listed}
        goes_on = job_plans.goes_on(runner.database)
        signature = [[(job.id, job.state, job.id in with_grid) for job in listed], goes_on]
        return signature, lambda: self._updates(begun, waiting, with_grid, goes_on)

    def _updates(self, begun: list[Job], waiting: list[Job], with_grid: set[int], goes_on: bool) -> dict[Any, Any]:
        listed, can_pause = [*begun, *waiting], any(job.state in ("pausing", "paused") for job in begun)
        is_held = waiting and not goes_on and any(job.state == "paused" for job in begun)
        more = say("queue.not_shown", num=len(listed) - MOST_ROWS) if len(listed) > MOST_ROWS else ""
        count = say_num("queue.wait", len(waiting), more=more) if waiting else say("queue.nothing_waits")
        count += say("queue.for_paused") if is_held else ""
        rows = [_row(job, number - len(begun), waiting, job.id in with_grid) for number, job in enumerate(listed)]
        return {
            self.box: gr.update(visible=bool(listed)),
            self.head: f'<p class="queue-head"><b>{say("queue.queue")}</b> {count}</p>',
            self.list: f"<ol>{''.join(rows[:MOST_ROWS])}</ol>" if rows else "",
            self.goes_on: gr.update(visible=can_pause, value=goes_on),
        }


def acted(event: gr.EventData) -> tuple[str, int]:
    """What a press in the list asks for and of which job. Raises: RunError for what no button of it sends."""
    act, job = getattr(event, "act", None), getattr(event, "job", None)
    if not isinstance(act, str) or act not in _WORDS or not isinstance(job, int) or isinstance(job, bool):
        raise RunError(say("queue.no_button"))
    return act, job


def _row(job: Job, place: int, waiting: list[Job], has_grid: bool) -> str:
    """A job of the list with the buttons that act on it."""
    acts: dict[str, bool] = {}  # and whether it can be pressed
    if job.state == "paused":
        acts = {"resume": True, "remove": True}
    elif job in waiting:
        # Places are changed among jobs of one state: what was begun stays before what is queued.
        alike = [other for other in waiting if other.state == job.state]
        acts = {"up": alike[0] is not job, "down": alike[-1] is not job, "remove": True}
    buttons = "".join(
        f'<button type="button" data-act="{act}" data-job="{job.id}" '
        f'aria-label="{say("queue.act_on", act=_WORDS[act], job=escape(job.name))}"'
        f"{'' if can else ' disabled'}>{_WORDS[act]}</button>"
        for act, can in acts.items()
    )
    return f'<li class="queued">{_line(job, place, has_grid)}<span class="acts">{buttons}</span></li>'


def _line(job: Job, place: int, has_grid: bool) -> str:
    """A job of the list: its place, its name, what kind it is and how it stands."""
    mark = f"{place + 1}." if place >= 0 else "Ⅱ" if job.state == "paused" else "▸"
    kind = _KINDS.get(job.kind, say("queue.batch"))
    doing = say("queue.at_work") if job.state == "running" else views.STATES[job.state].partition(":")[0].lower()
    doing = say("queue.paused") if job.state == "paused" else doing
    words = say("queue.with_grid", kind=kind, doing=doing) if has_grid else say("queue.job", kind=kind, doing=doing)
    return f'<p><span class="place">{mark}</span> <b>{escape(job.name)}</b> <span>{words}</span></p>'
