"""Batch: many pictures of one stack, or of a jobs file; drawn in a process of its own that goes on without the page.

A stack is tried in the Stack tab first: the batch takes everything from one of its pictures, whose recipe says it all.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from app import batches, leftovers, views
from app.context import Context, Refresh
from app.jobs import LIVE, WAITING, Job
from app.notices import mended, tell
from app.recipes import read_recipe, recent
from trainer.config.batch import NAME, NAME_FIELDS
from trainer.errors import ConfigError, UserError
from trainer.printing import plain

TITLE = "Batch"
ORDER = 40
_MOST_SHOWN = 24
_NOTHING_YET = '<div class="progress"><div class="detail">No batch yet. Render a picture in the Stack tab, then draw many like it here.</div></div>'


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=4, min_width=320):
                self._draw_wishes()
            with gr.Column(scale=5, min_width=320):
                self._draw_job()
        self.seen = gr.State({})
        self.live = [self.job, self.progress, self.stop, self.resume, self.manifest, self.pack, self.gallery, self.log, self.seen]
        self._connect()

    def _draw_wishes(self) -> None:
        with gr.Row():
            self.like = gr.Dropdown([], label="Everything as in the picture", min_width=170, scale=3, interactive=True, elem_id="batch-like")
            self.sample = gr.Image(show_label=False, interactive=False, height=110, min_width=90, scale=1, buttons=[], elem_id="batch-sample")
        self.prompts = gr.Textbox(
            "",
            label="Prompts, one a line",
            placeholder="the picture's own",
            lines=5,
            max_lines=14,
            max_length=batches.MAX_PROMPTS_CHARS,
            elem_id="batch-prompts",
        )
        with gr.Row():
            self.seeds = gr.Textbox("1-4", label="Seeds", info="1-4, 17", max_length=4000, min_width=110, elem_id="batch-seeds")
            self.weights = gr.Textbox("1", label="All weights times", info="0.5, 1", max_length=2000, min_width=110, elem_id="batch-weights")
        self.file = gr.File(file_types=[".csv", ".toml"], label="Or a jobs file (.csv, .toml), which then says it all", height=120, elem_id="batch-file")
        with gr.Accordion("Names", open=False), gr.Row():
            self.name = gr.Textbox("", label="Batch", placeholder="batch", max_length=80, min_width=120, elem_id="batch-name")
            fields = " ".join(f"{{{field}}}" for field in NAME_FIELDS)
            self.template = gr.Textbox(NAME, label="Pictures", info=fields, max_length=200, min_width=170, elem_id="batch-template")
        with gr.Row():
            self.start = gr.Button("Draw the batch", variant="primary", size="lg", scale=2, min_width=150, elem_id="start-batch")
            self.look = gr.Button("Show the plan", size="lg", scale=1, min_width=110, elem_id="plan-batch")
        self.plan = gr.HTML(visible=False, elem_id="batch-plan")

    def _draw_job(self) -> None:
        self.job = gr.Dropdown([], label="Batch", interactive=True, elem_id="batch-job")
        self.progress = gr.HTML(_NOTHING_YET, elem_id="batch-progress")
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", interactive=False, min_width=100, elem_id="stop-batch")
            self.resume = gr.Button("Go on", interactive=False, min_width=100, elem_id="resume-batch")
        with gr.Row():
            self.manifest = gr.DownloadButton("Manifest", visible=False, size="md", min_width=110, elem_id="batch-manifest")
            self.pack = gr.Button("Pack a zip", visible=False, size="md", min_width=110, elem_id="batch-pack")
            self.zip = gr.DownloadButton("Download zip", visible=False, size="md", min_width=110, elem_id="batch-zip")
        self.gallery = gr.Gallery(
            label="Contact sheets, then the newest pictures", columns=6, height=460, fit_columns=False, object_fit="contain", interactive=False,
            buttons=["fullscreen"], elem_id="batch-pictures",
        )  # fmt: skip
        self.log = gr.Textbox(label="What could not be drawn", lines=2, max_lines=10, interactive=False, visible=False, elem_id="batch-messages")

    def _connect(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        wishes = {self.like, self.prompts, self.seeds, self.weights, self.file, self.name, self.template}
        self.start.click(self.begin, wishes, [*self.live, self.plan, self.name, self.zip, self.file], **private)
        self.look.click(self.show_plan, wishes, self.plan, **private)
        self.like.input(self.show_sample, self.like, self.sample, **still)
        self.stop.click(self.stop_one, self.job, self.live, **still)
        self.resume.click(self.resume_one, self.job, self.live, **still)
        self.job.input(self.choose, self.job, [*self.live, self.zip], **still)
        self.pack.click(self.pack_one, self.job, self.zip, **private)
        gr.Timer(1.0).tick(self.poll, [self.job, self.seen], self.live, concurrency_id="poll", concurrency_limit=8, **still)

    # What is wished.

    def _jobs(self, found: dict[Any, Any]) -> batches.Jobs:
        if found[self.file]:
            return batches.uploaded(self.context, Path(found[self.file]))
        path = next((one for one in recent(self.context) if one.name == found[self.like]), None)
        if path is None:
            raise ConfigError("no picture to draw more like is chosen; render one in the Stack tab, or drop a jobs file.")
        stack = read_recipe(self.context, path)
        said = [found[box] or "" for box in (self.prompts, self.weights, self.seeds, self.template)]
        return batches.composed(self.context, stack, *said)

    def _library(self) -> list[Path]:
        return [self.context.loras, self.context.runs]

    @mended
    def show_plan(self, found: dict[Any, Any]) -> Any:
        return gr.update(value=batches.plan_html(batches.plan_text(self._jobs(found), self._library())), visible=True)

    @mended
    def begin(self, found: dict[Any, Any]) -> dict[Any, Any]:
        jobs = self._jobs(found)
        plan = batches.plan_text(jobs, self._library())
        made = self.context.runner.submit((found[self.name] or "").strip() or "batch", jobs.text, jobs.kind)
        tell(f"{made.name} is on its way.")
        shown = gr.update(value=batches.plan_html(plan), visible=True)
        leftovers.taken(self.context, [found[self.file]])
        return {**self._changes(made.id, {}), self.plan: shown, self.name: "", self.zip: gr.update(visible=False), self.file: None}

    @mended
    def show_sample(self, name: str | None) -> Any:
        return next((str(thumbnail) for _, thumbnail in self.context.thumbnails([one for one in recent(self.context) if one.name == name])), None)

    @mended
    def open_tab(self, chosen: str | None) -> dict[Any, Any]:
        """The pictures with a recipe, the newest chosen unless another one still is."""
        names = []
        for path, _ in self.context.thumbnails(recent(self.context)):
            with suppress(UserError):
                read_recipe(self.context, path)
                names.append(path.name)
        value = chosen if chosen in names else names[0] if names else None
        return {self.like: gr.update(choices=[(plain(name), name) for name in names], value=value), self.sample: self.show_sample(value)}

    # The job.

    @mended
    def poll(self, chosen: int | None, before: dict[str, Any]) -> Any:
        return self._changes(chosen, before) or gr.skip()

    @mended
    def choose(self, chosen: int | None) -> dict[Any, Any]:
        return {**self._changes(chosen, {}), self.zip: gr.update(visible=False)}

    @mended
    def stop_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.stop(chosen or 0)
        return self._changes(chosen, {})

    @mended
    def resume_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.resume(chosen or 0)
        return self._changes(chosen, {})

    @mended
    def pack_one(self, chosen: int | None) -> Any:
        job = self.context.runner.get(chosen or 0)
        path = batches.packed(self.context, self.context.batches / job.name)
        return gr.update(value=str(path), label=f"Download {path.name} ({path.stat().st_size / 2**20:.1f} MiB)", visible=True)

    def _changes(self, chosen: int | None, before: dict[str, Any]) -> dict[Any, Any]:
        """Updates of what changed since this page last asked."""
        jobs = [one for one in self.context.runner.every() if one.kind in batches.KINDS.values()]
        picked = next((one for one in jobs if one.id == chosen), jobs[0] if jobs else None)
        after: dict[str, Any] = {"jobs": [(one.id, one.state) for one in jobs]}
        update: dict[Any, Any] = {}
        if after["jobs"] != before.get("jobs"):
            update[self.job] = gr.update(choices=[(views.job_label(one), one.id) for one in jobs], value=picked.id if picked else None)
        if picked:
            out, log = self.context.batches / picked.name, self.context.runner.log_file(picked)
            after |= {"of": picked.id, "log": log.stat().st_size if log.is_file() else 0, "manifest": _stamp(out / "manifest.csv")}
            if any(after[key] != before.get(key) for key in after):
                update |= self._show(picked, out, before.get("of") != picked.id or before.get("jobs") != after["jobs"])
        return update | {self.seen: after} if after != before else {}

    def _show(self, job: Job, out: Path, anew: bool) -> dict[Any, Any]:
        """The bar at every picture; the pictures themselves when the state or the batch changes, and from time to time between."""
        bar = batches.progress(job, batches.told(self.context.runner.log_file(job)))
        rows = batches.manifest(out)
        wrong = batches.problems(job, rows)
        sheet = self.context.published_of([out / "manifest.csv"])
        update: dict[Any, Any] = {
            self.progress: views.progress_html(job.name, bar), self.log: gr.update(value=wrong, visible=bool(wrong)),
            self.stop: gr.update(interactive=job.state in (*LIVE, *WAITING)), self.resume: gr.update(interactive=job.state in ("stopped", "failed")),
            self.manifest: gr.update(value=sheet[0][1], visible=True) if rows and sheet else gr.update(visible=False),
        }  # fmt: skip
        paths, num = batches.pictures(out, _MOST_SHOWN)
        if anew or num <= _MOST_SHOWN:
            update |= {self.gallery: [(public, plain(path.stem)) for path, public in self.context.published_of(paths)], self.pack: gr.update(visible=num > 0)}
        return update


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    return Refresh(tab.open_tab, [tab.like], [tab.like, tab.sample], on_load=False)
