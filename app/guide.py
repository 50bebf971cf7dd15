"""The guided path: pictures, captions, preset, check, train, stack, as one thin row that says which is done.

It is read from what is there, so it is the same after a reload and in every page; each step leads to its tab, where
what was chosen before is chosen already (`kept_fields`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from app import browser_state, dataset_notes
from app.browser_state import BrowserStates
from app.context import Context, Refresh
from app.job_work import REHEARSAL, TRAINING
from app.kept_fields import PAGE
from app.news import News
from app.texts import say
from trainer.data import caption_files
from trainer.errors import DataError
from trainer.printing import escape

_MOST_READ = 2000  # captions of a set that are looked at


@dataclass(frozen=True)
class Step:
    """A step of the path: its word, the tab where it is taken, whether it is."""

    word: str
    tab: str
    is_done: bool


class Guide:
    """The row and what keeps it up to date."""

    def __init__(self, context: Context) -> None:
        self.context, self.states = context, BrowserStates(context.workspace / "browsers")
        self.row = gr.HTML(html([]), elem_id="guide")
        self._captions: dict[Path, tuple[int, tuple[bool, bool]]] = {}

    def connect(self, news: News) -> None:
        """Look when the page is opened and when another step is done; call once."""
        news.listen("guide", self.shown, Refresh(self.shown, [], [self.row]))

    def shown(self, request: gr.Request) -> str:
        return html(self.steps(browser_state.id_in(request.headers.get("cookie"))))

    def steps(self, browser: str) -> list[Step]:
        """The steps for what a browser has chosen."""
        names = [name for name in self.context.dataset_names() if not name.endswith("-heldout")]
        chosen = self.states.read(browser, PAGE).get("dataset")
        name = chosen if chosen in names else next(iter(names), None)
        has_pictures, all_captioned = self._of_dataset(self.context.datasets / name) if name else (False, False)
        is_checked = bool(name) and dataset_notes.read(self.context.datasets / str(name)).is_checked
        jobs = self.context.runner.every()
        trained = [job for job in jobs if job.kind == TRAINING]
        return [
            Step(say("word.pictures"), say("page.dataset"), has_pictures),
            Step(say("word.captions"), say("page.dataset"), all_captioned),
            Step(
                say("word.preset"), say("page.train"), bool(trained) or "preset" in self.states.read(browser, "train")
            ),
            Step(
                say("page.check"),
                say("page.train"),
                is_checked or any(job.kind in (TRAINING, REHEARSAL) for job in jobs),
            ),
            Step(say("page.train"), say("page.train"), any(job.state == "finished" for job in trained)),
            Step(say("page.stack"), say("page.stack"), any(self.context.renders.glob("[!.]*.png"))),
        ]

    def _of_dataset(self, folder: Path) -> tuple[bool, bool]:
        """Whether a dataset has pictures, and captions for all; read again when its folder has changed."""
        try:
            changed_ns = folder.stat().st_mtime_ns
            known = self._captions.get(folder)
            if known and known[0] == changed_ns:
                return known[1]
            pictures = self.context.pictures(folder)
            captioned = all(_has_caption(path) for path in pictures[:_MOST_READ])
        except OSError:
            return False, False
        self._captions[folder] = changed_ns, (bool(pictures), bool(pictures) and captioned)
        return self._captions[folder][1]


def _has_caption(picture: Path) -> bool:
    try:
        return bool(caption_files.read_caption(picture))
    except DataError:
        return False


def html(steps: list[Step]) -> str:
    """The row; the first step that is not done is the next one."""
    following = next((step for step in steps if not step.is_done), None)
    parts = []
    for step in steps:
        state = "done" if step.is_done else "next" if step is following else "later"
        label = {
            "done": say("page.done", step=step.word),
            "next": say("page.next", step=step.word),
            "later": step.word,
        }[state]
        parts.append(
            f'<li class="{state}"><button type="button" data-tab="{escape(step.tab)}" '
            f'aria-label="{escape(label)}">{escape(step.word)}</button></li>'
        )
    return f'<nav class="guide" aria-label="{say("page.steps")}"><ol>{"".join(parts)}</ol></nav>'
