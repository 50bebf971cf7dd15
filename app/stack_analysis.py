"""What a stack's LoRAs do to one another, before and beside its picture: the conflict map, balanced weights, every mode, one LoRA of all.

Drawn folded below the stack's own controls. What the map doesn't see, most modes, it says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.context import Context
from app.notices import mended, tell
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.printing import escape

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.render.analysis import AdapterReport, Analysis, Strength

MODES = "modes-"  # how its sheets' names begin
_MOST_ROWS = 12
_MAX_RANK = 1024

Row = tuple[gr.Dropdown, gr.Checkbox, gr.Slider]  # a LoRA's choice, whether it is on, its weight
Stacked = Callable[[dict[Any, Any]], StackConfig]  # what the page's components hold -> the stack


def report_html(found: Analysis, unseen: list[str]) -> str:
    """The verdict, what was read of each LoRA, and the pairs that interfere most; `unseen` are settings that were left out of account."""
    said = [found.verdict[:1].upper() + found.verdict[1:], *found.warnings, *([f"Left out of account: {', '.join(unseen)}."] if unseen else [])]
    if found.not_analysed:
        said.append(
            f"Not analysed: {'; '.join(found.not_analysed[:3])}" + (f" and {len(found.not_analysed) - 3} more." if len(found.not_analysed) > 3 else ".")
        )
    boxes = [f'<div class="notice plain"><h3>Conflict map</h3>{"".join(f"<p>{escape(line)}</p>" for line in said)}</div>']
    boxes.append(_table(["LoRA", "weight", "modules", "rank", "alpha", "strength", "strongest in"], [_adapter(one) for one in found.adapters]))
    if found.pairs:
        rows = [
            [" + ".join(pair.names), f"{pair.total.interference:.2f}", f"{pair.total.overlap:.2f} ({pair.total.chance:.2f})", f"{pair.total.cosine:+.2f}"]
            for pair in found.pairs
        ]
        boxes.append(_table(["pair, the worst first", "interference", "overlap (by chance)", "cosine"], rows))
    return "".join(boxes)


def _adapter(one: AdapterReport) -> list[str]:
    low, high = one.ranks
    blocks = sorted(one.blocks.items(), key=lambda item: -item[1].energy)
    strongest = f"{blocks[0][0]} ({blocks[0][1].energy / one.total.energy:.0%})" if blocks and one.total.energy else "-"
    modules = f"{one.matched} of {one.modules}"
    return [one.name, f"{one.weight:g}", modules, str(low) if low == high else f"{low} to {high}", one.alpha, _strength(one.total), strongest]


def _strength(total: Strength) -> str:
    return f"{total.energy**0.5:.3g}" if total.relative is None else f"{total.relative:.2%} of the base"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[:_MOST_ROWS])
    more = f"<p>and {len(rows) - _MOST_ROWS} more</p>" if len(rows) > _MOST_ROWS else ""
    return f'<div class="told"><table><tr>{head}</tr>{body}</table>{more}</div>'


def unseen(stack: StackConfig) -> list[str]:
    """What of a stack the conflict map leaves out of account."""
    from trainer.render import modes

    return [] if modes.known(stack.mode).only_acting else [f"mode {stack.mode}"]


class Insight:
    """The section's components and what happens when they are used."""

    def __init__(self, context: Context, stacked: Stacked) -> None:
        self.context, self.stacked = context, stacked
        self.before = gr.State([])  # weights as they were before they were balanced
        with gr.Accordion("How these LoRAs go together", open=False, elem_id="insight"):
            with gr.Row():
                self.look = gr.Button("Conflict map", size="sm", min_width=110, elem_id="conflict-map")
                self.level = gr.Button("Balance the weights", size="sm", min_width=130, elem_id="balance")
                self.undo = gr.Button("Weights as before", size="sm", min_width=130, visible=False, elem_id="unbalance")
                self.modes = gr.Button("Every mode", size="sm", min_width=110, elem_id="every-mode")
            self.report = gr.HTML(visible=False, elem_id="conflicts")
            self.map = gr.Image(visible=False, show_label=False, format="png", interactive=False, buttons=["fullscreen"], elem_id="conflict-picture")
            with gr.Row():
                self.name = gr.Textbox("", label="One LoRA of them all", placeholder="its name", max_length=80, min_width=150, scale=3, elem_id="bake-name")
                self.rank = gr.Number(
                    0, label="Rank", info="0 keeps it exact.", precision=0, minimum=0, maximum=_MAX_RANK, min_width=90, scale=1, elem_id="bake-rank"
                )
                self.bake = gr.Button("Bake", min_width=90, scale=1, elem_id="bake", elem_classes="beside")
            self.baked = gr.DownloadButton("Download", visible=False, size="sm", elem_id="download-baked")

    def connect(self, inputs: set[Any], rows: list[Row], show_sheet: Callable[[Image, str, StackConfig], dict[Any, Any]], shown: list[Any]) -> None:
        """`show_sheet` puts a sheet where the page shows pictures, which is `shown`."""
        weights = [weight for _, _, weight in rows]
        lane: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "render", "concurrency_limit": 1}

        @mended
        def modes(found: dict[Any, Any]) -> dict[Any, Any]:
            stack = self.stacked(found)
            return show_sheet(self.context.render_modes(stack), f"{MODES}{stack.seed}.png", stack)

        @mended
        def level(found: dict[Any, Any]) -> dict[Any, Any]:
            return self._level(found, rows)

        self.look.click(self.show, inputs, [self.report, self.map], **lane)
        self.level.click(level, inputs, [*weights, self.before, self.undo, self.report], **lane)
        self.undo.click(self.put_back, self.before, [*weights, self.undo], api_visibility="private", show_progress="hidden")
        self.modes.click(modes, inputs, shown, **lane)
        self.bake.click(self.make_one, {*inputs, self.name, self.rank}, [self.baked, self.name], **lane)

    @mended
    def show(self, found: dict[Any, Any]) -> dict[Any, Any]:
        from trainer.render import heatmap

        stack = self.stacked(found)
        analysis = self.context.analyse(stack)
        picture = gr.update(value=heatmap.draw(analysis), visible=True) if analysis.pairs else gr.update(visible=False)
        return {self.report: gr.update(value=report_html(analysis, unseen(stack)), visible=True), self.map: picture}

    def _level(self, found: dict[Any, Any], rows: list[Row]) -> dict[Any, Any]:
        """Balanced weights on the sliders of the LoRAs that are on."""
        from trainer.render import analysis

        stack = self.stacked(found)
        report = self.context.analyse(stack)
        proposed = analysis.balance(report)
        tell(proposed.reason)
        acting = [weight for choice, on, weight in rows if found[choice] and found[on]]
        after = {weight: round(value, 3) for weight, value in zip(acting, proposed.weights, strict=True)}
        html = gr.update(value=report_html(report, unseen(stack)), visible=True)
        return {**after, self.before: [found[weight] for _, _, weight in rows], self.undo: gr.update(visible=True), self.report: html}

    def put_back(self, before: list[float]) -> list[Any]:
        return [*before, gr.update(visible=False)]

    @mended
    def make_one(self, found: dict[Any, Any]) -> dict[Any, Any]:
        stack, name = self.stacked(found), (found[self.name] or "").strip()
        if not name:
            raise ConfigError("the baked LoRA has no name; give it one.")
        made = self.context.bake(stack, name, int(found[self.rank] or 0))
        left = f", {made.residual:.1%} of the stack left out" if made.residual > 5e-5 else ""
        tell(f"{made.path.stem} is in the library: rank {made.rank}{left}.")
        public = str(self.context.published(Path(made.path)))
        return {self.baked: gr.update(value=public, label=f"Download {made.path.name}", visible=True), self.name: ""}
