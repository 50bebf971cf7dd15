"""The order of the Stack tab's rows, changed by dragging a row's handle or by keys; it matters to some modes.

One component for all rows (`stack_order.js`): the browser says which row goes where, and the server gives every row
between the two what it holds from then on.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import scripts
from app.notices import mended
from app.stack_rows import LoraRows
from app.texts import say

_SCRIPT = scripts.read("stack_order.js")
_TEMPLATE = '<p class="order-said" role="status"></p>'


class RowOrder:
    """The handles, and what moving one does."""

    def __init__(self, rows: LoraRows) -> None:
        self.rows = rows

    def draw(self) -> None:
        """Draw what gives each row its handle; call after the rows were drawn."""
        self.html = gr.HTML(
            {"text": "", "count": 0}, html_template=_TEMPLATE, js_on_load=_SCRIPT, elem_id="row-order", padding=False
        )
        self.count = gr.State(0)

    def connect(self) -> Any:
        """Answer moves; the event after which another picture would come."""
        inputs = {*self.rows.inputs(), self.rows.num_shown, self.count}
        outputs = [*self.rows.inputs(), self.html, self.count]
        return self.html.moved(
            self.move, inputs, outputs, trigger_mode="multiple", concurrency_id="row-order", concurrency_limit=1,
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip

    @mended
    def move(self, held: dict[Any, Any], event: gr.EventData) -> dict[Any, Any]:
        """The row that was moved at its new place, and those between one place on."""
        # The count makes each answer new, also where the text is the same.
        num, count = int(held[self.rows.num_shown]), int(held[self.count] or 0) + 1
        sent = [getattr(event, name, None) for name in ("from", "to")]
        places = [place for place in sent if isinstance(place, int) and not isinstance(place, bool)]
        answer: dict[Any, Any] = {self.count: count, self.html: {"text": "", "count": count}}
        if len(places) != len(sent) or not all(0 <= place < num for place in places):
            return answer
        start, end = places
        answer[self.html]["text"] = say("stack.moved", before=start + 1, now=end + 1, num=num)
        return answer | self.rows.moved(start, end, held)
