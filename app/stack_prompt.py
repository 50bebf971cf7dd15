"""What the Stack tab's prompts do beside holding words: weights by keys, Esc, and a picture's text that is pasted.

All of it is the browser's (`stack_prompt.js`) but reading a picture's text, which is sent when its button is pressed.
"""

from __future__ import annotations

import gradio as gr

from app import scripts
from trainer import families

_SCRIPT = scripts.read("overlay.js", "stack_prompt.js")
_TEMPLATE = '<p class="prompt-said" role="status"></p>'


class PromptTools:
    """The line below the prompts; its event `pasted` brings a text that was pasted."""

    def __init__(self) -> None:
        """Drawn here."""
        sentences = {name: family.title for name, family in families.registry().items() if not family.encode_windows}
        self.html = gr.HTML(
            {}, html_template=_TEMPLATE, js_on_load=_SCRIPT, sentences=sentences, elem_id="prompt-tools", padding=False
        )
