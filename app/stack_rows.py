"""The Stack tab's rows, one for each LoRA, as a mixing desk has them: which one, its weight, mute, solo, order.

Solo takes nothing away from the other rows: what they say stays, so that all is as before when it is off again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import leftovers, masks
from app.context import Context
from app.form import Form
from app.notices import mended, tell
from app.texts import say
from trainer.config import AdapterChoice
from trainer.printing import plain

ROWS = 6
_SHOWN_AT_START = 2
_IN_ROW = frozenset({"file", "name", "sha256", "weight", "enabled"})  # of an adapter: what its row itself says

# What opens the overlay of `stack_panel`.
_DRAWN = (
    ("region", say("region.paint")),
    ("schedule", say("region.draw_schedule")),
    ("blocks", say("region.set_blocks")),
)

# What the boxes say of themselves here, where most is drawn.
_TEXTS = {
    "blocks": say("region.blocks_text"), "schedule": say("region.schedule_text"),
    "region": say("region.region_text"), "trigger": say("region.trigger_text"),
}  # fmt: skip

RowValue = tuple[str | None, float, bool, dict[str, Any]]  # hash, weight, on, the other settings


def lora_choices(context: Context) -> list[tuple[str, str]]:
    """LoRAs to choose from, newest first, as (label, hash)."""
    loras = list(context.known_loras().values())[::-1]
    names = Counter(plain(info.name) for info in loras)
    return [
        (plain(info.name) if names[plain(info.name)] == 1 else f"{plain(info.name)} ({info.sha256[:8]})", info.sha256)
        for info in loras
    ]


def _drawing_html(number: int) -> str:
    """The buttons by which a row's settings are drawn instead of typed."""
    buttons = "".join(
        f'<button type="button" data-act="{act}" data-row="{number}" id="draw-{act}-{number}">{words}</button>'
        for act, words in _DRAWN
    )
    return f'<div class="act-openers" role="group" aria-label="{say("region.draw", number=number)}">{buttons}</div>'


def _texts_html(number: int) -> str:
    """The button that folds and unfolds the boxes of a row's settings."""
    return (
        f'<button type="button" class="as-text-opener" data-texts="{number}" aria-expanded="false"'
        f' aria-controls="as-text-{number}" id="texts-{number}">{say("region.as_text")}</button>'
    )


class LoraRows:
    """A fixed pool of rows, shown as needed: rows made on the fly (`gr.render`) lose what was typed."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.num_shown = gr.State(_SHOWN_AT_START)
        self.groups: list[gr.Column] = []
        self.choices: list[gr.Dropdown] = []
        self.weights: list[gr.Slider] = []
        self.mutes: list[gr.Checkbox] = []
        self.solos: list[gr.Checkbox] = []
        self.more_of: list[Form] = []  # where and when each acts
        self.acted: list[Any] = []  # the events after which rows are others than before
        self._buttons: list[tuple[gr.Button, gr.Button, gr.Button]] = []  # of each row: up, down, remove
        self._masks: list[gr.UploadButton] = []

    # Drawing.

    def draw(self) -> None:
        """Draw all rows here, and the button that shows one more."""
        for number in range(1, ROWS + 1):
            visible = number <= _SHOWN_AT_START
            with gr.Column(visible=visible, elem_classes="layer-all", elem_id=f"layer-{number}") as group:
                more = Form(AdapterChoice, AdapterChoice(), _IN_ROW, {}, name=f"layer-{number}")
                self.more_of.append(more)
                self._draw_row(number)
                with gr.Accordion(say("region.where_and_when"), open=False, elem_id=f"more-{number}"):
                    gr.HTML(_drawing_html(number), js_on_load=None)
                    with gr.Row(elem_classes="act-more"):
                        self._masks.append(
                            gr.UploadButton(
                                say("region.choose_mask"),
                                file_types=["image"],
                                size="sm",
                                scale=0,
                                min_width=190,
                                elem_id=f"mask-{number}",
                            )  # fmt: skip
                        )
                        more.draw("trigger")
                    # Folded by a script of ours, as the drawing reads and writes these boxes: Gradio 6.31 takes what
                    # lies in a closed accordion out of the page.
                    gr.HTML(_texts_html(number), js_on_load=None)
                    with gr.Column(elem_classes="as-text fields", elem_id=f"as-text-{number}"):
                        more.draw_rest(advanced=False)
                for key, words in _TEXTS.items():
                    more.components[key].info = words
            self.groups.append(group)
        self.more = gr.Button(say("stack.add_lora"), size="sm", elem_id="add-row")

    def _draw_row(self, number: int) -> None:
        # Which LoRA, and how much of it.
        with gr.Row(elem_classes="layer"):
            choice = gr.Dropdown(
                [], value=None, label=say("stack.lora", number=number), min_width=150, scale=3, interactive=True,
                elem_id=f"lora-{number}",
            )  # fmt: skip
            weight = gr.Slider(
                -2, 2, value=1.0, step=0.05, label=say("stack.weight"), min_width=150, scale=4, interactive=True,
                elem_id=f"weight-{number}",
            )  # fmt: skip

        # Switches, and what moves the row.
        toggle: dict[str, Any] = {"min_width": 76, "scale": 0, "container": False, "elem_classes": "toggle"}
        small: dict[str, Any] = {"size": "sm", "min_width": 62, "scale": 0}
        with gr.Row(elem_classes="layer-tools"):
            self.mutes.append(gr.Checkbox(False, label=say("stack.mute"), elem_id=f"mute-{number}", **toggle))
            self.solos.append(gr.Checkbox(False, label=say("stack.solo"), elem_id=f"solo-{number}", **toggle))
            self._draw_text_weight(number)
            up = gr.Button(say("button.up"), elem_id=f"up-{number}", interactive=number > 1, **small)
            down = gr.Button(say("button.down"), elem_id=f"down-{number}", interactive=number < ROWS, **small)
            remove = gr.Button(say("button.remove"), elem_id=f"remove-{number}", **small)
        self._buttons.append((up, down, remove))
        self.choices.append(choice)
        self.weights.append(weight)

    def _draw_text_weight(self, number: int) -> None:
        """The weight in the text encoder, a small box beside the switches; empty it is the row's weight."""
        more = self.more_of[number - 1]
        more.draw("text_weight")
        box: Any = more.components["text_weight"]
        box.label, box.info, box.placeholder = say("stack.text_weight"), None, say("stack.as_weight")
        box.min_width, box.scale, box.elem_classes = 150, 0, ["text-weight"]

    def connect(self) -> None:
        """Answer the buttons; call once when all are drawn."""
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.more.click(self.add_row, self.num_shown, [self.num_shown, *self.groups], **still)
        inputs = {*self.inputs(), self.num_shown}
        for row, (up, down, remove) in enumerate(self._buttons):
            if row > 0:
                self.acted.append(up.click(mended(partial(self.exchange, row - 1)), inputs, self.inputs(), **still))
            if row < ROWS - 1:
                self.acted.append(down.click(mended(partial(self.exchange, row)), inputs, self.inputs(), **still))
            self.acted.append(remove.click(mended(partial(self.remove, row)), inputs, self.outputs(), **still))
        for button, more in zip(self._masks, self.more_of, strict=True):
            region = more.components["region"]
            self.acted.append(button.upload(self.take_mask, button, region, api_visibility="private"))

    def inputs(self) -> list[Any]:
        """Everything that a person sets in the rows."""
        return [part for row in range(ROWS) for part in self._parts(row)]

    def outputs(self) -> list[Any]:
        """Everything that `fill` may change."""
        return [*self.inputs(), *self.groups, self.num_shown]

    def _parts(self, row: int) -> list[Any]:
        """What a person sets in one row, in the same order in each."""
        own = [self.choices[row], self.weights[row], self.mutes[row], self.solos[row]]
        return [*own, *self.more_of[row].components.values()]

    # Values.

    def acting(self, held: Mapping[Any, Any]) -> list[int]:
        """The rows whose LoRAs are heard: not muted, and soloed where any is."""
        chosen = [row for row in range(ROWS) if held[self.choices[row]]]
        soloed = [row for row in chosen if held[self.solos[row]]]
        return [row for row in soloed or chosen if not held[self.mutes[row]]]

    def values(self, held: Mapping[Any, Any]) -> list[RowValue]:
        """What each row says."""
        acting = self.acting(held)
        rows = zip(self.choices, self.weights, self.more_of, strict=True)
        return [
            (held[choice], held[weight] or 0.0, row in acting, more.values(held))
            for row, (choice, weight, more) in enumerate(rows)
        ]

    def places(self, held: Mapping[Any, Any]) -> dict[int, int]:
        """The number of each row that is on -> its LoRA's place in the stack."""
        return {row + 1: place for place, row in enumerate(self.acting(held))}

    def fill(self, adapters: Sequence[AdapterChoice]) -> dict[Any, Any]:
        """Updates that make the rows show these LoRAs, and no more rows than needed."""
        update: dict[Any, Any] = {}
        loras, num = lora_choices(self.context), max(len(adapters), _SHOWN_AT_START)
        for number in range(ROWS):
            adapter = adapters[number] if number < len(adapters) else None
            update |= {
                self.groups[number]: gr.update(visible=number < num),
                self.choices[number]: gr.update(choices=loras, value=adapter.sha256 if adapter else None),
                self.weights[number]: adapter.weight if adapter else 1.0,
                # A stack knows no solo: what is off in it comes back muted.
                self.mutes[number]: adapter is not None and not adapter.enabled,
                self.solos[number]: False,
                **self.more_of[number].fill(adapter or AdapterChoice()),
            }
        return update | {self.num_shown: num}

    def offer_loras(self) -> dict[Any, Any]:
        """Updates that let each row choose from the LoRAs that are here now."""
        loras = lora_choices(self.context)
        return {choice: gr.update(choices=loras) for choice in self.choices}

    def reveal(self, num: int = _SHOWN_AT_START, *chosen: str | None) -> dict[Any, Any]:
        """Updates that show every row that has a LoRA, as after a reload that brought it back."""
        num = max([num, *(number for number, sha256 in enumerate(chosen, 1) if sha256)])
        return {group: gr.update(visible=number < num) for number, group in enumerate(self.groups)} | {
            self.num_shown: num
        }

    # Changing the rows.

    def add_row(self, num: int) -> list[Any]:
        num = min(num + 1, ROWS)
        return [num, *[gr.update(visible=number < num) for number in range(ROWS)]]

    def exchange(self, row: int, held: dict[Any, Any]) -> dict[Any, Any]:
        """This row and the row below it change places."""
        return self.moved(row, row + 1, held)

    def moved(self, start: int, end: int, held: Mapping[Any, Any]) -> dict[Any, Any]:
        """The row from one place at another, and those between one place on."""
        # The rows stay where they are on the page; what they hold moves.
        order = list(range(ROWS))
        order.insert(end, order.pop(start))
        return {
            part: held[source]
            for place, row in enumerate(order)
            if place != row
            for part, source in zip(self._parts(place), self._parts(row), strict=True)
        }

    def remove(self, row: int, held: dict[Any, Any]) -> dict[Any, Any]:
        """The row is gone and those below it move up; the last place is as it was at the start."""
        update: dict[Any, Any] = {}
        for place in range(row, ROWS - 1):
            below = [held[part] for part in self._parts(place + 1)]
            update |= dict(zip(self._parts(place), below, strict=True))

        # The row's own four parts, then those of its form.
        own = [None, 1.0, False, False]
        update |= dict(zip(self._parts(ROWS - 1), own, strict=False))
        update |= self.more_of[ROWS - 1].fill(AdapterChoice())
        num = max(1, held[self.num_shown] - 1)
        update |= {group: gr.update(visible=number < num) for number, group in enumerate(self.groups)}
        return update | {self.num_shown: num}

    @mended
    def take_mask(self, file: str | None) -> Any:
        """The region's text for an uploaded mask picture."""
        if not file:
            return gr.skip()
        try:
            name = masks.add(self.context, Path(file))
        finally:
            leftovers.taken(self.context, [file])
        tell(say("region.white", name=name))
        return f"mask {name}"
