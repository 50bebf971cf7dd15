"""The row of the Library that says what was dropped, with what opens it, or keeps what waits to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import arrival_view, pending_imports
from app.arrival import Arrival
from app.context import Context
from app.notices import mended
from app.texts import say
from trainer.config import TrainConfig


class ArrivalRow:
    """The row's parts; none is seen before something is dropped."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw them."""
        self.opens = gr.Textbox("", visible=False, elem_classes="unkept")
        self.waiting = gr.Textbox("", visible=False, elem_classes="unkept")
        with gr.Row(visible=False, elem_id="library-arrival") as self.row:
            self.html = gr.HTML()
            self.go = gr.Button(say("button.open"), scale=0, min_width=150, elem_id="open-arrival")
            with gr.Column(visible=False, scale=0, min_width=130) as self.asked:
                self.keep = gr.Button(say("offer.keep"), variant="primary", elem_id="keep-arrival")
                self.leave = gr.Button(say("offer.leave"), elem_id="leave-arrival")

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.row, self.html, self.go, self.opens, self.waiting, self.asked]

    def connect(self) -> None:
        """Have what waits forgotten where it is declined."""
        self.leave.click(self.decline, self.waiting, self.outputs(), api_visibility="private")

    def updates(self, arrivals: Sequence[Arrival], form: TrainConfig | None, where: dict[str, str]) -> dict[Any, Any]:
        """What is said of arrivals; `form` is what stands in Train, `where` what a button that opens something says."""
        # One button for all: it opens the first thing that can be opened.
        opens = next((arrival.opens for arrival in arrivals if arrival.opens), None)
        waiting = [arrival.offer for arrival in arrivals if arrival.offer]
        return {
            self.row: gr.update(visible=True),
            self.html: arrival_view.html(self.context, arrivals, form),
            self.go: gr.update(visible=opens is not None, value=where[opens[0]] if opens else ""),
            self.opens: " ".join(opens) if opens else "",
            self.waiting: " ".join(waiting),
            self.asked: gr.update(visible=bool(waiting)),
        }

    @mended
    def decline(self, waiting: str) -> dict[Any, Any]:
        for word in (waiting or "").split():
            pending_imports.forget(self.context, word)
        return {self.row: gr.update(visible=False), self.html: "", self.waiting: ""}
