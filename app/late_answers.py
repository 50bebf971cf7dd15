"""Text fields that the server fills, unless a person typed there while the answer was on its way."""

from __future__ import annotations

import itertools
from typing import Any

import gradio as gr

# An update that says nothing leaves the field alone, also what is typed there this very moment.
_PUT = """(answer, now) => (now ?? '').trim() === answer?.before && now !== answer.text
  ? answer.text : {__type__: 'update'}"""


class LateAnswer:
    """The way of an answer into a text field: an event has `holder` among its outputs, not the field itself."""

    def __init__(self, field: gr.Textbox) -> None:
        """Draws the hidden `holder`; `connect` has it fill the field."""
        self._field, self._counter = field, itertools.count(1)
        self.holder = gr.HTML(
            None, html_template="", visible="hidden", js_on_load="watch('value', () => trigger('arrived'));"
        )

    def connect(self) -> None:
        """Call once, when the page is drawn."""
        self.holder.arrived(
            None, [self.holder, self._field], self._field, js=_PUT, show_progress="hidden", api_visibility="private"
        )

    def update(self, before: str | None, text: str) -> dict[Any, Any]:
        """Put in `text` if the field still holds `before`, what it held when this was asked for."""
        return {self.holder: {"before": (before or "").strip(), "text": text, "number": next(self._counter)}}
