"""Saving the stack under a name, and loading a saved stack: the files are `saved_stacks`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import saved_stacks, stack_desk
from app.context import Context
from app.notices import mended, tell
from app.texts import say
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.printing import plain

Update = dict[Any, Any]


class Saving:
    """The section's components and what happens when they are used."""

    def __init__(self, context: Context, stacked: Callable[[Update], StackConfig]) -> None:
        self.context, self.stacked = context, stacked
        with gr.Accordion(say("stack.saved_stacks"), open=False, elem_id="saved-stacks"):
            with gr.Row():
                self.saved = gr.Dropdown(
                    [], value=None, label=say("stack.saved_stack"), min_width=150, scale=3, interactive=True,
                    elem_id="saved-stack", elem_classes="unkept",
                )  # fmt: skip
                self.load = gr.Button(
                    say("stack.load"), min_width=90, scale=1, elem_id="load-stack", elem_classes="beside"
                )
            with gr.Row():
                self.name = gr.Textbox(
                    "", label=say("word.name"), placeholder=say("stack.name_example"), max_length=80, min_width=150,
                    scale=3, elem_id="stack-name",
                )  # fmt: skip
                self.save = gr.Button(
                    say("button.save"), min_width=90, scale=1, elem_id="save-stack", elem_classes="beside"
                )

    def connect(self, inputs: set[Any], restore: Callable[[StackConfig], Update], restored: list[Any]) -> None:
        """Answer the buttons; `restore` gives what puts a stack into the form, which changes `restored`."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

        @mended
        def load(name: str | None) -> Update:
            path = next((path for path in saved_stacks.every(self.context) if path.name == name), None)
            if path is None:
                raise ConfigError(say("stack.none_saved_chosen"))
            return restore(saved_stacks.read(self.context, path))

        self.load.click(load, self.saved, restored, **still)
        self.save.click(self.put_by, {*inputs, self.name}, [self.name, self.saved], **still)

    @mended
    def put_by(self, held: Update, request: gr.Request) -> Update:
        """Save what the form holds, with the picture that is shown."""
        name = (held[self.name] or "").strip()
        if not name:
            raise ConfigError(say("stack.no_name"))
        desk, stack = self.context.desks.of(request.session_hash), self.stacked(held)
        path = saved_stacks.save(self.context, stack, name, stack_desk.picture_of_stack(desk, stack))
        tell(say("stack.is_saved", name=plain(path.stem)))
        return {self.name: "", **self.offer(path.name)}

    def offer(self, chosen: str | None = None) -> Update:
        """What there is to load."""
        choices = [(plain(path.stem, 120), path.name) for path in saved_stacks.every(self.context)]
        return {self.saved: gr.update(choices=choices, value=chosen)}
