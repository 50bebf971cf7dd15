"""Start here: three ways in on an empty page, and under them what Show me draws as it learns."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gradio as gr
from cachetools import TTLCache, cached

from app import cards, show_me, views
from app.change_polling import News
from app.context import Context, Refresh
from app.kept_fields import STILL
from app.notices import mended, tell
from app.texts import say
from trainer.errors import DataError
from trainer.printing import escape

_FOCUS_UPLOAD = (
    "() => setTimeout(() => document.querySelector('#dataset-files button, #dataset-files input')?.focus(), 400)"
)


# In turn: a look that was begun before a press would hide what the press has shown.
_IN_TURN: dict[str, Any] = {"concurrency_id": "start", "concurrency_limit": 1}


class StartHere:
    """The panel above the tabs and what happens when it is used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # Read once for all that ask within half a second, of every page.
        self._scene = cached(TTLCache(maxsize=1, ttl=0.5), lock=threading.Lock())(self._scene_now)

    def draw_door(self) -> None:
        """Draw the button that leads back to the panel from anywhere."""
        self.door = gr.Button(say("start.title"), size="sm", scale=0, min_width=100, elem_id="start-door")
        self.asked = gr.State(False)  # whether the panel was asked for on this page

    def draw(self) -> None:
        """Draw the panel and the scene, one of them or none seen."""
        with gr.Column(visible=False, elem_id="start-here", elem_classes="start") as self.panel:
            gr.HTML(f'<div class="welcome"><h2>{say("start.title")}</h2><p>{say("start.welcome")}</p></div>')
            with gr.Row():
                self.show = gr.Button(say("start.show_me"), variant="primary", min_width=130, elem_id="show-me")
                self.pictures = gr.Button(say("start.my_pictures"), min_width=130, elem_id="my-pictures")
                self.model = gr.Button(say("start.my_model"), min_width=130, elem_id="my-model")
            self.bases = gr.HTML(visible=False, elem_id="my-bases")
        with gr.Column(visible=False, elem_id="show-me-scene", elem_classes="start") as self.scene:
            with gr.Row(elem_classes="scene-head"):
                self.progress = gr.HTML(elem_id="show-me-progress", padding=False)
                small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 110}
                self.cancel = gr.Button(say("button.cancel"), variant="stop", elem_id="show-me-cancel", **small)
                self.open = gr.Button(
                    say("button.open_in_stack"), variant="primary", visible=False, elem_id="show-me-open", **small
                )
                self.again = gr.Button(
                    say("start.again"), variant="primary", visible=False, elem_id="show-me-again", **small
                )
                self.close = gr.Button(say("button.close"), visible=False, elem_id="show-me-close", **small)
            self.gallery = gr.HTML(elem_id="show-me-pictures", padding=False)
        self.wanted = gr.Textbox(visible=False)  # what `open` opens, as `open_in_tab` takes it
        self.seen = gr.State({})
        self.opens = [(self.open, self.wanted)]

    def connect(self, news: News, tabs: gr.Tabs) -> None:
        """Answer the buttons, and look whenever there is more to see; call once when all is drawn."""
        view = [
            self.panel, self.scene, self.progress, self.gallery, self.cancel, self.open, self.again, self.close,
            self.wanted, self.seen, self.asked,
        ]  # fmt: skip
        look, still = Refresh(self.look, [self.seen, self.asked], view, in_turn=_IN_TURN), STILL | _IN_TURN
        news.listen("start", self._version, look, self._progress)
        gr.on([self.show.click, self.again.click], self.begin, None, view, **still)
        self.cancel.click(self.end, self.seen, view, **still)
        self.close.click(self.closed, None, view, **still)
        self.door.click(self.toggled, self.asked, [self.panel, self.asked], **still)
        self.pictures.click(lambda: gr.update(selected="dataset"), None, tabs, js=_FOCUS_UPLOAD, queue=False, **STILL)
        self.model.click(self.tell_bases, None, self.bases, **STILL)

    def opened(self, asked: bool = False) -> dict[Any, Any]:
        """The scene until it is closed; else the panel where it was asked for, or on an empty workspace."""
        shown = show_me.read(self.context)
        if shown and not shown.closed:
            return self._changes({}, asked)
        return {self.panel: gr.update(visible=asked or self._is_empty()), self.scene: gr.update(visible=False)}

    def toggled(self, asked: bool) -> dict[Any, Any]:
        """The panel, or none of it where it is shown already because it was asked for."""
        return {self.panel: gr.update(visible=not asked or self._is_empty()), self.asked: not asked}

    def _is_empty(self) -> bool:
        return not self.context.dataset_names() and not self.context.runner.every()

    def _version(self, _: gr.Request) -> Any:
        """What `look` depends on, but for how far it is."""
        scene = self._scene()
        shown = show_me.read(self.context)
        is_closed = shown is None or shown.closed
        return [self._is_empty(), is_closed, scene and [scene.pictures, scene.is_over, scene.progress.headline]]

    def _progress(self, _: gr.Request) -> Any:
        scene = self._scene()
        return scene and scene.progress

    def _scene_now(self) -> show_me.Scene | None:
        shown = show_me.read(self.context)
        return show_me.scene(self.context, shown) if shown else None

    @mended
    def begin(self) -> dict[Any, Any]:
        show_me.begin(self.context)
        return self._changes({})

    @mended
    def end(self, before: dict[str, Any]) -> dict[Any, Any]:
        show_me.cancel(self.context)
        tell(say("start.was_cancelled"))
        return self._changes(before)

    @mended
    def closed(self) -> dict[Any, Any]:
        show_me.close(self.context)
        return {self.seen: {}, self.asked: False, **self.opened()}

    @mended
    def look(self, before: dict[str, Any], asked: bool) -> Any:
        """What is new of a scene that is looked at; else whether there is a scene, or an empty page."""
        shown = show_me.read(self.context)
        if before and shown and not shown.closed:
            return self._changes(before, asked) or gr.skip()
        return {self.seen: {}, **self.opened(asked)}

    def tell_bases(self) -> Any:
        names = ", ".join(label for label, _ in self.context.base_choices())
        lines = [say("start.bases", names=names), say("start.other_base")]
        return gr.update(value=views.notice_html("plain", say("start.models"), lines), visible=True)

    def _changes(self, before: dict[str, Any], asked: bool = False) -> dict[Any, Any]:
        """Updates of what is new since this page last looked."""
        shown = show_me.read(self.context)
        if shown is None:
            raise DataError(say("start.nothing_to_see"))
        scene = show_me.scene(self.context, shown)
        result = show_me.result(self.context, shown)
        after: dict[str, Any] = {
            "pictures": [str(path) for path, _ in scene.pictures], "bar": scene.progress, "over": scene.is_over,
            "result": result.name if result else "",
        }  # fmt: skip
        if after == before:
            return {}
        update: dict[Any, Any] = {
            self.panel: gr.update(visible=asked),
            self.asked: asked,
            self.scene: gr.update(visible=True),
            self.progress: views.progress_html(say("start.show_me"), scene.progress),
            self.cancel: gr.update(visible=not scene.is_over),
            self.again: gr.update(visible=scene.is_over and result is None),
            self.close: gr.update(visible=scene.is_over),
            self.open: gr.update(visible=result is not None),
            self.wanted: f"picture {result.name}" if result else "",
            self.seen: after,
        }
        if after["pictures"] != before.get("pictures"):
            update[self.gallery] = _strip(self.context, scene.pictures)
        return update


def _strip(context: Context, pictures: list[tuple[Path, str]]) -> str:
    """The pictures in one row, which is moved sideways when they are many, each with its caption below."""
    captions = dict(pictures)
    figures = "".join(
        f'<figure><img src="{cards.address(thumbnail)}" alt=""><figcaption>{escape(captions[path])}</figcaption>'
        f"</figure>"
        for path, thumbnail in context.thumbnails(list(captions))
    )
    return f'<div class="scene-strip" role="group" tabindex="0" aria-label="{say("start.gallery")}">{figures}</div>'
