"""Where and when a LoRA acts, drawn: its region painted, its schedule as a curve, its blocks as sliders.

One overlay for all rows and all three (`stack_panel.js`). It reads what the row's text box says and writes back what
`trainer.render` reads; what it can't show it leaves alone. The server is asked for masks and for a LoRA's blocks only.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app import masks, scripts, stack_blocks
from app.context import Context
from app.notices import mended_answer
from app.stack_rows import lora_choices
from app.texts import say
from trainer.errors import AdapterError

_SCRIPT = scripts.read("overlay.js", "paint.js", "stack_region.js", "stack_panel.js")
_TEMPLATE = f"""<dialog class="act" aria-labelledby="act-title"><div class="act-head"><h2 id="act-title"></h2>
<button type="button" class="act-close" aria-label="{say("button.close")}">✕</button></div>
<p class="act-said" role="status"></p><button type="button" class="act-anew" hidden>{say("region.anew")}</button>
<div class="act-body"></div>
<div class="act-foot"><span class="act-hint"></span>
<button type="button" class="act-cancel">{say("button.cancel")}</button>
<button type="button" class="act-use">{say("region.use")}</button></div></dialog>"""


class ActPanel:
    """The overlay; each row opens it by buttons of its own (`stack_rows`)."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def draw(self) -> None:
        """Draw the overlay here, closed."""
        functions = [mended_answer(self.keep_mask), mended_answer(self.mask), mended_answer(self.blocks)]
        self.html = gr.HTML(
            "", html_template=_TEMPLATE, js_on_load=_SCRIPT, server_functions=functions, elem_id="act-panel"
        )

    # What the browser asks for.

    def keep_mask(self, url: object) -> dict[str, Any]:
        """The name of a painted mask that is here from now on. Raises: DataError."""
        return {"name": masks.add_painted(self.context, url)}

    def mask(self, name: object) -> dict[str, Any]:
        """A mask of that name to paint on. Raises: DataError if it isn't here."""
        return {"url": masks.as_url(self.context, name)}

    def blocks(self, label: object) -> dict[str, Any]:
        """The sliders of the LoRA that a row shows under this label, and their presets.

        Raises: AdapterError if there is none.
        """
        hashes = [sha256 for shown, sha256 in lora_choices(self.context) if shown == label]
        if not hashes:
            raise AdapterError(say("region.no_lora"))
        sliders = stack_blocks.groups(self.context.lora(hashes[0]))
        if not sliders:
            raise AdapterError(say("region.no_blocks"))
        presets = [{"name": name, "factors": factors} for name, factors in stack_blocks.presets(sliders)]
        return {"groups": [asdict(group) for group in sliders], "presets": presets}
