"""Stack: several LoRAs over one base, a weight each, one picture; its PNG carries the recipe and brings it back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import get_blocks_context

from app import path_gate, sheets, stack_desk, views
from app.context import OWN_BASE, Context, Refresh
from app.desk_sending import Sending
from app.form import Form
from app.grids import GRID, Grids, grid_of
from app.notices import mended, tell
from app.recipes import read_recipe, read_text, text_of
from app.render_requests import Desk, mended_turns
from app.stack_analysis import MODES, AnalysisSection
from app.stack_dropping import Dropping
from app.stack_live import changes_of, drawn_from
from app.stack_order import RowOrder
from app.stack_panel import ActPanel
from app.stack_pictures import Make, Opened, Stage
from app.stack_prompt import PromptTools
from app.stack_rows import ROWS, LoraRows, RowValue
from app.stack_saving import Saving
from app.stack_shelf import LoraShelf
from app.stack_taking import Taking
from app.texts import say
from trainer import base_defaults, bases, families
from trainer.config import StackConfig, parse
from trainer.config import weights as typed
from trainer.config.stack import USUAL_WEIGHT
from trainer.errors import AdapterError, ConfigError
from trainer.render import modes, samplers

TITLE = say("page.stack")
ORDER = 30
_MAX_SEED = 2**32
_MOST_NOTES = 20  # about a dropped picture
_LONGEST_WEIGHTS = 400
_MOST_WEIGHTS = 12


def weights_of(text: str) -> list[float]:
    """The weights of a grid's axis. Raises: ConfigError."""
    if len(text) > _LONGEST_WEIGHTS:
        what = say("batch.the_weights")
        raise ConfigError(say("problems.have_too_many", what=what, num=len(text), most=_LONGEST_WEIGHTS))
    parts = [part for part in text.replace(";", ",").split(",") if part.strip()]
    try:
        weights = typed.numbers(",".join(parts), USUAL_WEIGHT)
    except ValueError as error:
        problem = say("grid.bad_weights", weights=text[:80], most=_MOST_WEIGHTS, reason=error)
        raise ConfigError(problem) from None
    if len(weights) > _MOST_WEIGHTS:
        raise ConfigError(say("grid.many_weights", weights=text[:80], most=_MOST_WEIGHTS))
    return weights


def stack_of(context: Context, form_values: dict[str, Any], rows: list[RowValue]) -> StackConfig:
    """The stack of the form and its rows. Raises: ConfigError, AdapterError."""
    chosen = [(sha256, weight, more) for sha256, weight, on, more in rows if sha256 and on]
    if len({sha256 for sha256, _, _ in chosen}) < len(chosen):
        raise ConfigError(say("stack.chosen_twice"))
    adapters = [{**more, "sha256": sha256, "weight": round(weight, 4)} for sha256, weight, more in chosen]
    return path_gate.checked(context, parse(StackConfig, {**form_values, "adapters": adapters}, say("where.form")))


def weight_sheet(stack: StackConfig, weights: list[float]) -> Make:
    """A sheet of the stack's first one or two LoRAs at every weight. Raises: ConfigError."""
    if not stack.adapters:
        raise ConfigError(say("grid.needs_lora"))
    axes = [weights] * min(2, len(stack.adapters))
    return lambda engine, rendering: sheets.over_weights(engine, stack, axes, rendering)


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # What the form's fields may be chosen from, and what the chosen family decides of them.
        all_families = families.registry()
        choices: dict[str, list[Any]] = {
            "family": [(family.title, name) for name, family in all_families.items()],
            "base": context.base_choices(),
            "mode": [(f"{mode.title}: {mode.says}", name) for name, mode in modes.registry().items()],
            "sampler": [(say("stack.own_sampler"), ""), *samplers.SAMPLERS],
        }
        offers = {
            name: {"prediction": family.prediction, "guidance": (family.guidance,)}
            for name, family in all_families.items()
        }
        skip = frozenset({"version", "adapters"})  # the rows are the adapters
        self.form = Form(StackConfig, StackConfig.model_validate({}), skip, choices, {"family": offers}, "stack")
        self.rows, self.stage = LoraRows(context), Stage(context)
        self.order = RowOrder(self.rows)
        self.shelf, self.panel = LoraShelf(context, self.rows), ActPanel(context)
        self.sending = Sending(context, self._stack)
        self.taking = Taking(context, self.form, self.rows, self.stage, self._stack, self._shown)
        self.dropping = Dropping(context, self.stage, self._taken_but)

        # What a picture is made of at the left, the picture at the right.
        with gr.Row(equal_height=False, elem_classes="halves desk"):
            with gr.Column(scale=5, min_width=320):
                with gr.Row(elem_classes="prompts"):  # side by side, so that the rows stay on screen with the picture
                    self.form.draw("prompt", "negative_prompt")
                self.prompt_tools = PromptTools()
                self.shelf.draw()
                self.rows.draw()
                self.order.draw()
                self.panel.draw()
                self._draw_settings()
            with gr.Column(scale=4, min_width=320, elem_classes="stage"):
                self.stage.draw(self._draw_below_recent)
                with self.stage.below:
                    self.sending.draw()
        self._connect()

    def _draw_below_recent(self) -> None:
        self.taking.draw()
        self.dropping.draw()

    def _draw_settings(self) -> None:
        # What is set for nearly every picture; the rest of the form is folded.
        with gr.Row():
            self.form.draw("seed")
            self.dice = gr.Button(
                say("stack.new_seed"), min_width=130, scale=0, elem_classes="beside", elem_id="new-seed"
            )
        with gr.Row():
            self.form.draw("steps", "guidance_scale")
        with gr.Row():
            self.form.draw("width_px", "height_px")
        with gr.Accordion(say("stack.base_model"), open=False):
            self.form.draw_rest(advanced=False)
            self.form.draw_rest(advanced=True)

        # Sheets, how the LoRAs meet, and what is kept of the stack.
        with gr.Row():
            self.axis = gr.Textbox(
                "0, 0.5, 1", label=say("grid.weights"), info=say("grid.weights_help"), min_width=150,
                scale=3, elem_id="grid-weights",
            )  # fmt: skip
            self.grid = gr.Button(
                say("grid.render_weights"), min_width=120, scale=1, elem_id="render-grid", elem_classes="beside"
            )
        self.strip = gr.Button(say("stack.show_each"), size="sm", elem_id="render-strip")
        self.grids = Grids(self.context, ROWS)
        self.analysis = AnalysisSection(self.context, self._stack)
        self.saving = Saving(self.context, self._stack)

    def _connect(self) -> None:
        self.form.connect()
        self.rows.connect()
        self.stage.connect()
        stage = self.stage
        still: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # The next request ends the previous request, so it must not wait for it.
        lane: dict[str, Any] = still | {
            "concurrency_id": "pictures", "concurrency_limit": 16, "trigger_mode": "multiple",
        }  # fmt: skip
        fields = self.form.components
        inputs = {*fields.values(), *self.rows.inputs(), self.axis}
        shown = stage.outputs()
        restored = [*fields.values(), *self.rows.outputs(), stage.opened]

        # Pictures and sheets.
        stage.render.click(self.draw, inputs, shown, **lane)
        self.grid.click(self.draw_grid, inputs, shown, **lane)
        self.strip.click(self.draw_strip, inputs, shown, **lane)
        self.grids.connect(inputs, self.draw_axes, shown, lane)
        weighed = self.analysis.connect(inputs, self.rows, self.draw_modes, shown, lane)

        # What fills the form.
        based = fields["base"].input(self.take_base, {*fields.values()}, [*self.form.parts(), stage.live], **still)
        self.dropping.connect(restored)
        taken = self.taking.connect(restored, shown)
        stage.cells.select(self.take_cell, None, [*restored, *shown], **still)
        self.prompt_tools.html.pasted(self.take_text, None, [*restored, stage.warned], **still)
        self.saving.connect(inputs, self._taken, restored)
        self.sending.connect(inputs)
        # In an event of its own: the form is filled first, and only then is a picture of it shown or drawn.
        stage.opened.change(self.show_opened, {stage.opened, stage.live}, shown, **lane)
        rolled = self.dice.click(self.new_seed, None, fields["seed"], **still)
        get_blocks_context().root_block.load(stage.bring_back, None, shown, **still)

        # Everything by which another picture would come, for Live: what a person sets, and what sets it for them.
        live: dict[str, Any] = {"inputs": {*inputs, stage.live}, "outputs": shown, **lane}
        own = [part for key, part in fields.items() if key != "base"]  # a base fills other fields first, and draws then
        asked_for = [stage.asked.change, stage.live.input]
        gr.on([*changes_of(own), *changes_of(self.rows.inputs()), *asked_for], self.draw_live, **live)
        self.panel.html.used(self.draw_live, **live)
        put = self.shelf.connect(fields["base"], fields["family"])
        for event in (*self.rows.acted, *weighed, put, self.order.connect(), based, rolled, taken):
            event.then(self.draw_live, **live)

    def _stack(self, held: dict[Any, Any]) -> StackConfig:
        """The stack that the page holds. Raises: ConfigError, AdapterError."""
        return stack_of(self.context, self.form.values(held), self.rows.values(held))

    def _desk(self, request: gr.Request) -> Desk:
        return stack_desk.of(self.context, request)

    # Pictures and sheets.

    @mended_turns
    def draw(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        yield from self.stage.pictures(self._desk(request), self._stack(held), quick=False)

    @mended_turns
    def draw_live(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """A quick picture, then the whole picture, if Live is on and another would come than is shown."""
        # Without a LoRA nothing is drawn unasked.
        if not held[self.stage.live] or not any(held[choice] for choice in self.rows.choices):
            return
        stack, desk = self._stack(held), self._desk(request)
        # Many events end here, and most of them would give the picture that is there already.
        if desk.stack is None or drawn_from(stack) != drawn_from(desk.stack):
            yield from self.stage.pictures(desk, stack, quick=True)

    @mended_turns
    def show_opened(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """The picture of the stack that was opened: its own, or drawn now, or none; never another stack's."""
        opened, desk, stage = held[self.stage.opened], self._desk(request), self.stage
        if opened is None:
            return
        if opened.stack is None:
            yield stage.show_sheet(desk, opened.picture)
        elif opened.picture is not None:
            # What is still being drawn would take this picture's place.
            desk.cancel()
            yield stage.show(desk, opened.picture, text_of(opened.picture), opened.stack)
        else:
            yield stage.show_nothing(desk)
            if held[stage.live]:
                yield from stage.pictures(desk, opened.stack, quick=True)

    @mended_turns
    def draw_grid(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        stack = self._stack(held)
        make = weight_sheet(stack, weights_of(held[self.axis] or ""))
        yield from self.stage.sheet(self._desk(request), stack, make, f"{GRID}{stack.seed}")

    def draw_axes(
        self, held: dict[Any, Any], axes: list[tuple[str, str]], request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        stack = self._stack(held)
        make = grid_of(self.context, stack, axes, self.rows.places(held))
        yield from self.stage.sheet(self._desk(request), stack, make, f"{GRID}{stack.seed}")

    @mended_turns
    def draw_strip(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        stack, desk = self._stack(held), self._desk(request)
        name = f"{sheets.STRIP}{stack.seed}"
        yield from self.stage.sheet(
            desk, stack, lambda engine, rendering: sheets.of_each(engine, stack, rendering), name
        )

    @mended_turns
    def draw_modes(self, held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        stack, desk = self._stack(held), self._desk(request)
        name = f"{MODES}{stack.seed}"
        yield from self.stage.sheet(
            desk, stack, lambda engine, rendering: sheets.of_modes(engine, stack, rendering), name
        )

    # What fills the form.

    @mended
    def take_base(self, held: dict[Any, Any]) -> dict[Any, Any]:
        """The chosen base's family, size, steps and guidance, for all to see."""
        base = self.context.base(held[self.form.components["base"]])
        family = bases.family_of(base)
        defaults = vars(base_defaults.of(base, families.registry()[family]))
        # Live pictures of a large base would take long.
        return self.form.change(held, {"family": family} | defaults) | {self.stage.live: base == OWN_BASE}

    def _fitting(self, stack: StackConfig) -> StackConfig:
        """The same stack. Raises: AdapterError if the page has too few rows for it."""
        if len(stack.adapters) > ROWS:
            raise AdapterError(say("stack.too_many_loras", num=len(stack.adapters), most=ROWS))
        return stack

    def _taken(self, stack: StackConfig, picture: Path | None = None) -> dict[Any, Any]:
        """The form with a stack, whose picture is shown next."""
        return self._restore(self._fitting(stack)) | {self.stage.opened: Opened(stack, picture)}

    def _restore(self, stack: StackConfig) -> dict[Any, Any]:
        update = self.form.fill(stack) | self.rows.fill(stack.adapters)
        tell(say("stack.form_of_picture"))
        return update

    @mended
    def take_text(self, event: gr.EventData) -> dict[Any, Any]:
        """The form with the stack that the text of a picture tells of, which was pasted into the prompt."""
        text = getattr(event, "text", "")
        stack, notes = read_text(self.context, text if isinstance(text, str) else "")
        return self._taken_but(stack, notes, say("stack.not_taken_of_text"))

    def _taken_but(
        self, stack: StackConfig, notes: list[str], heading: str, picture: Path | None = None
    ) -> dict[Any, Any]:
        """The form with a stack, and under that heading what of it could not be used."""
        # Another tool's stack may be cut to the rows there are; our own is taken whole or not at all.
        if notes and len(stack.adapters) > ROWS:
            notes.append(say("stack.cut", num=len(stack.adapters), most=ROWS))
            stack = stack.model_copy(update={"adapters": stack.adapters[:ROWS]})

        lines = notes[:_MOST_NOTES]
        if len(notes) > _MOST_NOTES:
            lines.append(say("stack.more_notes", num=len(notes) - _MOST_NOTES))
        html = views.notice_html("plain", heading, lines)
        shown = gr.update(value=html, visible=bool(notes))
        return self._taken(stack, picture) | {self.stage.warned: shown}

    def _shown(self, desk: Desk, path: Path) -> dict[Any, Any]:
        """A picture of ours and its stack in the form."""
        stack = self._fitting(read_recipe(self.context, path))
        desk.cancel()
        return self._restore(stack) | self.stage.show(desk, path, text_of(path), stack)

    @mended
    def take_cell(self, request: gr.Request, event: gr.SelectData) -> Any:
        """A cell's picture, and the form with the stack that it was made from."""
        desk, index = self._desk(request), event.index if isinstance(event.index, int) else -1
        cells = sheets.cells_of(desk.sheet) if desk.sheet else None
        if cells is None or not 0 <= index < len(cells.paths):
            return gr.skip()
        return self._shown(desk, cells.paths[index])

    def new_seed(self) -> int:
        return secrets.randbelow(_MAX_SEED)

    @mended
    def open_tab(self, base: str, family: str, *held: Any) -> dict[Any, Any]:
        """What there is to choose from now, and every row that holds something."""
        self.context.find_loras()  # also those that came since the tab was seen last
        update = {self.shelf.cards: self.shelf.value(base, family)}
        update |= {**self.rows.offer_loras(), **self.rows.reveal(*held), **self.saving.offer()}
        return update | self.stage.show_recent()


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    rows, stage = tab.rows, tab.stage
    kept = [rows.num_shown, *rows.choices]
    held = [tab.form.components["base"], tab.form.components["family"], *kept]
    outputs = [*kept, *rows.groups, tab.shelf.cards, tab.saving.saved, stage.gallery, stage.files]
    forms = [tab.form, *rows.more_of]
    return Refresh(tab.open_tab, held, outputs, on_load=False, tells=[tab.sending.sent], forms=forms)
