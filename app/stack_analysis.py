"""What a stack's LoRAs do to one another: the conflict map, balanced weights, every mode, one LoRA of all.

Drawn folded below the stack's own controls. What the map doesn't see, most modes, it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import gradio as gr

from app import stack_depth
from app.cancel_line import Waiting
from app.context import Context
from app.notices import tell
from app.render_requests import mended_turns
from app.stack_rows import LoraRows
from app.texts import say
from app.views import notice_html
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.printing import escape
from trainer.render import modes

if TYPE_CHECKING:
    from trainer.render.analysis import AdapterReport, Analysis, Strength
    from trainer.render.baking import Baked

MODES = "modes-"  # how its sheets' names begin
_MOST_ROWS = 12
MAX_RANK = 1024

Stacked = Callable[[dict[Any, Any]], StackConfig]  # what the page's components hold -> the stack


def report_html(analysis: Analysis, unseen: list[str]) -> str:
    """How they go together in words and as a picture; folded, what was read of each LoRA and the pairs that meet most.

    `unseen` are settings that were left out of account.
    """
    # The box of sentences.
    lines = [
        *stack_depth.words(analysis),
        *analysis.warnings,
        *([say("analysis.unseen", settings=", ".join(unseen))] if unseen else []),
    ]
    if analysis.not_analysed:
        more = len(analysis.not_analysed) - 3
        names = "; ".join(analysis.not_analysed[:3])
        lines.append(
            say("analysis.skipped_more", names=names, num=more) if more > 0 else say("analysis.skipped", names=names)
        )

    # The tables.
    heads = [
        say("word.lora"), say("analysis.weight"), say("analysis.modules"), say("analysis.its_rank"),
        say("analysis.alpha"), say("analysis.strength"), say("analysis.strongest_in"),
    ]  # fmt: skip
    boxes = [_table(heads, [_adapter(lora) for lora in analysis.adapters])]
    if analysis.pairs:
        rows = [
            [
                " + ".join(pair.names),
                f"{pair.total.interference:.2f}",
                f"{pair.total.overlap:.2f} ({pair.total.chance:.2f})",
                f"{pair.total.cosine:+.2f}",
            ]
            for pair in analysis.pairs
        ]
        heads = [
            say("analysis.pair"), say("analysis.interference"), say("analysis.overlap"), say("analysis.cosine"),
        ]  # fmt: skip
        boxes.append(_table(heads, rows))
    details = f'<details class="depth-details"><summary>{say("analysis.details")}</summary>{"".join(boxes)}</details>'
    return f"{notice_html('plain', say('analysis.map'), lines)}{stack_depth.html(analysis)}{details}"


def _adapter(lora: AdapterReport) -> list[str]:
    """A LoRA's row of the table."""
    low, high = lora.ranks
    blocks = sorted(lora.blocks.items(), key=lambda item: -item[1].energy)
    strongest = "-"
    if blocks and lora.total.energy:
        name, strength = blocks[0]
        strongest = f"{name} ({strength.energy / lora.total.energy:.0%})"
    return [
        lora.name,
        f"{lora.weight:g}",
        say("analysis.of", num=lora.matched, all=lora.modules),
        str(low) if low == high else say("analysis.to", low=low, high=high),
        lora.alpha,
        _strength(lora.total),
        strongest,
    ]


def _strength(total: Strength) -> str:
    """The size of an update, against the base's where that is known."""
    return f"{total.energy**0.5:.3g}" if total.relative is None else say("analysis.of_base", share=total.relative)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    """The first rows as HTML, and how many more there are."""
    head = "".join(f"<th>{escape(title)}</th>" for title in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[:_MOST_ROWS])
    more = f"<p>{say('word.and_more', num=len(rows) - _MOST_ROWS)}</p>" if len(rows) > _MOST_ROWS else ""
    return f'<div class="table-view"><table><tr>{head}</tr>{body}</table>{more}</div>'


def unseen(stack: StackConfig) -> list[str]:
    """What of a stack the conflict map leaves out of account."""
    return [] if modes.known(stack.mode).only_acting else [say("analysis.mode", mode=stack.mode)]


class AnalysisSection:
    """The section's components and what happens when they are used."""

    def __init__(self, context: Context, stacked: Stacked) -> None:
        self.context, self.stacked = context, stacked
        self.before = gr.State([])  # weights as they were before they were balanced
        with gr.Accordion(say("analysis.title"), open=False, elem_id="insight"):
            # How they meet, and what is done about it.
            with gr.Row():
                self.map_button = gr.Button(say("analysis.map"), size="sm", min_width=110, elem_id="conflict-map")
                self.level = gr.Button(say("analysis.balance"), size="sm", min_width=130, elem_id="balance")
                self.undo = gr.Button(
                    say("analysis.as_before"), size="sm", min_width=130, visible=False, elem_id="unbalance"
                )
                self.modes = gr.Button(say("analysis.every_mode"), size="sm", min_width=110, elem_id="every-mode")
            self.waiting = Waiting(self.context, "insight")
            self.report = gr.HTML(visible=False, elem_id="conflicts")

            # All of them as one LoRA.
            with gr.Row():
                self.name = gr.Textbox(
                    "", label=say("analysis.one_lora"), placeholder=say("analysis.its_name"), max_length=80,
                    min_width=150, scale=3, elem_id="bake-name",
                )  # fmt: skip
                self.rank = gr.Number(
                    0, label=say("analysis.rank"), info=say("analysis.rank_help"), precision=0, minimum=0,
                    maximum=MAX_RANK, min_width=90, scale=1, elem_id="bake-rank",
                )  # fmt: skip
                self.bake = gr.Button(
                    say("analysis.bake"), min_width=90, scale=1, elem_id="bake", elem_classes="beside"
                )
            self.baked = gr.DownloadButton(say("button.download"), visible=False, size="sm", elem_id="download-baked")

    def connect(
        self,
        inputs: set[Any],
        rows: LoraRows,
        draw_modes: Callable[..., Iterator[dict[Any, Any]]],
        shown: list[Any],
        pictures: dict[str, Any],
    ) -> list[Any]:
        """Answer the buttons; `draw_modes` draws into `shown`, with the settings of `pictures`.

        The events after which weights are others.
        """
        weights = rows.weights
        lane: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "render", "concurrency_limit": 1}

        waiting = self.waiting.outputs()
        lane["show_progress"] = "hidden"  # there is a line

        @mended_turns
        def level(held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
            yield from self._level(held, rows, request)

        self.waiting.connect()
        self.map_button.click(self.show, inputs, [self.report, *waiting], **lane)
        levelled = self.level.click(level, inputs, [*weights, self.before, self.undo, self.report, *waiting], **lane)
        undone = self.undo.click(
            self.put_back, self.before, [*weights, self.undo], api_visibility="private", show_progress="hidden"
        )
        self.modes.click(draw_modes, inputs, shown, **pictures)
        self.bake.click(self.make_one, {*inputs, self.name, self.rank}, [self.baked, self.name, *waiting], **lane)
        return [levelled, undone]

    @mended_turns
    def show(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """The report on the stack."""
        stack = self.stacked(held)

        def answer(report: Analysis) -> dict[Any, Any]:
            return {self.report: gr.update(value=report_html(report, unseen(stack)), visible=True)}

        yield from self._measured(stack, say("analysis.map"), answer, request)

    def _level(self, held: dict[Any, Any], rows: LoraRows, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Balanced weights on the sliders of the LoRAs that are on."""
        stack = self.stacked(held)

        def answer(report: Analysis) -> dict[Any, Any]:
            from trainer.render import analysis

            proposed = analysis.balance(report)
            tell(proposed.reason)
            # The report has the LoRAs that act, in the order of their rows; muted rows keep their weights.
            acting = [rows.weights[row] for row in rows.acting(held)]
            after = {weight: round(value, 3) for weight, value in zip(acting, proposed.weights, strict=True)}
            return {
                **after,
                self.before: [held[weight] for weight in rows.weights],
                self.undo: gr.update(visible=True),
                self.report: gr.update(value=report_html(report, unseen(stack)), visible=True),
            }

        yield from self._measured(stack, say("analysis.balance"), answer, request)

    def _measured(
        self, stack: StackConfig, what: str, answer: Callable[[Analysis], dict[Any, Any]], request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """How far the stack's analysis is, in turns, then its answer."""
        yield from self.waiting.turns(request, what, lambda rendering: self.context.analyse(stack, rendering), answer)

    def put_back(self, before: list[float]) -> list[Any]:
        """The weights as they were before they were balanced."""
        return [*before, gr.update(visible=False)]

    @mended_turns
    def make_one(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """The stack as one LoRA of the library, and its download."""
        stack, name = self.stacked(held), (held[self.name] or "").strip()
        if not name:
            raise ConfigError(say("analysis.no_name"))
        rank = int(held[self.rank] or 0)

        def answer(baked: Baked) -> dict[Any, Any]:
            # Below this an exact sum differs by rounding alone.
            lost = say("analysis.lost", share=baked.residual) if baked.residual > 5e-5 else ""
            tell(say("analysis.baked", name=baked.path.stem, rank=baked.rank, lost=lost))
            public, label = str(self.context.published(baked.path)), say("button.download_named", name=baked.path.name)
            return {self.baked: gr.update(value=public, label=label, visible=True), self.name: ""}

        yield from self.waiting.turns(
            request, say("analysis.bake"), lambda rendering: self.context.bake(stack, name, rank, rendering), answer
        )
