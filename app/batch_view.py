"""The job half of the Batch tab: which batch is shown, how far it is, its pictures, votes on them, and files.

All of it comes from the job table, the batch's folder and what was said of its pictures, so a reload, a second tab or
a new server shows the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app import batch_pictures, batches, views
from app.batch_gallery import BatchGallery
from app.cancel_line import Waiting
from app.context import Context, Refresh
from app.job_table import Job
from app.jobs import LIVE, RESUMABLE, WAITING
from app.notices import mended
from app.render_requests import mended_turns
from app.texts import say

_NOTHING_YET = f'<div class="progress"><div class="detail">{say("batch.none_yet")}</div></div>'


class BatchView:
    """The components of the job half and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context, self.pictures = context, BatchGallery(context)
        self.seen = gr.State({})

    def draw(self) -> None:
        """Draw the job's own column."""
        self.job = gr.Dropdown([], label=say("batch.batch"), interactive=True, elem_id="batch-job")
        self.progress = gr.HTML(_NOTHING_YET, elem_id="batch-progress")
        with gr.Row():
            self.stop = gr.Button(
                say("button.stop"), variant="stop", interactive=False, min_width=100, elem_id="stop-batch"
            )
            self.pause = gr.Button(say("train.pause"), interactive=False, min_width=90, elem_id="pause-batch")
            self.resume = gr.Button(say("button.go_on"), interactive=False, min_width=100, elem_id="resume-batch")
        self.pictures.draw()
        self.waiting = Waiting(self.context, "batch-pack")
        with gr.Row():
            self.manifest = gr.DownloadButton(
                say("batch.manifest"), visible=False, size="md", min_width=110, elem_id="batch-manifest"
            )
            self.pack = gr.Button(say("batch.pack_zip"), visible=False, size="md", min_width=110, elem_id="batch-pack")
            self.zip = gr.DownloadButton(
                say("button.download_zip"), visible=False, size="md", min_width=110, elem_id="batch-zip"
            )
        self.log = gr.Textbox(
            label=say("batch.not_drawn"), lines=2, max_lines=10, interactive=False, visible=False,
            elem_id="batch-messages",
        )  # fmt: skip

    def outputs(self) -> list[Any]:
        """Everything that `changes` may change."""
        return [
            self.job, self.progress, self.stop, self.pause, self.resume, self.manifest, self.pack,
            self.pictures.gallery, self.pictures.vote, self.log, self.seen,
        ]  # fmt: skip

    def connect(self) -> None:
        """Answer the buttons; call once when all is drawn."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.stop.click(self.stop_one, self.job, self.outputs(), **still)
        self.pause.click(self.pause_one, self.job, self.outputs(), **still)
        self.resume.click(self.resume_one, self.job, self.outputs(), **still)
        self.job.input(self.choose, self.job, [*self.outputs(), self.zip], **still)
        self.pack.click(self.pack_one, self.job, [self.zip, *self.waiting.outputs()], **still)
        self.waiting.connect()

    def look(self) -> Refresh:
        """What is asked for whenever something about the jobs is new."""
        return Refresh(self.poll, [self.job, self.seen], self.outputs())

    @mended
    def poll(self, chosen: int | None, before: dict[str, Any]) -> Any:
        return self.changes(chosen, before) or gr.skip()

    @mended
    def choose(self, chosen: int | None) -> dict[Any, Any]:
        return {**self.changes(chosen, {}), self.zip: gr.update(visible=False)}

    @mended
    def stop_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.stop(chosen or 0)
        return self.changes(chosen, {})

    @mended
    def pause_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.pause(chosen or 0)
        return self.changes(chosen, {})

    @mended
    def resume_one(self, chosen: int | None) -> dict[Any, Any]:
        self.context.runner.resume(chosen or 0)
        return self.changes(chosen, {})

    @mended_turns
    def pack_one(self, chosen: int | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        job = self.context.runner.get(chosen or 0)
        out = self.context.batches / job.name

        def answer(path: Path) -> dict[Any, Any]:
            label = say("button.download_mib", name=path.name, mib=path.stat().st_size / 2**20)
            return {self.zip: gr.update(value=str(path), label=label, visible=True)}

        yield from self.waiting.turns(
            request, say("waiting.packing"), lambda rendering: batches.packed(self.context, out, rendering.part_done),
            answer,
        )  # fmt: skip

    def changes(self, chosen: int | None, before: dict[str, Any]) -> dict[Any, Any]:
        """Updates of what changed since this page last asked."""
        # The picker; where none is chosen, with the batch that is at work, else the newest.
        jobs = [job for job in self.context.runner.shown() if job.kind in batches.KINDS.values()]
        first = next((job for job in jobs if job.state in LIVE), jobs[0] if jobs else None)
        picked = next((job for job in jobs if job.id == chosen), first)
        after: dict[str, Any] = {"jobs": [(job.id, job.state) for job in jobs]}
        update: dict[Any, Any] = {}
        if after["jobs"] != before.get("jobs"):
            choices = [(views.job_label(job), job.id) for job in jobs]
            update[self.job] = gr.update(choices=choices, value=picked.id if picked else None)

        # The batch itself, when its log or its manifest has grown.
        if picked:
            out, log = self.context.batches / picked.name, self.context.runner.log_file(picked)
            after |= {
                "of": picked.id,
                "log": log.stat().st_size if log.is_file() else 0,
                "manifest": _changed_ns(out / "manifest.csv"),
            }
            if any(after[key] != before.get(key) for key in after):
                update |= self._show(picked, out)
        return update | {self.seen: after} if after != before else {}

    def _show(self, job: Job, out: Path) -> dict[Any, Any]:
        """The bar, the buttons, and word to the gallery that there is something new; it asks for what it shows."""
        # How far it is, and what was not drawn.
        bar = batches.progress(job, batches.last_events(self.context.runner.log_file(job)))
        rows = batches.manifest(out)
        problems = batches.problems(job, rows)
        sheet = self.context.published_of([out / "manifest.csv"])

        # What the gallery and the votes are told, which then ask for what they show.
        num = len(batches.drawn(out))
        news = {"job": job.id, "key": batch_pictures.key(job, ""), "num": num, "state": job.state}
        return {
            self.progress: views.progress_html(job.name, bar),
            self.log: gr.update(value=problems, visible=bool(problems)),
            self.stop: gr.update(interactive=job.state in (*LIVE, *WAITING, "paused")),
            self.pause: gr.update(interactive=job.state == "running"),
            self.resume: gr.update(interactive=job.state in RESUMABLE),
            self.manifest: gr.update(value=sheet[0][1], visible=True) if rows and sheet else gr.update(visible=False),
            self.pictures.gallery: news,
            self.pictures.vote: news,
            self.pack: gr.update(visible=num > 0),
        }


def _changed_ns(path: Path) -> int:
    """When the file was last changed; 0 if there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0
