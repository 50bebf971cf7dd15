"""Pictures full-screen: one overlay for every place that shows some (`viewer.js`), and what it asks.

A place is marked by the class `viewing` and has thumbnails alone. Only once a picture is opened is the whole one asked
for, by its thumbnail's name: however many are listed, no copy is made before. What was drawn here is sent byte for
byte; of what came from elsewhere a copy that we encoded is seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from app import cards, dataset_gallery, scripts
from app.batch_gallery import JUDGING
from app.context import Context
from app.notices import mended_answer
from app.recipe_index import RecipeIndex
from app.texts import say
from trainer.errors import DataError
from trainer.printing import plain, some

CLASS = "viewing"  # of what holds pictures that can be seen full-screen
_SCRIPT = scripts.read("overlay.js", "viewer_stage.js", "viewer.js")
_SHOWN_PX = 2048  # the longer side of a copy
_MOST_AT_ONCE = 8  # pictures that are asked for


def _button(act: str, words: str, key: str = "", more: str = "") -> str:
    shown = f'<kbd aria-hidden="true">{key}</kbd>' if key else ""
    return f'<button type="button" data-do="{act}" {more}>{words}{shown}</button>'


_TOOLS = "".join(
    [
        _button("compare", say("viewer.compare"), "C", 'aria-pressed="false" aria-keyshortcuts="c"'),
        _button("way", say("viewer.slider"), "M", 'aria-keyshortcuts="m" hidden'),
        _button("peek", say("viewer.see_a"), say("viewer.space"), "hidden"),
        _button("zoom", say("viewer.whole_size"), "Z", 'aria-keyshortcuts="z"'),
        _button("crisp", say("viewer.crisp"), "P", 'aria-pressed="false" aria-keyshortcuts="p"'),
        _button("words", say("viewer.words"), "I", 'aria-pressed="true" aria-keyshortcuts="i"'),
        _button("close", "✕", "", f'aria-label="{say("button.close")}" class="view-close"'),
    ]
)
_PANES = "".join(
    f'<div class="pane {pane}"><img alt="" draggable="false"><span class="tag"></span></div>' for pane in "ba"
)
_TEMPLATE = f"""<dialog class="viewer" role="dialog" aria-modal="true" aria-labelledby="viewer-title">
<div class="view-head"><p class="view-count" role="status"><span class="view-at"></span></p>
<span class="view-scale"></span>
<div class="view-tools" role="group" aria-label="{say("viewer.tools")}">{_TOOLS}</div></div>
<div class="view-body"><div class="view-stage" tabindex="0" role="group" aria-label="{say("viewer.stage")}">{_PANES}
<div class="divider" role="slider" tabindex="0" aria-label="{say("viewer.divider")}" aria-valuemin="0"
 aria-valuemax="100" aria-valuenow="50" hidden><i></i></div></div>
<button type="button" class="view-step" data-do="back" aria-label="{say("keys.previous")}">‹</button>
<button type="button" class="view-step" data-do="on" aria-label="{say("keys.next")}">›</button>
<div class="view-judge" role="group" aria-label="{say("gallery.this_picture")}" hidden>{JUDGING}</div>
<p class="view-hint" role="status"></p></div>
<aside class="view-words"><h2 id="viewer-title" class="view-title" aria-live="polite"></h2><dl class="view-made"></dl>
</aside></dialog>"""


class Viewer:
    """The overlay, closed, and what its script asks."""

    def __init__(self, context: Context) -> None:
        self.context, self.index = context, RecipeIndex(context)

    def draw(self) -> None:
        """Draw it here, which is seen once a picture is opened."""
        gr.HTML(
            "", html_template=_TEMPLATE, js_on_load=_SCRIPT, server_functions=[mended_answer(self.look)],
            elem_id="viewer", padding=False,
        )  # fmt: skip

    def look(self, asked: object) -> dict[str, Any]:
        """Where the whole pictures of these thumbnails are, by name, and what made each, as lines of label and text.

        Of a thumbnail that is not known, or whose picture is gone, nothing is said.
        """
        names = asked.get("names") if isinstance(asked, dict) else None  # a browser may send anything
        pictures = {}
        for name in (names if isinstance(names, list) else [])[:_MOST_AT_ONCE]:
            path = self.context.shown.get(name) if isinstance(name, str) else None
            if path is not None and (at := self._whole(path)):
                pictures[name] = {"at": at, "made": self._made(path)}
        return {"pictures": pictures}

    def _whole(self, path: Path) -> str:
        """The address of a whole picture; "" for one that is gone or doesn't open."""
        try:
            if drawn_here(self.context, path):
                return cards.address(self.context.published(path))
            return cards.address(dataset_gallery.preview(self.context, path, _SHOWN_PX))
        except (DataError, OSError, ValueError):
            return ""

    def _made(self, path: Path) -> list[tuple[str, str]]:
        """What a picture's recipe says of it."""
        facts = self.index.picture(path)
        loras = [say("item.at_weight", name=plain(name, 60), weight=weight) for _, name, weight in facts.loras]
        lines = [
            (say("item.prompt"), plain(facts.prompt, 2000)),
            (say("word.loras"), some(loras, most=8)),
            (say("word.seed"), "" if facts.seed is None else str(facts.seed)),
            (say("word.base"), plain(Path(facts.base).name, 80)),
        ]
        return [line for line in lines if line[1]]


def drawn_here(context: Context, path: Path) -> bool:
    """Whether a picture lies among those that are drawn here: renders, batches, and previews of runs."""
    is_preview = path.parent.name == "samples" and path.parent.parent.parent == context.runs
    return is_preview or any(path.is_relative_to(folder) for folder in (context.renders, context.batches))
