"""A LoRA's own weight: set in the Library's panel, and taken wherever its card puts it into a stack."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import item_notes
from app.context import Context
from app.item_notes import MOST_WEIGHT, Note
from app.library_items import Item, Shelf
from app.notices import mended
from app.texts import say


def own_weight(context: Context, sha256: str) -> float:
    """The weight that was said of a LoRA, 1 where none was."""
    return item_notes.read(Shelf(context).notes, "loras").get(sha256, Note()).weight


class OwnWeight:
    """The slider and what happens when it is moved."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def draw(self) -> None:
        """Draw the slider here, for LoRAs alone."""
        self.slider = gr.Slider(
            -MOST_WEIGHT, MOST_WEIGHT, value=1.0, step=0.05, label=say("library.weight"),
            info=say("library.weight_help"), interactive=True, visible=False, elem_id="library-weight",
        )  # fmt: skip

    def connect(self, key: Any, still: dict[str, Any]) -> Any:
        """Keep what is set for the thing whose kind and key stand in that box; the event that does."""
        return self.slider.input(self.keep, [key, self.slider], None, trigger_mode="always_last", **still)

    def updates(self, item: Item) -> dict[Any, Any]:
        """The slider as the chosen thing has it."""
        return {self.slider: gr.update(value=item.note.weight, visible=item.kind == "loras")}

    @mended
    def keep(self, chosen: str, weight: float | None) -> None:
        """Raises: DataError for a LoRA that isn't here, or a weight that is none."""
        kind, _, key = chosen.partition(" ")
        if kind == "loras" and weight is not None:
            item_notes.change(self.shelf.notes, kind, self.shelf.item(kind, key).key, weight=weight)
