"""Asks the server once a second what has changed, and has the page look anew at that alone.

Asking goes past Gradio's events: in 6.31 each of those costs a browser much on a page of many parts, and a page that
nothing happens to should cost nothing. A page that nobody sees does not ask.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
from cachetools import TTLCache, cached

from app import job_plans
from app.context import Context, Refresh
from app.job_table import Job
from app.jobs import LIVE

Version = Callable[[gr.Request], Any]  # what a look depends on, cheap to tell

_SCRIPT = """
const names = %s, known = {};
const ask = async () => {
  try {
    if (!document.hidden) {
      const now = await server.versions(null);
      for (const name of names) {
        if (known[name] === now[name]) continue;
        known[name] = now[name];
        trigger(name);
      }
    }
  } catch {
    trigger(names[0]);  // by which Gradio sees that the server is gone, and waits for it
  }
  if (element.isConnected) setTimeout(ask, 1000);
};
ask();
"""


class News:
    """What the page looks at anew; `listen` for each, then `draw`."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[Version, Refresh]] = {}

    def listen(self, name: str, version: Version, look: Refresh) -> None:
        """Have the page look when it is opened, and whenever the version is another; `name` is a plain word."""
        self._looks[name] = (version, look)

    def draw(self) -> None:
        """Draw what asks; call once."""

        def versions(_: Any, request: gr.Request) -> dict[str, str]:
            return {name: _digest(version(request)) for name, (version, _) in self._looks.items()}

        # Gradio knows an event of ours by its name's standing in the script, in quotes.
        script = _SCRIPT % json.dumps(list(self._looks)).replace('"', "'")
        asking = gr.HTML(js_on_load=script, server_functions=[versions], visible="hidden")
        for name, (_, look) in self._looks.items():
            event = getattr(asking, name)
            # A change while a look goes on is looked at after it.
            event(
                look.handler, list(look.inputs), list(look.outputs), trigger_mode="always_last", concurrency_id="looks",
                concurrency_limit=8, show_progress="hidden", api_visibility="private",
            )  # fmt: skip


def _digest(version: Any) -> str:
    return hashlib.sha256(json.dumps(version, default=str).encode("utf-8", "replace")).hexdigest()[:16]


class JobNews:
    """What is new of jobs. Their table is read once for all that ask within half a second, of every page."""

    def __init__(self, context: Context) -> None:
        self._runner = context.runner
        read = cached(TTLCache(maxsize=1, ttl=0.5), lock=threading.Lock())
        self._listed = read(self._now)

    def _now(self) -> tuple[list[Job], list[Any]]:
        """The jobs that are shown, and what is to become of them."""
        database = self._runner.database
        waiting = [job.id for job in self._runner.waiting()]
        return self._runner.shown(), [waiting, sorted(job_plans.grids_wanted(database)), job_plans.goes_on(database)]

    def of(self, kinds: Iterable[str], folder: Path, of_all: bool = False) -> Version:
        """What the list of jobs says, of every kind if `of_all`, and the files of those of these kinds at work."""
        wanted = set(kinds)

        def version(_: gr.Request) -> Any:
            shown, waiting = self._listed()
            jobs = [job for job in shown if of_all or job.kind in wanted]
            live = [job for job in jobs if job.kind in wanted and job.state in LIVE]
            paths = [path for job in live for path in (self._runner.log_file(job), *_written(folder / job.name))]
            return [[(job.id, job.state, job.error) for job in jobs], waiting, _marks(paths)]

        return version


def _written(folder: Path) -> list[Path]:
    """What a job writes into: its files, and those of its folds."""
    with suppress(OSError):
        return [folder, *folder.iterdir(), *folder.glob("folds/*/events.jsonl")]
    return []


def _marks(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """By which a change of these files is seen."""
    marks = []
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            marks.append((path.name, status.st_size, status.st_mtime_ns))
    return sorted(marks)
