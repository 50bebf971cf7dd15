"""Asks the server once a second what has changed, and has the page look anew at that alone.

Asking goes past Gradio's events: in 6.31 each of those costs a browser much on a page of many parts, and a page that
nothing happens to should cost nothing. A page that nobody sees looks at nothing; it asks now and then while a job is at
work, so that it can tell of the end (`done_notice`), and not at all while none is.
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

from app import job_plans, scripts
from app.context import Context, Refresh
from app.job_table import Job
from app.jobs import LIVE

Version = Callable[[gr.Request], Any]  # what a look depends on, cheap to tell


def _nothing(_: gr.Request) -> None:
    """What never grows."""


_SCRIPT = """
const names = %(names)s, tabs = new Set(%(tabs)s), every = %(every)s;
const known = {}, grown = {}, looked = {};
let now = {}, asked = 0, numQuiet = 2;
const isSeen = name => !tabs.has(name) || document.getElementById('tab-' + name)?.offsetParent;
const look = () => {
  for (const name of names) {
    if (!(name in now) || !isSeen(name)) continue;
    const [version, growth] = now[name], time = Date.now();
    const is_due = known[name] !== version || (grown[name] !== growth && time - (looked[name] ?? 0) >= every);
    if (!is_due) continue;
    [known[name], grown[name], looked[name]] = [version, growth, time];
    trigger(name);
  }
};
// Twice quiet before it is believed: between two jobs there is a moment without one.
const isDue = () => !document.hidden || (numQuiet < 2 && Date.now() - asked >= %(hidden)s);
const ask = async () => {
  try {
    if (isDue()) {
      asked = Date.now();
      now = await server.versions(null);
      numQuiet = now.doing?.busy ? 0 : numQuiet + 1;
      document.dispatchEvent(new CustomEvent('velatura-jobs', {detail: now.doing}));
      if (!document.hidden) look();
    }
  } catch {
    if (!document.hidden) trigger(names[0]);  // by which Gradio sees that the server is gone, and waits for it
  }
  if (element.isConnected) setTimeout(ask, 1000);
};
ask();
// A tab that is opened has not been looked at for as long as it was not seen.
document.addEventListener('click', event => { if (event.target.closest?.('[role=tab]')) setTimeout(look, 50); });
"""
_BESIDE: dict[str, Any] = {"concurrency_id": "looks", "concurrency_limit": 8}
_HIDDEN_S = 15  # between two askings of a page that nobody sees
_GROWTH_S = 3  # how often the page looks at what only grows: each look costs a browser, and a training that core


class News:
    """What the page looks at anew; `listen` for each, then `draw`.

    `doing` says what scripts of the page are told with each asking, as the event `velatura-jobs` of the document. While
    its `busy` is true a page that nobody sees asks too.
    """

    def __init__(self, doing: Version = _nothing) -> None:
        self._doing = doing
        self._looks: dict[str, tuple[Version, Version, Refresh]] = {}
        self._tabs: list[str] = []

    def listen(self, name: str, version: Version, look: Refresh, growth: Version = _nothing, tab: bool = False) -> None:
        """Have the page look when it is opened, at once when the version is another, every few seconds while it grows.

        `name` is a plain word; with `tab` it is a tab's, which is looked at while it is the one that is seen.
        """
        self._looks[name] = (version, growth, look)
        self._tabs += [name] if tab else []

    def draw(self) -> None:
        """Draw what asks; call once."""

        def versions(_: Any, request: gr.Request) -> dict[str, Any]:
            looks = {
                name: [_digest(version(request)), _digest(growth(request))]
                for name, (version, growth, _) in self._looks.items()
            }
            return {**looks, "doing": self._doing(request)}

        # Gradio knows an event of ours by its name's standing in the script, in quotes.
        values = {"names": list(self._looks), "tabs": self._tabs, "every": _GROWTH_S * 1000, "hidden": _HIDDEN_S * 1000}
        script = _SCRIPT % {name: json.dumps(value).replace('"', "'") for name, value in values.items()}
        asking = gr.HTML(js_on_load=scripts.ANSWERED + script, server_functions=[versions], visible="hidden")
        for name, (_, _, look) in self._looks.items():
            event = getattr(asking, name)
            # A change while a look goes on is looked at after it.
            event(
                look.handler, list(look.inputs), list(look.outputs), trigger_mode="always_last", show_progress="hidden",
                api_visibility="private", **(look.in_turn or _BESIDE),
            )  # fmt: skip


def _digest(version: Any) -> str:
    return hashlib.sha256(json.dumps(version, default=str).encode("utf-8", "replace")).hexdigest()[:16]


class JobNews:
    """What is new of jobs. Their table is read once for all that ask within half a second, of every page."""

    def __init__(self, context: Context) -> None:
        self._runner = context.runner
        read = cached(TTLCache(maxsize=1, ttl=0.5), lock=threading.Lock())
        self.listed = read(self._now)

    def _now(self) -> tuple[list[Job], list[Any]]:
        """The jobs that are shown, and what is to become of them."""
        database = self._runner.database
        waiting = [job.id for job in self._runner.waiting()]
        return self._runner.shown(), [waiting, sorted(job_plans.grids_wanted(database)), job_plans.goes_on(database)]

    def states(self, kinds: Iterable[str], of_all: bool = False) -> Version:
        """What the list says of jobs of these kinds, or of every kind."""
        wanted = set(kinds)

        def version(_: gr.Request) -> Any:
            shown, waiting = self.listed()
            return [[(job.id, job.state, job.error) for job in shown if of_all or job.kind in wanted], waiting]

        return version

    def files(self, kinds: Iterable[str], folder: Path) -> Version:
        """What those of these kinds that are at work have written so far."""
        wanted = set(kinds)

        def version(_: gr.Request) -> Any:
            # Jobs that have ended write nothing more: that they ended is seen by their state.
            live = [job for job in self.listed()[0] if job.kind in wanted and job.state in LIVE]
            return _marks(path for job in live for path in (self._runner.log_file(job), *_written(folder / job.name)))

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
