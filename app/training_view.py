"""The job half of the Train tab: which training is shown, how far it is, its charts, previews, files and messages.

All of it comes from the job table and the run's log, so a reload, a second tab or a new server shows the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app import card_view, job_acts, job_progress, preview_strip, rehearsal_settings, views
from app.chart_look import USUAL, Look
from app.context import Context, Refresh
from app.job_table import Job
from app.job_work import REHEARSAL, TRAINING
from app.jobs import LIVE, RESUMABLE, WAITING
from app.loss_charts import LossChart
from app.notices import mended, tell
from app.queue_view import QueueView, acted
from app.run_comparison import RunComparison
from app.run_onward import RunOnward
from app.texts import say
from app.verdict_view import VerdictView
from trainer import runs
from trainer.config import TrainConfig
from trainer.errors import UserError
from trainer.events import Event, Finished, Recommended

_ADVISED = "element.addEventListener('click', event => { if (event.target.closest('.cure')) trigger('advised'); });"
Part = tuple[Any, Callable[[], dict[Any, Any]]]  # what a part of the view depends on, and its update
Parts = dict[str, Part]


class TrainingView:
    """The components of the job half and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.queue, self.comparison = QueueView(context), RunComparison(context)
        self.onward, self.verdict = RunOnward(context), VerdictView(context)
        self.loss = LossChart(context)
        self.seen = gr.State({})  # what this page was last sent: part -> what the part depended on
        self.form = gr.State(None)  # what the form beside it asks for (`rehearsal_settings`); None before it was read

    def draw_rehearsal(self) -> None:
        """Draw what a rehearsal said, which stands beside the settings."""
        self.rehearsal = gr.HTML(visible=False, elem_id="rehearsal")
        self.adopt = gr.Button(say("train.use_these"), visible=False, elem_id="use-suggested")

    def draw(self) -> None:
        """Draw the job's own column."""
        # How far it is, and what to do with it.
        self.job = gr.Dropdown([], label=say("train.job"), interactive=True, elem_id="job")
        self.progress = gr.HTML(views.NOTHING_YET, elem_id="progress")
        self.plan = gr.HTML(visible=False, elem_id="plan")
        self.notices = gr.HTML(visible=False, elem_id="notices")
        self.verdict.draw()
        self.recommendation = gr.HTML(js_on_load=_ADVISED, visible=False, elem_id="recommendation")
        self.wanted = gr.Textbox(visible=False, elem_classes="unkept")  # what `use` opens, as `open_in_tab` takes it
        # What to do with what came of it.
        with gr.Row():
            self.use = gr.Button(
                say("train.use_in_stack"), variant="primary", visible=False, min_width=110, elem_id="use-in-stack"
            )
            hidden: dict[str, Any] = {"visible": False, "size": "md", "min_width": 110}
            self.downloads = [
                gr.DownloadButton(label, elem_id=f"download-{name}", **hidden)
                for name, label in (
                    ("best", say("train.download_best")),
                    ("last", say("train.download_last")),
                    ("report", say("train.download_report")),
                )
            ]
        # What to do with the job.
        with gr.Row():
            small: dict[str, Any] = {"interactive": False, "size": "md", "min_width": 90, "elem_classes": "one-line"}
            self.stop = gr.Button(say("train.stop_and_save"), variant="stop", elem_id="stop-training", **small)
            self.pause = gr.Button(say("train.pause"), elem_id="pause-training", **small)
            self.preview = gr.Button(say("train.preview"), elem_id="preview-training", **small)
            self.resume = gr.Button(say("button.resume"), elem_id="resume-training", **small)
            self.duplicate = gr.Button(say("train.duplicate"), elem_id="duplicate-training", **small)
            self.remove = gr.Button(say("button.remove"), elem_id="remove-training", **small)
        self.queue.draw()
        self.onward.draw()

        # What came of it so far, pictures first.
        self.pictures = gr.HTML(js_on_load=preview_strip.JS_ON_LOAD, visible=False, elem_id="samples")
        self.loss.draw()
        self.heldout_plot = gr.HTML(visible=False, elem_id="heldout-plot")
        self.result = gr.Textbox(
            label=say("measured.result"),
            lines=2,
            max_lines=4,
            interactive=False,
            visible=False,
            elem_id="heldout-result",
        )
        self.comparison.draw()
        self.log = gr.Textbox(label=say("train.messages"), lines=4, max_lines=10, interactive=False, elem_id="messages")

    def outputs(self) -> list[Any]:
        """Everything that `changes` may change."""
        return [
            self.job, self.progress, self.plan, self.notices, self.stop, self.pause, self.resume, self.preview,
            self.duplicate, self.remove, *self.onward.outputs(), *self.verdict.outputs(),
            *self.loss.outputs(), self.heldout_plot, self.result, self.recommendation, self.use, self.wanted,
            *self.downloads, self.pictures, self.log,
            self.rehearsal, self.adopt, self.seen, *self.queue.outputs(),
        ]  # fmt: skip

    def opens(self) -> list[tuple[Any, Any]]:
        """The buttons that lead to Stack, each with the box that says what it opens."""
        return [(self.use, self.wanted), (self.verdict.button, self.verdict.wanted)]

    def connect(self) -> None:
        """Answer the buttons; call once when all is drawn."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # What every answer draws the chart by comes last.
        look, outputs = self.loss.look.fields(), self.outputs()
        for button, act in (
            (self.stop, self.stop_one), (self.pause, self.pause_one), (self.resume, self.resume_one),
            (self.duplicate, self.duplicate_one), (self.remove, self.remove_one),
        ):  # fmt: skip
            button.click(act, [self.job, *look], outputs, **still)
        self.preview.click(self.preview_one, self.job, None, **still)
        self.onward.extend.click(self.extend_one, [self.job, self.onward.steps, *look], outputs, **still)
        self.queue.goes_on.input(self.let_queue_go_on, [self.queue.goes_on, self.job, *look], outputs, **still)
        self.queue.list.acted(
            self.act_on_queue, [self.job, *look], outputs, trigger_mode="multiple", concurrency_id="queue-list",
            concurrency_limit=1, **still,
        )  # fmt: skip
        self.job.input(self.show_job, [self.job, *look], outputs, **still)

        # How the charts are looked at.
        latest = still | {"trigger_mode": "always_last", "queue": False}
        self.loss.connect(self.job, self.seen, latest)
        self.comparison.connect(self.seen, self.compare, latest)

    def look(self) -> Refresh:
        """What is asked for whenever something about the jobs is new."""
        inputs = [self.job, self.seen, self.form, *self.loss.look.fields(), *self.comparison.inputs()]
        return Refresh(self.poll, inputs, [*self.outputs(), *self.comparison.outputs()])

    @mended
    def poll(
        self, chosen: int | None, before: dict[str, Any], form: rehearsal_settings.Asked | None = None, *looks: Any
    ) -> Any:
        """What is new; `looks` are how the loss is looked at, and what is compared and how."""
        updates = self.changes(chosen, before, form, Look(*looks[:2]))
        return updates | self._compared(updates.get(self.seen, before), *looks[2:]) or gr.skip()

    @mended
    def compare(self, before: dict[str, Any], *compared: Any) -> Any:
        return self._compared(before, *compared) or gr.skip()

    def _compared(self, before: dict[str, Any], chosen: list[str] | None = None, *look: str) -> dict[Any, Any]:
        """Updates of the runs that are compared."""
        after, updates = self.comparison.news(chosen, before.get("comparison"), Look(*look))
        return updates | {self.seen: before | {"comparison": after}} if after != before.get("comparison") else {}

    @mended
    def show_job(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        # As though nothing had been sent: all of the job's parts, here and after every button.
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def stop_one(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        self.context.runner.stop(chosen or 0)
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def pause_one(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        self.context.runner.pause(chosen or 0)
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def let_queue_go_on(self, wanted: bool, chosen: int | None, *look: str) -> dict[Any, Any]:
        self.context.runner.let_go_on(wanted is True)
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def extend_one(self, chosen: int | None, steps: float | None, *look: str) -> dict[Any, Any]:
        at = job_acts.extend(self.context, chosen or 0, steps)
        tell(say("run.goes_on_to", name=self.context.runner.get(chosen or 0).name, steps=at))
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def resume_one(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        job_acts.resume(self.context, chosen or 0)
        return self.changes(chosen, {}, look=Look(*look))

    @mended
    def preview_one(self, chosen: int | None) -> None:
        tell(say("train.preview_asked", name=job_acts.preview(self.context, chosen or 0).name))

    @mended
    def duplicate_one(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        """The job's settings as a new job, at the end of the queue."""
        job = self.context.runner.get(chosen or 0)
        again = job_acts.duplicate(self.context, job.id)
        tell(say("train.duplicated", again=again.name, job=job.name))
        return self.changes(again.id, {}, look=Look(*look))

    @mended
    def remove_one(self, chosen: int | None, *look: str) -> dict[Any, Any]:
        self.context.runner.remove(chosen or 0)
        return self.changes(None, {}, look=Look(*look))

    @mended
    def act_on_queue(self, chosen: int | None, smoothing: str, stretch: str, event: gr.EventData) -> dict[Any, Any]:
        """What a button of the queue's list asks for."""
        act, job = acted(event)
        runner = self.context.runner
        match act:
            case "resume":
                job_acts.resume(self.context, job)
            case "up":
                runner.move(job, -1)
            case "down":
                runner.move(job, 1)
            case "remove":
                runner.remove(job)
        shown = None if act == "remove" and job == chosen else chosen
        return self.changes(shown, {}, look=Look(smoothing, stretch))

    def changes(
        self,
        chosen: int | None,
        before: dict[str, Any],
        form: rehearsal_settings.Asked | None = None,
        look: Look = USUAL,
    ) -> dict[Any, Any]:
        """Updates of what changed since this page last asked: anything else would flicker and cost.

        `form` is what the form asks for, by which a rehearsal is judged; without it that stays as it is shown.
        """
        # The picker; where none is chosen, with the training that is at work, else the newest.
        every = self.context.runner.shown()
        jobs = [job for job in every if job.kind == TRAINING]
        first = next((job for job in jobs if job.state in LIVE), jobs[0] if jobs else None)
        picked = next((job for job in jobs if job.id == chosen), first)
        after: dict[str, Any] = {"jobs": [(job.id, job.state) for job in jobs]}
        after |= {"comparison": before["comparison"]} if "comparison" in before else {}
        update: dict[Any, Any] = {}
        if after["jobs"] != before.get("jobs"):
            choices = [(views.job_label(job), job.id) for job in jobs]
            update[self.job] = gr.update(choices=choices, value=picked.id if picked else None)

        # The parts that depend on something new.
        parts = self._parts(picked, look) if picked else self._no_parts()
        parts |= {"queue": self.queue.part(every)} | (self._rehearsal_parts(every, form) if form is not None else {})
        for part, (signature, change) in parts.items():
            after[part] = signature
            if signature != before.get(part):
                update |= change()
        return update | {self.seen: after} if after != before else {}

    def _parts(self, job: Job, look: Look) -> Parts:
        """Each part of the job's view: what it depends on, and its update."""
        folder = self.context.runs / job.name
        events, fold = job_progress.run_events(self.context, folder)
        bar = views.progress_html(job.name, job_progress.of_training(self.context, job, events, fold))
        log = views.messages(job, events)
        result = views.gain(events) + views.best_step(events)
        # Charts are drawn only when a point is new, the advice only when what it is read from is.
        num_measured = sum(event.kind == "validated" for event in events)
        decided = [event for event in events if isinstance(event, Recommended | Finished)]

        def advice() -> str:
            return views.recommendation_html(events, self._settings_of(folder)) + card_view.beside(folder, events)

        return {
            "progress": (bar, lambda: {self.progress: bar}),
            "plan": _box_part(self.plan, views.plan_html(events)),
            "notices": _box_part(self.notices, views.notices_html(events)),
            "curve": self.loss.part(job, events, look),
            "heldout": ((job.id, num_measured), lambda: _filled(self.heldout_plot, views.heldout_html(events))),
            "result": (result, lambda: {self.result: gr.update(value=result, visible=bool(result))}),
            "recommendation": (decided, lambda: _filled(self.recommendation, advice())),
            "log": (log, lambda: {self.log: log}),
            "state": (job.state, lambda: self._buttons(job)),
            "onward": self.onward.part(job, self._settings_of(folder)),
            "verdict": self.verdict.part(job),
            **self._file_parts(folder, events),
        }

    def _no_parts(self) -> Parts:
        """The job's view without a job, as when the last job was removed."""

        def emptied() -> dict[Any, Any]:
            boxes = (self.plan, self.notices, self.heldout_plot, self.recommendation, self.result, self.pictures)
            buttons = (self.stop, self.pause, self.resume, self.preview, self.duplicate, self.remove)
            return {
                self.progress: views.NOTHING_YET,
                **{box: gr.update(value="", visible=False) for box in boxes},
                **{button: gr.update(visible=False) for button in (*self.downloads, self.use)},
                **{button: gr.update(interactive=False) for button in buttons},
                self.log: "",
                self.onward.box: gr.update(visible=False),
                **self.loss.none(),
                **self.verdict.none(),
            }

        return {"progress": ("", emptied)}

    def _file_parts(self, folder: Path, events: list[Event]) -> Parts:
        """The downloads and the previews, sent again when a file is new."""
        rows, files = preview_strip.strips(folder, events), views.files(folder, events)

        def pictures() -> dict[Any, Any]:
            return _filled(self.pictures, preview_strip.html(self.context, rows, self._settings_of(folder)))

        return {
            "files": ([str(path) for path in files], lambda: self._offered(files) | self._to_use(files, events)),
            "samples": (preview_strip.signature(rows), pictures),
        }

    def _buttons(self, job: Job) -> dict[Any, Any]:
        return {
            self.stop: gr.update(interactive=job.state in (*LIVE, *WAITING, "paused")),
            self.pause: gr.update(interactive=job.state == "running"),
            self.preview: gr.update(interactive=job.state == "running"),
            self.resume: gr.update(interactive=job.state in RESUMABLE),
            self.duplicate: gr.update(interactive=True),
            self.remove: gr.update(interactive=job.state not in LIVE),
        }

    def _settings_of(self, folder: Path) -> TrainConfig | None:
        """The run's settings; None if they can't be read."""
        try:
            return runs.Run(folder).config()
        except UserError:
            return None

    def _offered(self, files: list[Path | None]) -> dict[Any, Any]:
        """The downloads of what is there."""
        public: dict[Path | None, str] = dict(self.context.published_of([path for path in files if path]))
        return {
            button: gr.update(value=public[path], visible=True) if path in public else gr.update(visible=False)
            for button, path in zip(self.downloads, files, strict=True)
        }

    def _to_use(self, files: list[Path | None], events: list[Event]) -> dict[Any, Any]:
        """The button that leads to Stack with the best file, or the last file where none was measured."""
        best, last, _ = files
        file, measured = best or last, views.last(events, Recommended)
        label = say("train.use_step", step=measured.step) if best and measured else say("train.use_in_stack")
        return {
            self.use: gr.update(value=label, visible=file is not None),
            self.wanted: f"trained {file.parent.name}/{file.name}" if file else "",
        }

    def of_form(self, form: rehearsal_settings.Asked) -> dict[Any, Any]:
        """The rehearsal for what the form asks for now."""
        updates = {self.form: form}
        for _, change in self._rehearsal_parts(self.context.runner.shown(), form).values():
            updates |= change()
        return updates

    def _rehearsal_parts(self, jobs: list[Job], form: rehearsal_settings.Asked) -> Parts:
        """The newest rehearsal, until a training is started after it."""
        newest = next((job for job in jobs if job.kind in (TRAINING, REHEARSAL)), None)
        newest = newest if newest and newest.kind == REHEARSAL else None
        html = rehearsal_settings.html(self.context, newest, form) if newest else ""
        can_adopt = bool(rehearsal_settings.changes(self.context, newest, form))
        return {
            "rehearsal": _box_part(self.rehearsal, html),
            "suggested": (can_adopt, lambda: {self.adopt: gr.update(visible=can_adopt)}),
        }


def _box_part(box: gr.HTML, html: str) -> Part:
    """A box that is there while it has something to say, and depends on what it says."""
    return html, lambda: _filled(box, html)


def _filled(box: gr.HTML, html: str) -> dict[Any, Any]:
    return {box: gr.update(value=html, visible=bool(html))}
