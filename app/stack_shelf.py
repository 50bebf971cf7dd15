"""The LoRAs of the library as cards above the Stack tab's rows: a press puts one into the first free row.

All cards are sent at once, as plain data, and found and sorted in the browser (`stack_shelf.js`). A hash that comes
back from there is looked up here.
"""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from app import cards, scripts
from app.context import OWN_BASE, Context
from app.library_items import Item, Shelf, family_title
from app.lora_weight import own_weight
from app.notices import mended
from app.stack_rows import ROWS, LoraRows, lora_choices
from app.texts import say
from trainer import base_match
from trainer.errors import AdapterError
from trainer.lora_file import LoraInfo
from trainer.printing import plain

_SCRIPT = scripts.read("stack_shelf.js")
_SORTS = (
    ("newest", say("stack.sort_newest")), ("name", say("stack.sort_name")), ("used", say("stack.sort_used")),
    ("rating", say("stack.sort_rating")),
)  # fmt: skip
_OPTIONS = "".join(f'<option value="{key}">{words}</option>' for key, words in _SORTS)
_TEMPLATE = f"""<div class="shelf" hidden><div class="shelf-head">
<span class="shelf-title">{say("stack.your_loras")}</span>
<input class="find" type="search" placeholder="{say("stack.find")}" aria-label="{say("stack.find_lora")}"
  maxlength="200"><select class="sort" aria-label="{say("stack.sort")}">{_OPTIONS}</select>
<span class="count" role="status"></span></div>
<div class="shelf-cards" role="group" aria-label="{say("stack.shelf_cards")}"></div></div>"""
_BUDGET_S = 0.6  # for pictures that were never shown small; the rest of them come when the tab is opened again
_NOTHING: dict[str, Any] = {"items": [], "family": "", "own": True}


class LoraShelf:
    """The cards and what a press on one does."""

    def __init__(self, context: Context, rows: LoraRows) -> None:
        self.context, self.rows, self.library = context, rows, Shelf(context)

    def draw(self) -> None:
        """Draw the shelf here; it is empty until it is filled."""
        self.cards = gr.HTML(_NOTHING, html_template=_TEMPLATE, js_on_load=_SCRIPT, elem_id="lora-shelf")

    def connect(self, base: Any, family: Any) -> Any:
        """Answer presses, and grey what is for another model than these fields say; the event that fills a row."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # The browser alone sees to what is grey: nothing is asked of the server.
        script = "(base, family) => { window.velaturaShelf?.fit(base, family); return [] }"
        gr.on([base.change, family.change], None, [base, family], None, js=script, **still)
        rows = self.rows
        filled = [*rows.choices, *rows.weights, *rows.mutes, *rows.groups, rows.num_shown]
        return self.cards.put(self.put, {rows.num_shown, *rows.choices}, filled, trigger_mode="multiple", **still)

    def value(self, base: str, family: str) -> dict[str, Any]:
        """The cards as the browser takes them, the newest first."""
        loras, labels = self.context.known_loras(), {sha256: label for label, sha256 in lora_choices(self.context)}
        deadline, uses = time.monotonic() + _BUDGET_S, self.library.index.uses()
        items = [
            self._card(item, loras[item.key], labels[item.key], deadline) | {"used": uses[item.key]}
            for item in self.library.every("loras")
            if item.key in loras and item.key in labels
        ]
        return {"items": items, "family": family, "own": base == OWN_BASE}

    def _card(self, item: Item, info: LoraInfo, label: str, deadline: float) -> dict[str, Any]:
        """One card: hash, label in the rows, name, trigger, family, for which model it is, weight, rating, picture."""
        origin = base_match.origin_in_header(info.metadata)
        picture = item.picture if time.monotonic() < deadline else None
        return {
            "key": item.key, "label": label, "name": item.note.title or item.name, "trigger": plain(info.trigger, 60),
            "weight": "" if item.note.weight == 1 else f"{item.note.weight:g}", "rating": item.note.rating,
            "title": family_title(info.family), "family": info.family or "",
            # Imprimatura is of a family whose other bases have other shapes.
            "own": None if origin is None else origin.name == OWN_BASE,
            "words": plain(f"{item.words} {item.note.text}", 400), "picture": cards.picture(
                self.context, picture, item.key
            ),
        }  # fmt: skip

    @mended
    def put(self, held: dict[Any, Any], event: gr.EventData) -> Any:
        """The chosen LoRA in the first free row at its own weight; nothing if a row has it already.

        Raises: AdapterError if it isn't here or no row is free.
        """
        rows = self.rows
        chosen = [held[choice] or "" for choice in rows.choices]
        sha256 = str(getattr(event, "key", ""))[:64]
        if sha256 and sha256 in chosen:
            return gr.skip()
        self.context.lora(sha256)  # raises for a hash that isn't here
        free = next((row for row, value in enumerate(chosen) if not value), None)
        if free is None:
            raise AdapterError(say("stack.rows_full", rows=ROWS))
        num = max(held[rows.num_shown], free + 1)
        return {
            rows.choices[free]: gr.update(choices=lora_choices(self.context), value=sha256),
            rows.weights[free]: own_weight(self.context, sha256),
            rows.mutes[free]: False,
            **{group: gr.update(visible=row < num) for row, group in enumerate(rows.groups)},
            rows.num_shown: num,
        }
