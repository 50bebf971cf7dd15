"""The guided path: pictures, captions, preset, check, train, stack, as one thin row that says which is done.

All of it is of the chosen dataset: what was done for another says nothing about this one.

It is read from what is there, so it is the same after a reload and in every page; each step leads to its tab, where
what was chosen before is chosen already (`kept_fields`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gradio as gr

from app import browser_state, dataset_notes
from app.browser_state import BrowserStates
from app.change_polling import News
from app.context import Context, Refresh, newest_first
from app.job_table import Job
from app.job_work import REHEARSAL, TRAINING
from app.kept_fields import PAGE
from app.recipe_index import RecipeIndex
from app.texts import say
from trainer.config.parsing import from_toml
from trainer.data import caption_files
from trainer.errors import DataError, UserError
from trainer.printing import escape

_MOST_READ = 2000  # captions of a set that are looked at
_MOST_PICTURES = 60
_PRESET_FOR = "preset-for"  # the dataset for which a browser chose its preset


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
        self.recipes = RecipeIndex(context)
        self._captions: dict[Path, tuple[int, tuple[bool, bool]]] = {}

    def connect(self, news: News) -> None:
        """Look when the page is opened and when another step is done; call once."""
        news.listen("guide", self.shown, Refresh(self.shown, [], [self.row]))

    def shown(self, request: gr.Request) -> str:
        return html(self.steps(browser_state.id_in(request.headers.get("cookie"))))

    def steps(self, browser: str) -> list[Step]:
        """The steps for what a browser has chosen."""
        # The set that this browser chose, else the first.
        names = [name for name in self.context.dataset_names() if not name.endswith("-heldout")]
        chosen = self.states.read(browser, PAGE).get("dataset")
        name = chosen if chosen in names else next(iter(names), None)
        has_pictures, all_captioned = self._of_dataset(self.context.datasets / name) if name else (False, False)

        # What was done for it.
        jobs = self._jobs(name) if name else []
        is_checked = bool(name) and dataset_notes.read(self.context.datasets / str(name)).is_checked
        trained = [job for job in jobs if job.kind == TRAINING]
        finished = [job.name for job in trained if job.state == "finished"]
        has_preset = bool(jobs) or bool(name) and self.states.read(browser, "train").get(_PRESET_FOR) == name
        return [
            Step(say("word.pictures"), say("page.dataset"), has_pictures),
            Step(say("word.captions"), say("page.dataset"), all_captioned),
            Step(say("word.preset"), say("page.train"), has_preset),
            Step(say("page.check"), say("page.train"), is_checked or bool(jobs)),
            Step(say("page.train"), say("page.train"), bool(finished)),
            Step(say("page.stack"), say("page.stack"), bool(finished) and self._is_stacked(finished)),
        ]

    def _jobs(self, dataset: str) -> list[Job]:
        """The trainings and rehearsals of a dataset."""
        folder = str(self.context.datasets / dataset)
        jobs = [job for job in self.context.runner.every() if job.kind in (TRAINING, REHEARSAL)]
        return [job for job in jobs if _folder_of(job.config) == folder]

    def _is_stacked(self, runs: list[str]) -> bool:
        """Whether one of the newest pictures was drawn with what these runs made."""
        made = {
            sha256
            for sha256, info in self.context.known_loras().items()
            if any(path.parent.name in runs for path in (info.path, *info.copies))
        }
        pictures = newest_first(list(self.context.renders.glob("[!.]*.png")))[:_MOST_PICTURES] if made else []
        return any(sha256 in made for path in pictures for sha256, _, _ in self.recipes.picture(path).loras)

    def _of_dataset(self, folder: Path) -> tuple[bool, bool]:
        """Whether a dataset has pictures, and captions for all; read again when its folder has changed."""
        try:
            changed_ns = _changed_ns(folder)
            known = self._captions.get(folder)
            if known and known[0] == changed_ns:
                return known[1]
            pictures = self.context.pictures(folder)
            captioned = all(_has_caption(path) for path in pictures[:_MOST_READ])
        except OSError:
            return False, False
        self._captions[folder] = changed_ns, (bool(pictures), bool(pictures) and captioned)
        return self._captions[folder][1]


def _changed_ns(folder: Path) -> int:
    """When a file was last made, replaced or removed in a folder or those in it. Raises: OSError."""
    with os.scandir(folder) as entries:
        inside = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return max(folder.stat().st_mtime_ns, *map(_changed_ns, inside), 0)


def preset_chosen(context: Context, dataset: str | None, request: gr.Request | None) -> None:
    """Note that a browser chose a preset for a dataset; in another project it is yet to be chosen."""
    if dataset and request is not None:
        browser = browser_state.id_in(request.headers.get("cookie"))
        BrowserStates(context.workspace / "browsers").change(browser, "train", {_PRESET_FOR: dataset})


@lru_cache(maxsize=4096)
def _folder_of(config: str) -> str:
    """The folder of pictures that a job's settings name; "" for none."""
    try:
        data = from_toml(config, "").get("data")
    except UserError:
        return ""
    return str(data.get("folder", "")) if isinstance(data, dict) else ""


def _has_caption(picture: Path) -> bool:
    try:
        return bool(caption_files.read_caption(picture))
    except DataError:
        return False


def html(steps: list[Step]) -> str:
    """The row; the first step that is not done is the next step."""
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
