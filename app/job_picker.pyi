"""The dropdown of jobs: what it holds may be off the list by the time it arrives, as another page takes jobs off too.

Gradio's own refuses such a value with a traceback, in every event that has the field, also one that needs no job. Here
the number arrives as it is, and whoever acts on it looks the job up and says in words that there is none.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

class JobPicker(gr.Dropdown):
    """A dropdown of job numbers."""

    is_template = True  # drawn as the dropdown that it is

    def preprocess(self, payload: Any) -> int | None:
        return payload if isinstance(payload, int) and not isinstance(payload, bool) else None
    from collections.abc import Callable, Sequence
    from typing import TYPE_CHECKING, Any, Literal

    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component