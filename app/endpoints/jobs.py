"""The queue for programs: what works and waits, how far it is, and what can be done with it."""

from __future__ import annotations

from typing import Any, Literal

from app import batches, job_acts, job_progress, views
from app.context import Context
from app.endpoints.asking import Number
from app.endpoints.rows import addresses, job_row
from app.job_work import CAPTIONS
from trainer import file_names


class JobEndpoints:
    """What can be asked of jobs; every public method is an endpoint."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def jobs(self) -> list[dict[str, Any]]:
        """Every job, newest first: id, name, kind, state and error."""
        return [job_row(job) for job in self.context.runner.shown()]

    def job(self, job: Number) -> dict[str, Any]:
        """One job, how much of it is done, from 0 to 1 and in words, and the address of each file that came of it."""
        found = self.context.runner.get(job)
        # A batch gives pictures, captions go to their dataset, and a training gives the files of its run.
        if found.kind in batches.KINDS.values():
            folder = self.context.batches / found.name
            paths = [folder / "manifest.csv", *batches.pictures(folder, batches.MAX_PAGE_PICTURES)[0]]
        elif found.kind == CAPTIONS:
            paths = []
        else:
            folder = self.context.runs / found.name
            events = self.context.logs.read(folder / file_names.EVENTS)
            paths = [path for path in views.files(folder, events) if path]
        shown = job_progress.of(self.context, found)
        says = " · ".join(filter(None, (shown.headline, shown.detail)))
        return job_row(found) | {"done": shown.share, "says": says, "files": addresses(self.context, paths)}

    def stop_job(self, job: Number) -> dict[str, Any]:
        """Have a job save and stop; its row. A second time, after ten seconds, it ends at once."""
        return job_row(self.context.runner.stop(job))

    def pause_job(self, job: Number) -> dict[str, Any]:
        """Have a training or batch save and wait at the head of the queue until it is resumed; its row."""
        return job_row(self.context.runner.pause(job))

    def preview_job(self, job: Number) -> dict[str, Any]:
        """Have a training draw its previews after the step that it is at, out of their turn; its row."""
        return job_row(job_acts.preview(self.context, job))

    def resume_job(self, job: Number) -> dict[str, Any]:
        """Have a stopped, paused or failed job go on from where it saved last; its row. What must fail is refused."""
        return job_row(job_acts.resume(self.context, job))

    def remove_job(self, job: Number) -> str:
        """Take a job that isn't at work off the list; its name. Its run and files stay."""
        found = self.context.runner.get(job)
        self.context.runner.remove(job)
        return found.name

    def move_job(self, job: Number, by: Literal[-1, 1]) -> list[int]:
        """Let a waiting job change places with the one before it (-1) or after it (1); the ids of what waits now."""
        self.context.runner.move(job, by)
        return self.waiting_jobs()

    def waiting_jobs(self) -> list[int]:
        """The ids of the jobs that wait, in the order in which they will go."""
        return [waiting.id for waiting in self.context.runner.waiting()]

    def hold_queue(self, hold: bool) -> bool:
        """Whether the queue waits while a job is paused, as it does, or goes on; as it is now."""
        self.context.runner.let_go_on(not hold)
        return hold

    def duplicate_job(self, job: Number) -> dict[str, Any]:
        """A training's settings as a new job at the end of the queue; its row. What must fail is refused."""
        return job_row(job_acts.duplicate(self.context, job))

    def extend_job(self, job: Number, steps: Number) -> dict[str, Any]:
        """Let a training that ended go on for so many steps more; its row, and the step to which it goes."""
        at = job_acts.extend(self.context, job, steps)
        return job_row(self.context.runner.get(job)) | {"max_steps": at}
