"""Pictures that are dropped on Stack or pasted there: each that carries a stack can be opened, the first of them is.

Of several the others are offered beside it, with the reason for each that can't be opened. What is offered is kept for
the page: of another tool's picture nothing else stays here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from app import cards, leftovers, scripts, stack_desk, views
from app.context import Context
from app.notices import mended
from app.recipes import read_picture
from app.stack_pictures import Opened, Stage
from app.stack_rows import ROWS
from app.texts import say
from trainer.config import StackConfig
from trainer.errors import AdapterError, DataError, UserError
from trainer.printing import plain

Update = dict[Any, Any]
Taken = Callable[[StackConfig, list[str], str, Path | None], Update]

MOST = 24  # pictures at once
_LONGEST_NAME, _LONGEST_REASON = 120, 300
_TEMPLATE = f"""<div class="several" role="group" aria-label="{say("several.choose")}" hidden>
<div class="several-head"><p class="several-says" role="status"></p>
<button type="button" class="several-done">{say("button.close")}</button></div>
<div class="several-pictures"></div><ul class="several-left"></ul></div>"""


@dataclass(frozen=True, eq=False)
class Read:
    """What a dropped picture carries."""

    name: str
    stack: StackConfig
    notes: tuple[str, ...]  # on what of it can't be used
    picture: Path | None  # that shows it, where it is ours


@dataclass(frozen=True, eq=False)
class Offered:
    """What was dropped last: what can be opened, and a sentence for each that can't."""

    reads: tuple[Read, ...] = ()
    thumbnails: tuple[str, ...] = ()  # HTML for each of them, as the files themselves are gone
    left: tuple[str, ...] = ()


class Dropping:
    """The row of what was dropped, below the recent pictures, and what happens when something is."""

    def __init__(self, context: Context, stage: Stage, taken: Taken) -> None:
        """`taken` puts a stack with its notes, their heading and its picture into the form."""
        self.context, self.stage, self.taken, self._counter = context, stage, taken, itertools.count(1)

    def draw(self) -> None:
        """Draw the row here; it is seen once several pictures were dropped."""
        self.offered = gr.State(Offered())
        self.html = gr.HTML(
            {}, html_template=_TEMPLATE, js_on_load=scripts.read("stack_dropping.js"), elem_id="several", padding=False
        )

    def connect(self, restored: list[Any]) -> None:
        """Answer what is dropped, and the row; `restored` is what a stack in the form may change."""
        private: dict[str, Any] = {"api_visibility": "private"}
        dropped, changed = self.stage.dropped, [*restored, self.stage.warned, self.html]
        dropped.upload(self.take, dropped, [*changed, dropped, self.offered], **private)
        self.html.choose(self.choose, self.offered, changed, show_progress="hidden", **private)

    @mended
    def take(self, dropped: str | Sequence[str] | None) -> Any:
        """The form with the stack of a dropped picture, ours or another tool's, and of several the row to choose from.

        What of it could not be used stays on the page in words.
        """
        files = [file for file in ([dropped] if isinstance(dropped, str) else dropped or ()) if file]
        if not files:
            return gr.skip()
        cleared: Update = {self.stage.dropped: None, self.offered: Offered(), self.html: {}}
        try:
            if len(files) > 1:
                return cleared | self._several([Path(file) for file in files])
            # `Open` names pictures of this workspace too. A sheet carries no recipe, so it is shown and the form left.
            path = Path(files[0])
            if path.parent == self.context.renders and self.stage.is_sheet(path):
                return cleared | {self.stage.opened: Opened(None, path)}
            return cleared | self._opened(self._read(path))
        finally:
            leftovers.taken(self.context, files)

    @mended
    def choose(self, offered: Offered, event: gr.EventData) -> Update:
        """The form with another of the stacks that were dropped. Raises: DataError for one that isn't offered."""
        index = getattr(event, "index", None)
        if type(index) is not int or not 0 <= index < len(offered.reads):
            raise DataError(say("several.gone"))
        return self._opened(offered.reads[index]) | {self.html: self._shown(offered, index)}

    def _several(self, paths: Sequence[Path]) -> Update:
        """The first that can be opened in the form, and the row with the others."""
        reads: list[Read] = []
        thumbnails, left = [], []
        for path in paths[:MOST]:
            try:
                reads.append(self._read(path))
                thumbnails.append(cards.picture(self.context, path, path.name))
            except UserError as error:
                reason = str(error).replace(f"{path.parent}/", "")  # the server's folders are nobody's business
                name = plain(path.name, _LONGEST_NAME)
                left.append(say("several.left", name=name, reason=plain(reason, _LONGEST_REASON)))
        if len(paths) > MOST:
            left.append(say("several.too_many", num=len(paths) - MOST, most=MOST))
        if not reads:
            notice = views.notice_html("bad", say("several.none", num=len(paths)), left)
            # The page may know more to do with them (`library_drop.js`).
            return {self.stage.warned: gr.update(value=notice, visible=True), self.html: {"none": next(self._counter)}}
        offered = Offered(tuple(reads), tuple(thumbnails), tuple(left))
        return self._opened(reads[0]) | {self.offered: offered, self.html: self._shown(offered, 0)}

    def _shown(self, offered: Offered, index: int) -> dict[str, Any]:
        """The row: what is open, what else can be, and what can't."""
        return {
            "says": say("several.says", num=len(offered.reads), all=len(offered.reads) + len(offered.left)),
            "pictures": [
                {"name": read.name, "picture": thumbnail}
                for read, thumbnail in zip(offered.reads, offered.thumbnails, strict=True)
            ],
            "open": index, "left": list(offered.left),
        }  # fmt: skip

    def _read(self, path: Path) -> Read:
        """What a picture carries. Raises: DataError, AdapterError, ConfigError."""
        stack, notes = read_picture(self.context, path)
        # Another tool's stack may be cut to the rows there are; our own is taken whole or not at all.
        if not notes and len(stack.adapters) > ROWS:
            raise AdapterError(say("stack.too_many_loras", num=len(stack.adapters), most=ROWS))
        picture = stack_desk.picture_of(self.context, path)
        return Read(plain(path.name, _LONGEST_NAME), stack, tuple(notes), picture)

    def _opened(self, read: Read) -> Update:
        return self.taken(read.stack, list(read.notes), say("stack.not_taken"), read.picture)
