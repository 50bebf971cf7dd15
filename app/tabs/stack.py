"""Stack: several LoRAs over one base, a weight each, one picture; its PNG carries the recipe and brings it back."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import gradio as gr

from app import gate, leftovers
from app.context import Context, Refresh
from app.form import Form
from app.grids import GRID, Grids
from app.grids import render as render_grid
from app.notices import mended, tell
from app.recipes import read_picture, read_recipe, recent
from app.stack_analysis import MODES, Insight
from trainer import base_defaults, bases, families
from trainer.config import AdapterChoice, StackConfig, parse
from trainer.config import weights as typed
from trainer.config.stack import USUAL_WEIGHT
from trainer.errors import AdapterError, ConfigError
from trainer.printing import escape, plain
from trainer.render import modes, samplers

TITLE = "Stack"
ORDER = 30
ROWS = 6
_SHOWN_AT_START = 2
_MAX_SEED = 2**32
_MOST_NOTES = 20  # about a dropped picture
_LONGEST_WEIGHTS = 400
_STRIP = "strip-"
_SHEETS = (GRID, _STRIP, MODES)
_IN_ROW = frozenset({"file", "name", "sha256", "weight", "enabled"})  # of an adapter: what its row itself says
_NO_RECIPE = "A sheet of pictures carries no recipe; set the weights you like and render."


def weights_of(text: str) -> list[float]:
    """The weights of a grid's axis. Raises: ConfigError."""
    if len(text) > _LONGEST_WEIGHTS:
        raise ConfigError(f"weights have {len(text):,} characters; allowed: up to {_LONGEST_WEIGHTS}.")
    try:
        found = typed.numbers(",".join(part for part in text.replace(";", ",").split(",") if part.strip()), USUAL_WEIGHT)
    except ValueError as error:
        raise ConfigError(f"weights are {text[:80]!r}; allowed: 1 to 12 numbers from -2 to 2, such as 0, 0.5, 1: {error}") from None
    if len(found) > 12:
        raise ConfigError(f"weights are {text[:80]!r}; allowed: 1 to 12 numbers from -2 to 2.")
    return found


def stack_of(context: Context, form_values: dict[str, Any], rows: list[tuple[str | None, float, bool, dict[str, Any]]]) -> StackConfig:
    """The stack of the form; rows are (hash, weight, on, its other settings). Raises: ConfigError, AdapterError."""
    chosen = [(sha256, weight, more) for sha256, weight, on, more in rows if sha256 and on]
    if len({sha256 for sha256, _, _ in chosen}) < len(chosen):
        raise ConfigError("one LoRA is chosen in two rows; set its weight in one of them.")
    adapters = []
    for sha256, weight, more in chosen:
        adapters.append({**more, "sha256": sha256, "weight": round(weight, 4)})
    return gate.checked(context, parse(StackConfig, {**form_values, "adapters": adapters}, "the form"))


def lora_choices(context: Context) -> list[tuple[str, str]]:
    """LoRAs to choose from, newest first, as (label, hash)."""
    found = list(context.known_loras().values())[::-1]
    names = [info.name for info in found]
    return [(plain(info.name) if names.count(info.name) == 1 else f"{plain(info.name)} ({info.sha256[:8]})", info.sha256) for info in found]


def weight_sheet(context: Context, stack: StackConfig, weights: list[float]) -> Any:
    """A sheet of the stack's first one or two LoRAs at every weight. Raises: ConfigError."""
    if not stack.adapters:
        raise ConfigError("a weight grid needs a LoRA that is on; choose one.")
    return context.render_grid(stack, [weights] * min(2, len(stack.adapters)))


def text_of(path: Path) -> str:
    """The A1111 text of one of our pictures."""
    from trainer.render.image import read

    return read(path).infotext


class _Tab:
    """The tab's components and what happens when they are used."""

    def __init__(self, context: Context) -> None:
        self.context = context
        choices: dict[str, list[Any]] = {
            "family": [(module.title, name) for name, module in families.registry().items()], "base": context.base_choices(),
            "mode": [(mode.title, name) for name, mode in modes.registry().items()], "sampler": [("the base's own", ""), *samplers.SAMPLERS],
        }  # fmt: skip
        facts = {"family": {name: {"prediction": one.prediction, "guidance": (one.guidance,)} for name, one in families.registry().items()}}
        self.form = Form(StackConfig, StackConfig.model_validate({}), frozenset({"version", "adapters"}), choices, facts)
        self.num_shown, self.files = gr.State(_SHOWN_AT_START), gr.State([])
        self.groups: list[gr.Column] = []
        self.ons: list[gr.Checkbox] = []
        self.choices: list[gr.Dropdown] = []
        self.weights: list[gr.Slider] = []
        self.more_of: list[Form] = []
        with gr.Row(equal_height=False, elem_classes="halves"):
            with gr.Column(scale=5, min_width=320):
                self.form.draw("prompt", "negative_prompt")
                self._draw_layers()
                self._draw_settings()
            with gr.Column(scale=4, min_width=320):
                self._draw_result()
        self._connect()

    def _draw_layers(self) -> None:
        """A fixed pool of rows, shown as needed: rows made on the fly (`gr.render`) lose what was typed."""
        for number in range(1, ROWS + 1):
            with gr.Column(visible=number <= _SHOWN_AT_START, elem_classes="layer-all", elem_id=f"layer-{number}") as group:
                with gr.Row(elem_classes="layer"):
                    self.ons.append(gr.Checkbox(True, label="On", min_width=60, scale=0, container=False, elem_id=f"on-{number}"))
                    self.choices.append(gr.Dropdown([], value=None, label=f"LoRA {number}", min_width=150, scale=3, interactive=True, elem_id=f"lora-{number}"))
                    self.weights.append(
                        gr.Slider(-2, 2, value=1.0, step=0.05, label="Weight", min_width=150, scale=4, interactive=True, elem_id=f"weight-{number}")
                    )
                with gr.Accordion("Where and when it acts", open=False, elem_classes="fields", elem_id=f"more-{number}"):
                    more = Form(AdapterChoice, AdapterChoice(), _IN_ROW, {}, name=f"layer-{number}")
                    more.draw_rest(advanced=False)
                    self.more_of.append(more)
            self.groups.append(group)
        self.more = gr.Button("Add a LoRA", size="sm", elem_id="add-row")

    def _draw_settings(self) -> None:
        with gr.Row():
            self.form.draw("seed")
            self.dice = gr.Button("New seed", min_width=130, scale=0, elem_classes="beside", elem_id="new-seed")
        with gr.Row():
            self.form.draw("steps", "guidance_scale")
        with gr.Row():
            self.form.draw("width_px", "height_px")
        with gr.Accordion("Base model", open=False):
            self.form.draw_rest(advanced=False)
            self.form.draw_rest(advanced=True)
        self.render = gr.Button("Render", variant="primary", size="lg", elem_id="render")
        with gr.Row():
            hint = "For the first two LoRAs that are on."
            self.axis = gr.Textbox("0, 0.5, 1", label="Weights of a grid", info=hint, min_width=150, scale=3, elem_id="grid-weights")
            self.grid = gr.Button("Render weight grid", min_width=120, scale=1, elem_id="render-grid", elem_classes="beside")
        self.strip = gr.Button("Show what each LoRA does", size="sm", elem_id="render-strip")
        self.grids = Grids(self.context, ROWS)
        self.insight = Insight(self.context, self._stack)

    def _draw_result(self) -> None:
        self.warned = gr.HTML(visible=False, elem_id="stack-warnings")
        self.picture = gr.Image(
            label="Picture", type="filepath", format="png", interactive=False, height=420, buttons=["fullscreen"], elem_id="picture", elem_classes="canvas"
        )
        self.download = gr.DownloadButton("Download PNG with its recipe", interactive=False, elem_id="download")
        self.infotext = gr.Textbox(label="Made from", lines=2, max_lines=6, interactive=False, buttons=["copy"], elem_id="infotext")
        self.dropped = gr.File(
            file_types=[".png", ".webp", ".jpg", ".jpeg"],
            label="Drop a picture made here or in another tool to get its stack",
            height=150,
            elem_id="recipe-png",
        )
        self.gallery = gr.Gallery(
            label="Recent: click one to get its stack back",
            columns=6,
            height=220,
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            fit_columns=False,
            elem_id="recent",
        )

    def _connect(self) -> None:
        self.form.connect()
        private: dict[str, Any] = {"api_visibility": "private"}
        still: dict[str, Any] = private | {"show_progress": "hidden"}
        lane: dict[str, Any] = private | {"concurrency_id": "render", "concurrency_limit": 1, "show_progress_on": self.picture}
        rows = [*self.choices, *self.weights, *self.ons, *(part for more in self.more_of for part in more.parts())]
        inputs = {*self.form.components.values(), *rows, self.axis}
        shown = [self.picture, self.download, self.infotext, self.gallery, self.files, self.warned]
        base = self.form.components["base"]
        base.input(self.take_base, {*self.form.components.values()}, self.form.parts(), **still)
        restored = [*self.form.components.values(), *rows, *self.groups, self.num_shown]
        self.render.click(self.draw, inputs, shown, **lane)
        self.grid.click(self.draw_grid, inputs, shown, **lane)
        self.strip.click(self.draw_strip, inputs, shown, **lane)
        self.grids.connect(inputs, self.draw_axes, shown, lane)
        self.insight.connect(inputs, list(zip(self.choices, self.ons, self.weights, strict=True)), self._show_sheet, shown)
        self.dropped.upload(self.take_png, self.dropped, [*restored, self.dropped, self.warned], **private)
        self.gallery.select(self.take_recent, self.files, [*restored, self.picture, self.download, self.infotext], **still)
        self.more.click(self.add_row, self.num_shown, [self.num_shown, *self.groups], **still)
        self.dice.click(self.new_seed, None, self.form.components["seed"], **still)

    def _stack(self, found: dict[Any, Any]) -> StackConfig:
        rows = zip(self.choices, self.weights, self.ons, self.more_of, strict=True)
        chosen = [(found[choice], found[weight] or 0.0, found[on], more.values(found)) for choice, weight, on, more in rows]
        return stack_of(self.context, self.form.values(found), chosen)

    def _show(self, path: Path, text: str) -> dict[Any, Any]:
        public = str(self.context.published(path))
        return {self.picture: public, self.download: gr.update(value=public, interactive=True), self.infotext: text}

    def _show_recent(self) -> dict[Any, Any]:
        found = self.context.thumbnails(recent(self.context))
        return {
            self.gallery: gr.update(value=[str(thumbnail) for _, thumbnail in found], selected_index=None),
            self.files: [path.name for path, _ in found],
        }

    @mended
    def draw(self, found: dict[Any, Any]) -> dict[Any, Any]:
        from trainer.render.image import save

        made = self.context.render(self._stack(found))
        return self._show(save(made, self.context.renders), made.infotext) | self._show_recent() | self._warn(made.stack)

    def _warn(self, stack: StackConfig) -> dict[Any, Any]:
        """What the stack's LoRAs say of being for another base, in a box that stays until the next picture."""
        lines = "".join(f"<p>{escape(said)}</p>" for said in self.context.warnings(stack))
        return {self.warned: gr.update(value=f'<div class="notice plain"><h3>Made for another base</h3>{lines}</div>', visible=bool(lines))}

    @mended
    def take_base(self, found: dict[Any, Any]) -> dict[Any, Any]:
        """The chosen base's family, size, steps and guidance, for all to see."""
        base = self.context.base(found[self.form.components["base"]])
        family = bases.family_of(base)
        return self.form.change(found, {"family": family} | vars(base_defaults.of(base, families.registry()[family])))

    def _show_sheet(self, sheet: Any, name: str, stack: StackConfig) -> dict[Any, Any]:
        from trainer.render.image import save_free_sheet

        return self._show(save_free_sheet(sheet, self.context.renders, name), _NO_RECIPE) | self._show_recent() | self._warn(stack)

    @mended
    def draw_grid(self, found: dict[Any, Any]) -> dict[Any, Any]:
        stack = self._stack(found)
        return self._show_sheet(weight_sheet(self.context, stack, weights_of(found[self.axis] or "")), f"{GRID}{stack.seed}", stack)

    def draw_axes(self, found: dict[Any, Any], asked: list[tuple[str, str]]) -> dict[Any, Any]:
        stack = self._stack(found)
        on = [row for row in range(ROWS) if found[self.choices[row]] and found[self.ons[row]]]
        sheet = render_grid(self.context, stack, asked, {row + 1: place for place, row in enumerate(on)})
        return self._show_sheet(sheet, f"{GRID}{stack.seed}", stack)

    @mended
    def draw_strip(self, found: dict[Any, Any]) -> dict[Any, Any]:
        stack = self._stack(found)
        return self._show_sheet(self.context.render_strip(stack), f"{_STRIP}{stack.seed}", stack)

    def _recipe(self, path: Path) -> StackConfig:
        return self._fitting(read_recipe(self.context, path))

    def _fitting(self, stack: StackConfig) -> StackConfig:
        if len(stack.adapters) > ROWS:
            raise AdapterError(f"the picture was made from {len(stack.adapters)} LoRAs; this page holds up to {ROWS}.")
        return stack

    def _restore(self, stack: StackConfig) -> dict[Any, Any]:
        update: dict[Any, Any] = self.form.fill(stack)
        there, num = lora_choices(self.context), max(len(stack.adapters), _SHOWN_AT_START)
        for number in range(ROWS):
            adapter = stack.adapters[number] if number < len(stack.adapters) else None
            update |= {
                self.groups[number]: gr.update(visible=number < num),
                self.choices[number]: gr.update(choices=there, value=adapter.sha256 if adapter else None),
                self.weights[number]: adapter.weight if adapter else 1.0,
                self.ons[number]: adapter is None or adapter.enabled,
                **self.more_of[number].fill(adapter or AdapterChoice()),
            }
        tell("The form now has the picture's stack.")
        return update | {self.num_shown: num}

    @mended
    def take_png(self, file: str | None) -> Any:
        """The form with the stack of a dropped picture, ours or another tool's; what of it could not be used stays on the page in words."""
        if not file:
            return gr.skip()
        try:
            stack, notes = read_picture(self.context, Path(file))
        finally:
            leftovers.taken(self.context, [file])
        if notes and len(stack.adapters) > ROWS:  # another tool's; our own is whole or not taken
            notes.append(f"it names {len(stack.adapters)} LoRAs; this page holds up to {ROWS}, and the first of them are taken.")
            stack = stack.model_copy(update={"adapters": stack.adapters[:ROWS]})
        lines = "".join(f"<p>{escape(said)}</p>" for said in notes[:_MOST_NOTES])
        lines += f"<p>and {len(notes) - _MOST_NOTES} more.</p>" if len(notes) > _MOST_NOTES else ""
        shown = gr.update(value=f'<div class="notice plain"><h3>Not taken from the picture</h3>{lines}</div>', visible=bool(notes))
        return self._restore(self._fitting(stack)) | {self.dropped: None, self.warned: shown}

    @mended
    def take_recent(self, names: list[str], event: gr.SelectData) -> Any:
        index = event.index if isinstance(event.index, int) else -1
        path = next((one for one in recent(self.context) if 0 <= index < len(names) and one.name == names[index]), None)
        if path is None:
            return gr.skip()
        if path.name.startswith(_SHEETS):
            return self._show(path, _NO_RECIPE)
        return self._restore(self._recipe(path)) | self._show(path, text_of(path))

    def add_row(self, num: int) -> list[Any]:
        num = min(num + 1, ROWS)
        return [num, *[gr.update(visible=number < num) for number in range(ROWS)]]

    def new_seed(self) -> int:
        return secrets.randbelow(_MAX_SEED)

    @mended
    def open_tab(self) -> dict[Any, Any]:
        self.context.find_loras()
        there = lora_choices(self.context)
        return {**{choice: gr.update(choices=there) for choice in self.choices}, **self._show_recent()}


def build(context: Context) -> Refresh:
    """Draw the tab."""
    tab = _Tab(context)
    return Refresh(tab.open_tab, [], [*tab.choices, tab.gallery, tab.files], on_load=False)
