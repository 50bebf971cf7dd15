"""Batch: many pictures of one stack, of a table, or of a run's checkpoints; drawn in a process that outlives the page.

A stack is tried in the Stack tab first: the batch takes everything from one of its pictures, whose recipe says it all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app import batch_estimate, batch_likes, batch_table, batches, checkpoint_grids, leftovers, views
from app.batch_view import BatchView
from app.context import Context, Refresh
from app.notices import as_sentence, mended, tell
from app.render_requests import Rendering, Work, mended_turns
from app.texts import say
from trainer.config.batch import NAME, NAME_FIELDS
from trainer.errors import ConfigError, UserError

TITLE = say("page.batch")
ORDER = 40
_STACK, _TABLE, _RUN = "stack", "table", "run"
_MOST_PLANNED = 2000  # rows of a table whose time is told while it is typed; of more at `Show the plan`
_EMPTY_TABLE = f'<div class="cards-empty">{say("table.none_yet")}</div>'
# One after the other, or an older answer could come after a newer answer.
_IN_TURN: dict[str, Any] = {"concurrency_id": "batch-table", "concurrency_limit": 1}


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context, self.view = context, BatchView(context)
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=4, min_width=320):
                self._draw_sources()
                self._draw_end()
            with gr.Column(scale=5, min_width=320):
                self.view.draw()
        self._connect()

    def _draw_sources(self) -> None:
        """A stack at every prompt, seed and weight; a table; a run's steps; or a jobs file instead.

        Which of them is seen follows from the choice in the page's CSS, so no answer comes late.
        """
        # The choice.
        self.source = gr.Radio(
            [(say("batch.of_stack"), _STACK), (say("batch.of_table"), _TABLE), (say("batch.of_run"), _RUN)],
            value=_STACK, label=say("batch.draw_what"),
            show_label=False, container=False, elem_id="batch-source", elem_classes="tabs-like",
        )  # fmt: skip

        # What belongs to one choice alone.
        with gr.Column(elem_id="batch-of-stack"):
            with gr.Row():
                self.like = gr.Dropdown(
                    [], label=say("batch.like"), min_width=170, scale=3, interactive=True, elem_id="batch-like"
                )
                self.sample = gr.Image(
                    show_label=False, interactive=False, height=110, min_width=90, scale=1, buttons=[],
                    elem_id="batch-sample",
                )  # fmt: skip
            self.says = gr.HTML("", elem_id="batch-says", padding=False)
        # The key of a stack that comes from Stack's desk; never seen, it stands for the event that brings one.
        self.desk = gr.Textbox("", visible=False, elem_id="batch-desk", elem_classes="unkept")
        with gr.Row(elem_id="batch-of-run"):
            self.run = gr.Dropdown(
                [], label=say("kind.run"), min_width=150, scale=3, interactive=True, elem_id="batch-run"
            )
            self.steps = gr.Textbox(
                "", label=say("word.steps"), placeholder=say("batch.steps_example"), max_length=4000, min_width=120,
                scale=2, elem_id="batch-steps",
            )  # fmt: skip
        with gr.Column(elem_id="batch-of-table"):
            self.table = gr.Textbox(
                "", label=say("batch.table"), placeholder=say("batch.table_example"), lines=7, max_lines=14,
                max_length=batch_table.MAX_CHARS, elem_id="batch-table", elem_classes="mono",
                info=say("batch.table_help"),
            )  # fmt: skip
            self.pasted = gr.HTML(_EMPTY_TABLE, elem_id="batch-pasted")

        # What a stack and a run's steps are drawn with; a table has columns for it.
        with gr.Column(elem_id="batch-lists"):
            self.prompts = gr.Textbox(
                "", label=say("batch.prompts"), placeholder=say("batch.prompts_example"), lines=5,
                max_lines=14, max_length=batches.MAX_PROMPTS_CHARS, elem_id="batch-prompts",
            )  # fmt: skip
            with gr.Row():
                self.seeds = gr.Textbox(
                    "1-4",
                    label=say("batch.seeds"),
                    info=say("batch.seeds_help"),
                    max_length=4000,
                    min_width=110,
                    elem_id="batch-seeds",
                )
                self.weights = gr.Textbox(
                    "1", label=say("batch.weights_times"), info=say("batch.weights_help"), max_length=2000,
                    min_width=110, elem_id="batch-weights",
                )  # fmt: skip

    def _draw_end(self) -> None:
        # A jobs file, which stands for all of the above.
        self.file = gr.File(
            file_types=[".csv", ".toml"], label=say("batch.jobs_file"), height=120, elem_id="batch-file"
        )

        # What the batch and its pictures are called.
        with gr.Accordion(say("batch.names"), open=False), gr.Row():
            self.name = gr.Textbox(
                "",
                label=say("batch.batch"),
                placeholder=say("batch.name_example"),
                max_length=80,
                min_width=120,
                elem_id="batch-name",
            )
            fields = " ".join(f"{{{field}}}" for field in NAME_FIELDS)
            self.template = gr.Textbox(
                NAME, label=say("word.pictures"), info=fields, max_length=200, min_width=170, elem_id="batch-template"
            )

        # Begin, or see first what would be drawn.
        with gr.Row():
            self.start = gr.Button(
                say("batch.begin"), variant="primary", size="lg", scale=2, min_width=150, interactive=False,
                elem_id="start-batch",
            )  # fmt: skip
            self.plan_button = gr.Button(
                say("batch.show_plan"), size="lg", scale=1, min_width=110, interactive=False, elem_id="plan-batch"
            )
        self.why = gr.HTML(_why(say("batch.choose_picture")), elem_id="batch-why", padding=False)
        self.plan = gr.HTML(visible=False, elem_id="batch-plan")
        self.cancel = gr.Button(say("button.cancel"), visible=False, size="sm", elem_id="cancel-batch")
        self.ready = [self.start, self.plan_button, self.why]

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        settings = {
            self.source, self.like, self.prompts, self.seeds, self.weights, self.file, self.name, self.template,
            self.table, self.run, self.steps,
        }  # fmt: skip
        self.view.connect()
        self.table.change(self.read_table, self.table, self.pasted, trigger_mode="always_last", **still, **_IN_TURN)
        self.like.input(self.show_like, self.like, [self.sample, self.says], **still)
        sent = [self.source, self.like, self.sample, self.says, self.file, self.plan, *self.ready]
        self.desk.input(self.take_desk, {self.desk, self.like, self.run, self.table, self.prompts}, sent, **still)

        # Whether there is anything to draw.
        chosen = [self.source, self.like, self.run, self.table, self.file]
        gr.on([part.change for part in chosen], self.say_ready, chosen, self.ready, trigger_mode="always_last", **still)

        # A run's steps become files first, which takes its base and can be cancelled.
        begun = [*self.view.outputs(), self.view.zip, self.plan, self.name, self.file]
        plan = [self.plan, self.cancel]
        starting = self.start.click(self.prepare, settings, plan, **still)
        starting.success(self.begin, settings, begun, show_progress_on=self.plan, **private)
        planning = self.plan_button.click(self.prepare, settings, plan, **still)
        planning.success(self.show_plan, settings, self.plan, **private)
        self.cancel.click(self.cancelled, None, plan, cancels=[starting, planning], **still)

    # Settings.

    @mended
    def read_table(self, text: str | None) -> str:
        """What each column of the table became, and its problems or how many pictures it makes."""
        if not (text or "").strip():
            return _EMPTY_TABLE
        table, estimate = batch_table.read(self.context, text or ""), ""
        if table.jobs and len(table.rows) <= _MOST_PLANNED:
            try:
                estimate = self._estimate(batches.planned(table.jobs, self._library(), self.context.wildcards))
            except UserError as error:
                estimate = str(error)
        return batch_table.html(table, estimate)

    def _jobs(self, held: dict[Any, Any]) -> batches.Jobs:
        """The jobs file of what the page holds; an uploaded file says it all. Raises: ConfigError, AdapterError."""
        if held[self.file]:
            return batches.uploaded(self.context, Path(held[self.file]))
        # The prompts, weights and seeds of the page: those of a table stand in its columns.
        prompts, weights, seeds = (held[box] or "" for box in (self.prompts, self.weights, self.seeds))
        if held[self.source] == _RUN:
            steps = held[self.steps] or ""
            return checkpoint_grids.composed(self.context, held[self.run], steps, prompts, weights, seeds)
        if held[self.source] == _TABLE:
            table = batch_table.read(self.context, held[self.table] or "")
            if table.jobs is None:
                raise ConfigError(table.complaint or say("table.is_empty"))
            return table.jobs
        stack = batch_likes.stack(self.context, held[self.like])
        return batches.composed(self.context, stack, prompts, weights, seeds, held[self.template] or "")

    def _library(self) -> list[Path]:
        return [self.context.loras, self.context.runs]

    def _estimate(self, planned: batches.Planned) -> str:
        return batch_estimate.words(self.context, planned.work)

    @mended_turns
    def prepare(self, held: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """How far the files of a run's steps are, in turns; nothing for what needs none."""
        if held[self.file] or held[self.source] != _RUN:
            return
        # Written before the batch is composed: that takes steps whose files are there.
        rendering, began, last_seconds = Rendering(), time.monotonic(), -1
        work = Work(rendering, lambda: checkpoint_grids.write_files(self.context, held[self.run], rendering))
        hidden = {
            self.plan: gr.update(visible=False),
            self.cancel: gr.update(value=say("button.cancel"), visible=False),
        }
        try:
            # A turn each second, at which it can be cancelled.
            for _ in work.turns():
                if (seconds := int(time.monotonic() - began)) != last_seconds:
                    last_seconds = seconds
                    words = views.notice_html("plain", say("batch.reading", seconds=seconds), [])
                    shown = gr.update(value=words, visible=True)
                    yield {self.plan: shown, self.cancel: gr.update(value=say("button.cancel"), visible=True)}
        except UserError as error:
            yield {**hidden, **self._cannot(error)}
            # Raised again, so that `success` doesn't follow and write a plan over the reason.
            raise
        yield hidden

    @mended
    def cancelled(self) -> dict[Any, Any]:
        return {self.plan: gr.update(visible=False), self.cancel: gr.update(visible=False)}

    def _planned_html(self, planned: batches.Planned) -> Any:
        words = f"{planned.text}\n{self._estimate(planned)}"
        return gr.update(value=batches.plan_html(words), visible=True)

    def _cannot(self, error: UserError) -> dict[Any, Any]:
        """Why it can't be drawn, where its plan would stand."""
        html = views.notice_html("bad", say("batch.cannot_draw"), as_sentence(str(error)).splitlines())
        return {self.plan: gr.update(value=html, visible=True)}

    @mended
    def say_ready(
        self, source: str | None, like: str | None, run: str | None, table: str | None, file: Any
    ) -> dict[Any, Any]:
        """Whether there is anything to draw, and what is to be chosen first."""
        lacks = {
            _STACK: "" if like else say("batch.choose_picture"),
            _TABLE: "" if (table or "").strip() else say("batch.fill_table"),
            _RUN: "" if run else say("batch.choose_run"),
        }  # fmt: skip
        # A jobs file needs nothing else.
        why = "" if file else lacks.get(source or "", "")
        can = gr.update(interactive=not why)
        return {self.start: can, self.plan_button: can, self.why: gr.update(value=_why(why), visible=bool(why))}

    @mended
    def show_plan(self, held: dict[Any, Any]) -> Any:
        try:
            return {
                self.plan: self._planned_html(
                    batches.planned(self._jobs(held), self._library(), self.context.wildcards)
                )
            }
        except UserError as error:
            return self._cannot(error)

    @mended
    def begin(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """A job for what the page holds, and its plan; planned first, so that nothing is begun that can't be drawn."""
        try:
            jobs = self._jobs(held)
            planned = batches.planned(jobs, self._library(), self.context.wildcards)
        except UserError as error:
            return self._cannot(error)
        name = (held[self.name] or "").strip() or (f"{held[self.run]}-steps" if self._is_of_run(held) else "batch")
        job = self.context.runner.submit(name, jobs.text, jobs.kind)
        tell(say("job.on_its_way", name=job.name))
        leftovers.taken(self.context, [held[self.file]])
        return {
            **self.view.changes(job.id, {}),
            self.plan: self._planned_html(planned),
            self.name: "",
            self.view.zip: gr.update(visible=False),
            self.file: None,
        }

    def _is_of_run(self, held: dict[Any, Any]) -> bool:
        return held[self.source] == _RUN and not held[self.file]

    @mended
    def show_like(self, name: str | None) -> dict[Any, Any]:
        """The chosen stack's small picture, and what is taken from it."""
        return {self.sample: batch_likes.thumbnail(self.context, name), self.says: batch_likes.html(self.context, name)}

    @mended
    def take_desk(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """The stack that comes from Stack's desk, ready to be drawn; a jobs file would be drawn in its place."""
        key = held[self.desk]
        batch_likes.stack(self.context, key)  # raises for one that can't be drawn
        if (held[self.prompts] or "").strip():
            tell(say("batch.prompts_stay"))
        # What was chosen stays among the choices: the page may ask with it once more before it hears of this.
        likes = batch_likes.choices(self.context, key, held[self.like])
        return {
            **self.say_ready(_STACK, key, held[self.run], held[self.table], None),
            self.source: _STACK,
            self.like: gr.update(choices=likes, value=key),
            **self.show_like(key),
            self.file: None,
            self.plan: gr.update(visible=False),
        }

    @mended
    def open_tab(
        self, source: str | None, chosen: str | None, run: str | None, table: str | None, file: Any = None
    ) -> dict[Any, Any]:
        """What a batch may be like and the runs, the first of each chosen unless another one still is.

        And what the table is that was typed before.
        """
        likes = batch_likes.choices(self.context, chosen)
        names = [name for _, name in likes]
        value = chosen if chosen in names else names[0] if names else None
        runs = checkpoint_grids.run_choices(self.context)
        known = [name for _, name in runs]
        of_run = run if run in known else known[0] if known else None
        return {
            **self.say_ready(source, value, of_run, table, file),
            self.like: gr.update(choices=likes, value=value),
            **self.show_like(value),
            self.run: gr.update(choices=runs, value=of_run),
            **({self.pasted: self.read_table(table)} if source == _TABLE else {}),
        }


def _why(text: str) -> str:
    """What is to be chosen before anything can be drawn."""
    return f'<p class="hint">{text}</p>' if text else ""


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    inputs = [tab.source, tab.like, tab.run, tab.table, tab.file]
    outputs = [tab.like, tab.sample, tab.says, tab.run, tab.pasted, *tab.ready]
    tells = [tab.view.pictures.gallery, tab.view.pictures.vote]
    return Refresh(tab.open_tab, inputs, outputs, on_load=False, tells=tells, look=tab.view.look())
