"""The pictures of a batch in the page, to be looked at, kept, rejected and rated; and votes between two of them.

Both are HTML of ours that ask for what they show (`batch_gallery.js`, `batch_vote.js`): a press answers at once, and
however many pictures there are, the page holds no component for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from app import batch_pictures, browser_state, cards, scripts, voting
from app.browser_state import BrowserStates
from app.context import Context
from app.job_table import Job
from app.library_items import Shelf
from app.notices import mended_answer
from app.texts import say, say_num
from app.voting import Contest
from trainer.errors import DataError
from trainer.printing import plain

_MOST = 20_000  # pictures that are asked for at once
_KEPT_AS = "batch-gallery"  # of what a browser left
_STARS = "".join(
    f'<button type="button" data-rating="{stars}" aria-label="{say_num("gallery.stars", stars)}" '
    f'aria-keyshortcuts="{stars}">★</button>'
    for stars in range(1, 6)
)
# What is said of a picture, in the gallery and full-screen (`viewer`).
JUDGING = f"""<button type="button" data-verdict="kept"
 aria-keyshortcuts="k">{say("gallery.keep")}<kbd>K</kbd></button>
<button type="button" data-verdict="rejected" aria-keyshortcuts="x">{say("gallery.reject")}<kbd>X</kbd></button>
<span class="rates" role="group" aria-label="{say("word.rating")}">{_STARS}</span>"""
_BUTTONS = f"""{JUDGING}
<button type="button" data-act="open">{say("button.open_in_stack")}</button>"""
_TEMPLATE = f"""<div class="pictures sift" hidden>
<div class="kinds" role="group" aria-label="{say("gallery.filter")}"></div>
<figure class="seen viewing"><a target="_blank" rel="noopener"><img alt=""></a><figcaption></figcaption></figure>
<div class="rate" role="group" aria-label="{say("gallery.this_picture")}">{_BUTTONS}</div>
<div class="grid viewing" role="group" aria-label="{say("gallery.pictures")}"></div>
<p class="empty" hidden>{say("gallery.none")}</p>
<div class="tools"><button type="button" class="more" hidden>{say("button.show_more")}</button><span class="gap"></span>
<button type="button" data-act="zip">{say("gallery.zip")}</button>
<button type="button" data-act="throw">{say("gallery.trash")}</button>
<button type="button" data-act="restore">{say("button.restore")}</button></div>
<p class="said" role="status"></p></div>"""
_VOTE_TEMPLATE = f"""<section class="vote" hidden aria-label="{say("vote.vote")}"><h3>{say("vote.which")}</h3>
<div class="pair viewing" data-blind>
<button type="button" class="side" data-won="left"><img alt="{say("vote.left_picture")}"></button>
<button type="button" class="side" data-won="right"><img alt="{say("vote.right_picture")}"></button></div>
<p class="prompt"></p><div class="choices">
<button type="button" data-won="left" aria-keyshortcuts="ArrowLeft">{say("vote.left")}<kbd>←</kbd></button>
<button type="button" data-won="tie" aria-keyshortcuts="ArrowDown">{say("vote.alike")}<kbd>↓</kbd></button>
<button type="button" data-won="right" aria-keyshortcuts="ArrowRight">{say("vote.right")}<kbd>→</kbd></button>
<button type="button" data-won="skip" aria-keyshortcuts="s">{say("vote.skip")}<kbd>S</kbd></button>
<button type="button" data-won="undo" aria-keyshortcuts="u">{say("button.undo")}<kbd>U</kbd></button></div>
<p class="result" role="status"></p><ol class="strengths"></ol>
<button type="button" class="use">{say("vote.use")}</button><p class="said" role="status"></p></section>"""


class BatchGallery:
    """The two components, and what their scripts ask."""

    def __init__(self, context: Context) -> None:
        self.context, self.shelf = context, Shelf(context)
        self.states = BrowserStates(context.workspace / "browsers")

    def draw(self) -> None:
        """Draw both here; they are empty until a batch is chosen."""
        asked = [_named(self.look, "look"), _named(self.rate, "rate"), _named(self.act, "act")]
        self.gallery = gr.HTML(
            None, html_template=_TEMPLATE, js_on_load=scripts.read("batch_gallery.js"), server_functions=asked,
            elem_id="batch-pictures",
        )  # fmt: skip
        self.vote = gr.HTML(
            None, html_template=_VOTE_TEMPLATE, js_on_load=scripts.read("batch_vote.js"),
            server_functions=[_named(self.match, "match"), _named(self.cast, "cast")], elem_id="batch-vote",
        )  # fmt: skip

    # The gallery. `asked` is whatever a browser sent.

    def look(self, asked: Any, request: gr.Request) -> dict[str, Any]:
        """The pictures of a view; of the view that this browser looked at last if none is named."""
        browser = browser_state.id_in(request.headers.get("cookie"))
        job, view = self._job(asked), _text(asked, "view")
        if view in batch_pictures.VIEWS:
            self.states.change(browser, _KEPT_AS, {"view": view})
        view = view or self.states.read(browser, _KEPT_AS).get("view") or "all"
        num = min(max(_number(asked, "num"), batch_pictures.PAGE), _MOST)
        return batch_pictures.page(self.shelf, job, view if isinstance(view, str) else "all", num)

    def rate(self, asked: Any) -> dict[str, Any]:
        """What is said of one picture now."""
        changes: dict[str, Any] = {name: _given(asked)[name] for name in ("verdict", "rating") if name in _given(asked)}
        return batch_pictures.rate(self.shelf, self._job(asked), _text(asked, "name"), changes)

    def act(self, asked: Any) -> dict[str, Any]:
        """What a button did, in words; for a zip, where it is."""
        job, act = self._job(asked), _text(asked, "act")
        if act == "throw":
            num = batch_pictures.throw(self.shelf, job)
            return {"said": say_num("gallery.in_trash", num)}
        if act == "restore":
            return {"said": say_num("gallery.back", batch_pictures.restore(self.shelf, job))}
        if act != "zip":
            raise DataError(say("gallery.no_act", act=act[:40]))
        path = batch_pictures.kept_zip(self.shelf, job)
        return {"said": say("gallery.zipped", name=path.name, mib=path.stat().st_size / 2**20), "file": path.name,
                "at": cards.address(path)}  # fmt: skip

    # Votes.

    def match(self, asked: Any) -> dict[str, Any]:
        """The two that are shown now, and what is known so far."""
        job = self._job(asked)
        pictures = batch_pictures.named(self.context, job)
        return self._shown(job, pictures, voting.contest(self.shelf.index, self._out(job), pictures))

    def cast(self, asked: Any) -> dict[str, Any]:
        """The same after a vote."""
        job = self._job(asked)
        pictures = batch_pictures.named(self.context, job)
        won = _text(asked, "won")
        after = voting.cast(self.shelf.index, self._out(job), pictures, _number(asked, "turn"), won)
        return self._shown(job, pictures, after)

    def _shown(self, job: Job, pictures: dict[str, Path], contest: Contest) -> dict[str, Any]:
        match = voting.next_match(contest)
        if match is None:
            return {"job": job.id, "turn": contest.turn, "pair": None}
        pair = [pictures[one.pictures[match.scene]] for one in (match.left, match.right)]
        public = dict(self.context.published_of(pair))
        rows = voting.table(contest)
        return {
            "job": job.id, "turn": contest.turn, "pair": [cards.address(Path(public.get(path, ""))) for path in pair],
            "prompt": plain(self.shelf.index.picture(pair[0]).prompt, 300), "num": contest.num_votes,
            "sentence": voting.sentence(contest), "rows": rows, "canUndo": bool(contest.votes),
            "winner": f"picture {batch_pictures.key(job, rows[0]['name'])}" if contest.num_votes else "",
        }  # fmt: skip

    def _job(self, asked: Any) -> Job:
        return batch_pictures.job_of(self.context, _given(asked).get("job"))

    def _out(self, job: Job) -> Path:
        return self.context.batches / job.name


def _named(handler: Callable[..., dict[str, Any]], name: str) -> Callable[..., dict[str, Any]]:
    """A handler that answers in words where it can't, under the name by which its script asks."""
    answering = mended_answer(handler)
    answering.__name__ = name
    return answering


def _given(asked: Any) -> dict[str, Any]:
    return asked if isinstance(asked, dict) else {}


def _text(asked: Any, name: str) -> str:
    value = _given(asked).get(name)
    return value[:1000] if isinstance(value, str) else ""


def _number(asked: Any, name: str) -> int:
    """The whole number of that name, -1 for what is none."""
    value = _given(asked).get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
