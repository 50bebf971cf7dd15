"""The buttons of the Library's panel about old and new: train again with new pictures, and take the better one."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import item_details, retraining, verdict_view
from app.library_items import Item, Shelf
from app.texts import say
from trainer.report import compared


class AgainRow:
    """The row, of which a button is seen where there is something that it can do."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def draw(self) -> None:
        """Draw it, unseen."""
        with gr.Row():
            hidden: dict[str, Any] = {"visible": False, "min_width": 210}
            self.better = gr.Button(say("verdict.use_better"), variant="primary", elem_id="library-better", **hidden)
            self.again = gr.Button(say("again.button"), elem_id="library-again", **hidden)
        # What they open, as `open_in_tab` takes it.
        self.takes = gr.Textbox(visible=False, elem_classes="unkept")
        self.trains = gr.Textbox(visible=False, elem_classes="unkept")

    def opens(self) -> list[tuple[Any, Any]]:
        """The buttons, each with the box that says what it opens."""
        return [(self.better, self.takes), (self.again, self.trains)]

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.better, self.again, self.takes, self.trains]

    def updates(self, item: Item) -> dict[Any, Any]:
        """The row for a thing that was chosen."""
        context = self.shelf.context
        run = item.key if item.kind == "runs" else item_details.run_of(self.shelf, item) if item.kind == "loras" else ""
        folder = context.runs / run
        takes = verdict_view.better(context, folder) if run else ""
        can = retraining.is_possible(context, item.kind, item.key)
        label = verdict_view.button_label(compared.read(folder) if run else None)
        return {
            self.better: gr.update(visible=bool(takes), value=label),
            self.takes: takes,
            self.again: gr.update(visible=can),
            self.trains: f"again {item.kind}/{item.key}" if can else "",
        }
