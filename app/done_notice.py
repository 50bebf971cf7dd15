"""Says outside the page how far a job is and that it ended: in the window's title, and by a notice and a sound.

The title always does; the notice and the sound once somebody has asked for them, in the browser where that was.
"""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr
from cachetools import TTLCache, cached

from app import job_progress, scripts, show_me
from app.change_polling import JobNews
from app.context import Context
from app.job_table import Job
from app.job_work import REHEARSAL
from app.jobs import LIVE, WAITING
from app.texts import say
from app.views import Progress
from trainer.printing import escape, plain

_MOST_ENDED = 8  # of which a page is told: those that it doesn't know yet
_CONTROL = (
    f'<button type="button" id="tell-done" aria-pressed="false" title="{escape(say("done.help"))}">'
    f"{escape(say('done.tell'))}</button>"
)


class DoneNotice:
    """The control at the head of the page, and what its script is told with each asking."""

    def __init__(self, context: Context, jobs: JobNews) -> None:
        self.context, self._jobs = context, jobs
        # Read once for all that ask within two seconds, of every page: a long training has a long log.
        self._doing = cached(TTLCache(maxsize=1, ttl=2), lock=threading.Lock())(self._doing_now)

    def draw(self) -> None:
        """Draw the control; the title needs it too, as its script writes it."""
        gr.HTML(_CONTROL, js_on_load=scripts.read("done_notice.js"), padding=False, elem_id="done-notice")

    def doing(self, _: gr.Request) -> dict[str, Any]:
        """Whether anything is at work (`busy`), the job that is and how far (`running`), and which `ended` last.

        Each of those has its `name`, when it ended (`at`, in seconds), and whether it `failed`. One that somebody has
        stopped or paused is none, and neither is a rehearsal.
        """
        return self._doing()

    def _doing_now(self) -> dict[str, Any]:
        jobs, waiting = self._jobs.listed()
        live = next((job for job in jobs if job.state in LIVE), None)
        # The three jobs of Show me are one thing to whoever looks on.
        shown = show_me.read(self.context)
        parts = {shown.style, shown.character, shown.both} if shown else set()
        running = None
        if live and live.id in parts and shown:
            running = _running(say("start.show_me"), show_me.scene(self.context, shown).progress)
        elif live and live.kind != REHEARSAL:
            running = _running(live.name, job_progress.of(self.context, live))
        ended = [_ended(job, job.name) for job in jobs if job.kind != REHEARSAL and job.id not in parts]
        ended += [self._show_me_ended([job for job in jobs if job.id in parts])]
        newest = sorted((entry for entry in ended if entry), key=lambda entry: -entry["at"])[:_MOST_ENDED]
        goes_on = any(job.state in WAITING for job in jobs) and self.context.runner.held_by() is None
        return {"busy": live is not None or goes_on, "running": running, "ended": newest}

    def _show_me_ended(self, parts: list[Job]) -> dict[str, Any] | None:
        """Its end: with its last job, or with the first that failed."""
        in_order = sorted(parts, key=lambda job: job.id)
        failed = next((job for job in in_order if job.state == "failed"), None)
        last = in_order[-1] if in_order and in_order[-1].state == "finished" else None
        return _ended(failed or last, say("start.show_me")) if failed or last else None


def _running(name: str, progress: Progress) -> dict[str, Any]:
    return {"name": plain(name, 60), "percent": int(100 * min(max(progress.share, 0.0), 1.0))}


def _ended(job: Job | None, name: str) -> dict[str, Any] | None:
    """A job that came to its end by itself; None for any other."""
    if job is None or job.ended is None or job.state not in ("finished", "failed"):
        return None
    return {"name": plain(name, 60), "at": job.ended, "failed": job.state == "failed"}
