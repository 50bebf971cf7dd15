"""The box in the Train tab that says what is trained again, and whether it begins with the old LoRA."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import retraining
from app.context import Context
from app.texts import say
from trainer.errors import UserError
from trainer.printing import escape, plain


class RetrainBox:
    """The box, which is there while a training is to be compared with an old LoRA."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw it, unseen."""
        # What is trained again, as `retraining.of` takes it; "" for nothing.
        self.key = gr.Textbox("", visible=False, elem_id="train-again")
        with gr.Column(visible=False, elem_id="again-box", elem_classes="again-box") as self.box:
            self.words = gr.HTML(padding=False, elem_id="again-words")
            with gr.Row(elem_classes="go-on-row"):
                self.from_old = gr.Checkbox(
                    False, label=say("again.from_old"), info=say("again.from_old_help"), container=False, scale=3,
                    min_width=230, elem_id="again-from-old", elem_classes="unkept",
                )  # fmt: skip
                self.leave = gr.Button(say("again.leave"), size="sm", scale=1, min_width=110, elem_id="again-leave")

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.box, self.words, self.from_old]

    def updates(self, key: str, source: str) -> dict[Any, Any]:
        """The box for what is trained again, where the form goes on from this source."""
        if not key:
            return {self.box: gr.update(visible=False)}
        try:
            again = retraining.of(self.context, key)
        except UserError:  # the panel says it
            words, is_from_old = say("again.gone"), False
        else:
            words = say("again.words", name=again.name, old=plain(again.old.name, 80))
            is_from_old = source == again.old.sha256
        return {
            self.box: gr.update(visible=True),
            self.words: f"<p><b>{say('again.title')}</b> {escape(words, 600)}</p>",
            self.from_old: is_from_old,
        }
