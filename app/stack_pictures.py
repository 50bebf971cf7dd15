"""Where the Stack tab's pictures are seen: the picture, how far it is, what was drawn before, and what to compare with.

The picture on the page stays until the next picture is there. A request says in turns how far it is; the next request
of the same page ends it (`render_requests`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from PIL import Image

from app import cards, progress_lines, sheets, stack_desk, views
from app.context import Context
from app.drawing_preview import EACH_S, Looking, put_up
from app.notices import mended, tell
from app.recipe_index import RecipeIndex
from app.recipes import read_recipe, recent, text_of
from app.render_requests import Cancelled, Desk, Rendering, Work
from app.sheets import Sheet
from app.stack_live import KEYS
from app.texts import say
from trainer.config import StackConfig
from trainer.errors import UserError

if TYPE_CHECKING:
    from trainer.render.engine import Engine
    from trainer.render.picture_metadata import Picture

QUICK_STEPS = 3
_HEIGHT_PX = 384
_EMPTY_PLACE = Image.new("RGBA", (64, 64), (128, 128, 128, 48))  # of a cell that was not drawn

Make = Callable[["Engine", Rendering], Sheet]
Update = dict[Any, Any]


@dataclass(eq=False)  # no two are equal, so that the page sees each of them come
class Opened:
    """A stack that was put into the form, with its own picture where there is one; a sheet has no stack."""

    stack: StackConfig | None
    picture: Path | None = None


class Stage:
    """The components and what is shown in them."""

    def __init__(self, context: Context) -> None:
        self.context, self.index = context, RecipeIndex(context)
        self.look_costs: dict[tuple[str, int, int], float] = {}
        self.files = gr.State([])  # names of the recent pictures
        self.opened = gr.State(None)  # what was opened last, from wherever
        self.asked = gr.State(0)  # counts up when another tab has changed the form
        self.asked.elem_id = "stack-asked"

    # Drawing.

    def draw(self, below_recent: Callable[[], None] = lambda: None) -> None:
        """Draw the picture and what belongs to it here; `below_recent` draws more below the recent pictures."""
        with gr.Column(elem_classes="easel", elem_id="easel"):
            # A picture, two beside each other, or the cells of a sheet: of these three one is seen.
            self.picture = gr.Image(
                label=say("word.picture"), type="filepath", format="png", interactive=False, height=_HEIGHT_PX,
                buttons=["fullscreen"], elem_id="picture", elem_classes=["canvas", "viewing"],
            )  # fmt: skip
            self.compare = gr.ImageSlider(
                label=say("stack.compare"), type="filepath", format="png", interactive=False, visible=False,
                max_height=_HEIGHT_PX, height=_HEIGHT_PX, buttons=["fullscreen"], elem_id="compare",
                elem_classes=["canvas", "viewing"],
            )  # fmt: skip
            self.cells = gr.Gallery(
                label=say("stack.cells"), height=_HEIGHT_PX, visible=False, object_fit="contain",
                allow_preview=False, interactive=False, buttons=[], format="png", elem_id="cells",
                elem_classes="viewing",
            )  # fmt: skip
            self.progress = gr.HTML(progress_lines.line(say("stack.idle")), js_on_load=KEYS, elem_id="drawing")
            self.shown = gr.HTML(visible="hidden", elem_id="shown-picture")  # its address, which regions are painted on
            # What draws, and what is done with what is drawn.
            with gr.Row(elem_classes="easel-buttons"):
                self.render = gr.Button(
                    say("stack.render"), variant="primary", min_width=110, scale=3, elem_id="render"
                )
                self.cancel = gr.Button(
                    say("button.cancel"), interactive=False, min_width=80, scale=1, elem_id="cancel-render"
                )
                self.live = gr.Checkbox(
                    True, label=say("stack.live"), container=False, min_width=76, scale=0, elem_classes="toggle",
                    elem_id="live",
                )  # fmt: skip
            with gr.Row(elem_classes="easel-buttons") as self.below:
                self.pin = gr.Button(say("stack.pin"), size="sm", min_width=110, interactive=False, elem_id="pin")
                self.download = gr.DownloadButton(
                    say("stack.download"), size="sm", min_width=110, interactive=False, elem_id="download"
                )
        with gr.Column(elem_classes="stage-rest"):
            self._draw_rest(below_recent)

    def _draw_rest(self, below_recent: Callable[[], None]) -> None:
        self.gallery = gr.Gallery(
            label=say("stack.recent"), columns=8, height=150, object_fit="contain",
            allow_preview=False, interactive=False, buttons=[], fit_columns=False, elem_id="recent",
            elem_classes="viewing",
        )  # fmt: skip
        below_recent()
        self.warned = gr.HTML(visible=False, elem_id="stack-warnings")
        self.infotext = gr.Textbox(
            label=say("stack.made_from"), lines=2, max_lines=6, interactive=False, buttons=["copy"], elem_id="infotext"
        )
        self.dropped = gr.File(
            file_count="multiple", file_types=[".png", ".webp", ".jpg", ".jpeg"], label=say("stack.drop"), height=110,
            elem_id="recipe-png",
        )  # fmt: skip

    def outputs(self) -> list[Any]:
        """Everything that a picture may change."""
        return [
            self.picture, self.compare, self.cells, self.progress, self.cancel, self.pin, self.download, self.infotext,
            self.gallery, self.files, self.warned, self.shown,
        ]  # fmt: skip

    def connect(self) -> None:
        """Answer the stage's own buttons."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.cancel.click(self.stop, None, [self.progress, self.cancel], **still)
        self.pin.click(self.pin_or_unpin, None, self.outputs(), **still)

    # Pictures and sheets.

    def pictures(self, desk: Desk, stack: StackConfig, quick: bool) -> Iterator[Update]:
        """How far the stack's picture is, in turns, then the picture; `quick` shows one of few steps before it."""
        with_quick = quick and stack.steps > 2 * QUICK_STEPS  # else it hardly comes sooner

        def draw(rendering: Rendering) -> Iterator[Update]:
            rendering.look = lambda engine: Looking(engine, rendering, self.look_costs).look
            if with_quick:
                few = stack.model_copy(update={"steps": QUICK_STEPS})
                first = Work(rendering, lambda: self.context.render(few, rendering))
                yield from self._turns(desk, first, say("stack.preview"))
                yield self._passing(desk, first.result.image)
                rendering.restart()  # or the whole picture would count from the quick picture's steps
            whole = Work(rendering, lambda: self._drawn(stack, rendering))
            yield from self._turns(desk, whole, say("word.picture"))
            yield self._finished(desk, *whole.result)

        yield from self._answered(desk, draw, stack)

    def sheet(self, desk: Desk, stack: StackConfig, make: Make, name: str) -> Iterator[Update]:
        """How far the sheet is, in turns, then its pictures, each of which gives its stack.

        Of one that was cancelled, those that are there.
        """

        def drawn(rendering: Rendering) -> tuple[Path, list[str]]:
            with self.context.engine(stack, rendering) as engine:
                sheet = make(engine, rendering)
                warnings = engine.warnings(engine.resolve(stack))
            if not rendering.is_kept:
                rendering.check()
            return sheets.save(sheet, self.context.renders, name), warnings

        def draw(rendering: Rendering) -> Iterator[Update]:
            work = Work(rendering, lambda: drawn(rendering))
            yield from self._turns(desk, work, say("stack.sheet"))
            path, warnings = work.result
            yield self.show_sheet(desk, path) | self.show_recent() | self._warn(warnings)

        yield from self._answered(desk, draw, None)

    def _answered(
        self, desk: Desk, draw: Callable[[Rendering], Iterator[Update]], stack: StackConfig | None
    ) -> Iterator[Update]:
        """What drawing answers, and the end of it on the page; a request that was superseded says nothing more."""
        rendering = desk.begin(stack)
        # Every turn says both buttons' labels: Gradio 6.31 empties those of buttons that a turn leaves out.
        going = {self.cancel: _button(say("button.cancel"), True), self.pin: self._pin_button(desk)}
        over = going | {
            self.progress: progress_lines.line(say("stack.idle")),
            self.cancel: _button(say("button.cancel"), False),
        }
        try:
            yield going | {self.progress: progress_lines.line(say("stack.beginning"), 0.0)}
            for update in draw(rendering):
                going[self.pin] = self._pin_button(desk)
                yield going | update
            over[self.pin] = self._pin_button(desk)
            yield over | {self.progress: progress_lines.line(progress_lines.ended(rendering))}
        except Cancelled:
            if not rendering.is_superseded:
                yield over | self._as_before(desk) | {self.progress: progress_lines.line(say("job.cancelled"))}
        except Exception:
            desk.stack = None  # the same may be asked for once more
            yield over | self._as_before(desk)
            raise
        finally:
            desk.end(rendering)

    def _turns(self, desk: Desk, work: Work[Any], what: str) -> Iterator[Update]:
        """How far it is, whenever that is another thing to say, and what is seen of it meanwhile."""
        rendering, said, seen, seen_at = work.rendering, "", None, 0.0
        for _ in work.turns():
            if rendering.is_cancelled:  # what is kept of it is on its way
                continue
            update: Update = {}
            words = progress_lines.words(rendering, what)
            if words != said:
                said, update[self.progress] = words, progress_lines.line(words, rendering.share)
            newest = rendering.newest
            if newest is not None and newest is not seen and time.monotonic() - seen_at >= EACH_S:
                seen, seen_at = newest, time.monotonic()
                update |= self._passing(desk, str(put_up(self.context, desk, newest)))
            if update:
                yield update

    def _drawn(self, stack: StackConfig, rendering: Rendering) -> tuple[Picture, list[str]]:
        """The picture, and what its LoRAs say of being for another base."""
        with self.context.engine(stack, rendering) as engine:
            picture = engine.render(stack)
            return picture, engine.warnings(picture.stack)

    def _finished(self, desk: Desk, picture: Picture, warnings: list[str]) -> Update:
        from trainer.render.picture_metadata import save  # loads torch, which the page itself must not

        path = save(picture, self.context.renders)
        return self.show(desk, path, picture.infotext) | self.show_recent() | self._warn(warnings)

    def _warn(self, lines: list[str]) -> Update:
        """Lines in a box that stays until the next picture."""
        html = views.notice_html("plain", say("stack.other_base"), lines)
        return {self.warned: gr.update(value=html, visible=bool(lines))}

    # What is shown.

    def show(self, desk: Desk, path: Path, text: str, stack: StackConfig | None = None) -> Update:
        """A picture of ours that carries its recipe; `stack` is what the form holds, where that was taken from it."""
        public = self.context.published(path)
        desk.shown, desk.stack = path, stack or desk.stack
        shown = self._placed(desk, str(public)) | {
            self.infotext: gr.update(value=text, visible=True),
            self.shown: f'<i data-address="{cards.address(public)}"></i>',
        }
        stack_desk.keep(self.context, desk)
        return shown | self._downloading(path, say("stack.download")) | {self.pin: self._pin_button(desk)}

    def show_nothing(self, desk: Desk) -> Update:
        """An empty easel, for a stack that was not drawn yet."""
        desk.shown = desk.stack = None
        hidden = {part: gr.update(visible=False) for part in (self.compare, self.infotext)}
        update = self._placed(desk, None) | hidden | {self.picture: gr.update(value=None, visible=True)}
        stack_desk.keep(self.context, desk)
        buttons = {
            self.pin: self._pin_button(desk),
            self.cancel: _button(say("button.cancel"), False),
            self.download: gr.update(interactive=False, label=say("stack.download")),
        }
        return update | buttons | {self.shown: "", self.progress: progress_lines.line(say("stack.to_be_drawn"))}

    def show_sheet(self, desk: Desk, path: Path) -> Update:
        """A sheet, with its pictures to click where they lie beside it."""
        desk.sheet, desk.stack, desk.is_passing, cells = path, None, False, sheets.cells_of(path)
        stack_desk.keep(self.context, desk)
        hidden = {part: gr.update(visible=False) for part in (self.picture, self.compare, self.infotext)}
        if cells is None:
            shown = {
                self.picture: gr.update(value=str(self.context.published(path)), visible=True),
                self.cells: gr.update(visible=False),
            }
        else:
            labels = dict(zip(cells.paths, cells.labels, strict=False))
            pictures: list[tuple[Any, str]] = [
                (public, labels[cell]) for cell, public in self.context.published_of(cells.paths)
            ]
            pictures += [(_EMPTY_PLACE, label) for label in cells.labels[len(cells.paths) :]]
            columns = cells.num_columns
            shown = {self.cells: gr.update(value=pictures, columns=columns, visible=True, selected_index=None)}
        return hidden | shown | self._downloading(path, say("stack.download_sheet"))

    def is_sheet(self, path: Path) -> bool:
        """Whether a picture has no recipe of its own, whatever it is called."""
        return self.index.picture(path).seed is None

    @mended
    def bring_back(self, request: gr.Request) -> Any:
        """What this browser's last page had on the easel."""
        desk = stack_desk.of(self.context, request)
        if not stack_desk.bring_back(self.context, desk):
            return gr.skip()
        update = self._shown_again(desk, desk.shown) if desk.shown else {}
        return update | self.show_sheet(desk, desk.sheet) if desk.sheet else update

    def _shown_again(self, desk: Desk, path: Path) -> Update:
        # `show` puts the sheet away, which the browser had over its picture.
        sheet, stack, text = desk.sheet, None, ""
        with suppress(UserError):  # its LoRAs are gone
            text = text_of(path)
            stack = read_recipe(self.context, path)
        update = self.show(desk, path, text, stack)
        desk.sheet = sheet
        return update

    def show_recent(self) -> Update:
        """The newest pictures, each with its seed."""
        thumbnails = self.context.thumbnails(recent(self.context))
        shown = [(str(thumbnail), self._caption(path)) for path, thumbnail in thumbnails]
        return {
            self.gallery: gr.update(value=shown, selected_index=None),
            self.files: [path.name for path, _ in thumbnails],
        }

    def _caption(self, path: Path) -> str:
        """A recent picture's seed, or that it is a sheet."""
        seed = self.index.picture(path).seed
        return say("stack.a_sheet") if seed is None else say("item.seed", seed=seed)

    def _placed(self, desk: Desk, picture: Any) -> Update:
        """The desk's picture in its place, over any sheet."""
        desk.sheet, desk.is_passing = None, False
        return self._in_place(desk, picture)

    def _passing(self, desk: Desk, picture: Any) -> Update:
        """A picture that is seen until the next one is there; the desk's own stay what they are."""
        desk.is_passing = True
        return self._in_place(desk, picture)

    def _as_before(self, desk: Desk) -> Update:
        """What the desk has, in the place of a picture that was only seen for a while."""
        if not desk.is_passing:
            return {}
        desk.is_passing = False
        if desk.sheet is not None and desk.sheet.is_file():
            return self.show_sheet(desk, desk.sheet)
        shown = desk.shown if desk.shown and desk.shown.is_file() else None
        return self._in_place(desk, str(self.context.published(shown)) if shown else None)

    def _in_place(self, desk: Desk, picture: Any) -> Update:
        """A picture in its place, beside the pinned picture if there is one."""
        if desk.pinned is not None and not desk.pinned.is_file():  # thrown away meanwhile
            desk.pinned = None
        update: Update = {
            self.picture: gr.update(value=picture, visible=desk.pinned is None),
            self.cells: gr.update(visible=False),
        }
        if desk.pinned is not None:
            pinned = str(self.context.published(desk.pinned))
            update[self.compare] = gr.update(value=(pinned, picture), visible=True)
        return update

    def _downloading(self, path: Path, label: str) -> Update:
        public = str(self.context.published(path))
        return {self.download: gr.update(value=public, label=label, interactive=True)}

    # Buttons.

    def _pin_button(self, desk: Desk) -> Any:
        return _button(say("stack.unpin") if desk.pinned else say("stack.pin"), bool(desk.shown or desk.pinned))

    @mended
    def stop(self, request: gr.Request) -> Update:
        """End what is drawn for this page."""
        stopped = self.context.desks.of(request.session_hash).stop()
        return {
            self.progress: progress_lines.line(say("job.cancelled") if stopped else say("stack.nothing_drawn")),
            self.cancel: _button(say("button.cancel"), False),
        }

    @mended
    def pin_or_unpin(self, request: gr.Request) -> Any:
        """Keep the present picture to compare the next pictures with, or let it go."""
        desk = stack_desk.of(self.context, request)
        shown = desk.shown if desk.shown and desk.shown.is_file() else None
        desk.pinned = None if desk.pinned else shown
        if shown is None:
            return self.show_nothing(desk)
        if desk.pinned:
            tell(say("stack.pinned"))
        update = self._placed(desk, str(self.context.published(shown))) | {self.pin: self._pin_button(desk)}
        stack_desk.keep(self.context, desk)
        return update | ({} if desk.pinned else {self.compare: gr.update(visible=False)})


def _button(label: str, interactive: bool) -> Any:
    """A button's state; without its label Gradio 6.31 shows it empty after a handler that answers in turns."""
    return gr.update(value=label, interactive=interactive)
