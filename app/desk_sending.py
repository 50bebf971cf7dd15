"""`Draw many of this`: the stack that lies on Stack's desk, named or not, is opened in Batch as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gradio as gr

from app import desk_stacks, stack_desk
from app.context import Context
from app.notices import mended
from app.texts import say
from trainer.config import StackConfig

_SCRIPT = "watch('value', () => { if (props.value?.opens) trigger('open', {opens: props.value.opens}); });"


class Sending:
    """The button, and a hidden part by which the page is told what to open (`open_in_tab`)."""

    def __init__(self, context: Context, stacked: Callable[[dict[Any, Any]], StackConfig]) -> None:
        self.context, self.stacked, self._counter = context, stacked, itertools.count(1)

    def draw(self) -> None:
        """Draw them here."""
        self.button = gr.Button(say("stack.draw_many"), size="sm", min_width=110, elem_id="draw-many")
        self.sent = gr.HTML(None, html_template="", js_on_load=_SCRIPT, visible="hidden", elem_id="desk-sent")

    def connect(self, inputs: set[Any]) -> None:
        """Answer the button; `inputs` are what a stack is made of."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.button.click(self.send, inputs, self.sent, **still)

    @mended
    def send(self, held: dict[Any, Any], request: gr.Request) -> dict[str, Any]:
        """What is opened: the stack that the form holds, with its picture where that is shown."""
        stack, desk = self.stacked(held), self.context.desks.of(request.session_hash)
        key = desk_stacks.keep(self.context, stack, stack_desk.picture_of_stack(desk, stack))
        # The number is another each time: the same stack may be taken along again.
        return {"opens": f"desk {key}", "number": next(self._counter)}
