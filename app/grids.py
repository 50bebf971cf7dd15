"""A sheet over one to three settings of the stack on the page: columns, rows, pages.

Values are typed as text, numbers also as ranges (`grid_ranges`); a run is given by its name, never as a path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app import grid_ranges, sheets
from app.context import Context
from app.notices import mended_unasked
from app.render_requests import mended_turns
from app.stack_pictures import Make
from app.texts import say, say_num
from trainer import runs
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.printing import escape, some
from trainer.render import modes
from trainer.render.axes import MAX_CELLS, WORDS, Axis

GRID = "grid-"  # how its sheets' names begin
_LONGEST = 4000  # characters of an axis's values
_CHECKPOINTS = "checkpoint"
_WEIGHT = "weight "
_TEXTS = frozenset({"prompt", "negative_prompt"})  # values with commas in them: | goes between
_WHOLE, _NUMBERS = frozenset({"seed", "steps"}), frozenset({"seed", "steps", "guidance_scale"})
OFFERED = {
    "weight": "0-1 [5]", "seed": "1-4", "steps": "10-30 [3]", "guidance_scale": "2-8 (+2)",
    "mode": ", ".join(modes.registry()),
}  # fmt: skip
# A box that nobody has typed in begins with values of the setting that was chosen. In the browser, so that no answer of
# the server can come after what is typed meanwhile.
_BEGIN = f"""(key, typed) => {{
  const offered = {json.dumps(OFFERED)};
  const isUntouched = !typed || Object.values(offered).includes(typed);
  return isUntouched ? offered[key.split(' ')[0]] || '' : typed;
}}"""
_SETTINGS = ["seed", "prompt", "negative_prompt", "steps", "guidance_scale", "sampler", "mode"]


def settings(num_rows: int) -> list[tuple[str, str]]:
    """What a grid may go over, as (label, key)."""
    weights = [(say("grid.weight_of", number=number), f"{_WEIGHT}{number}") for number in range(1, num_rows + 1)]
    named = [(StackConfig.model_fields[key].title or key, key) for key in _SETTINGS]
    return [
        ("-", ""), *weights, *named, (say("grid.words"), WORDS), (say("grid.checkpoints"), _CHECKPOINTS),
    ]  # fmt: skip


def axis_of(context: Context, key: str, values: str, places: dict[int, int]) -> Axis:
    """One setting and its values as typed; `places` gives a row's number its place in the stack.

    Raises: ConfigError.
    """
    if len(values) > _LONGEST:
        raise ConfigError(say("problems.have_too_many", what=say("grid.the_values"), num=len(values), most=_LONGEST))

    # The setting.
    if key == _CHECKPOINTS:
        # A run is named, never its folder; the path is put together here.
        names = [run.name for run in runs.every(context.runs)]
        if values.strip() not in names:
            allowed = some(names) or say("grid.no_run_yet")
            raise ConfigError(say("grid.no_run", run=values.strip()[:80], allowed=allowed))
        return Axis(_CHECKPOINTS, (str(context.runs / values.strip()),))
    if key.startswith(_WEIGHT):
        row = key.removeprefix(_WEIGHT)
        if row not in map(str, places):
            raise ConfigError(say("grid.not_on", row=row[:20]))
        key = f"adapters.{places[int(row)]}.weight"
    elif key != WORDS and key not in _SETTINGS:
        raise ConfigError(say("grid.no_such", setting=key[:80], allowed=", ".join(_SETTINGS)))

    return Axis(key, tuple(_parts(key, values)))


def _parts(key: str, values: str) -> list[str]:
    """The values of a setting one by one. Raises: ConfigError."""
    parts = [part.strip() for part in values.split("|" if "|" in values or key in _TEXTS else ",")]
    if not all(parts):
        raise ConfigError(say("grid.values", values=values[:80]))
    if key in _NUMBERS or key.endswith("weight") or key.startswith(_WEIGHT):
        return grid_ranges.spelled_out(parts, MAX_CELLS, key in _WHOLE)
    return parts


def count(typed: list[tuple[str, str]]) -> str:
    """How many pictures (setting, values as typed) make, in words; "" where they can't be read yet."""
    try:
        nums = [len(_parts(key, values)) for key, values in typed if key and key != _CHECKPOINTS and values.strip()]
    except ConfigError:
        return ""
    of_run = any(key == _CHECKPOINTS for key, _ in typed)
    if not nums and not of_run:
        return ""
    num = math.prod(nums)
    if num > MAX_CELLS:
        return say("grid.count_too_many", num=num, most=MAX_CELLS)
    return say_num("grid.count_each", num) if of_run else say_num("grid.count", num)


class Grids:
    """The section's components."""

    def __init__(self, context: Context, num_rows: int) -> None:
        self.context = context
        self.keys: list[gr.Dropdown] = []
        self.values: list[gr.Textbox] = []
        with gr.Accordion(say("grid.title"), open=False, elem_id="grids"):
            for number, where in enumerate((say("grid.columns"), say("grid.rows"), say("grid.pages")), 1):
                with gr.Row():
                    key = gr.Dropdown(
                        settings(num_rows), value="", label=where, min_width=130, scale=2,
                        elem_id=f"axis-{number}",
                    )  # fmt: skip
                    values = gr.Textbox(
                        "", label=say("grid.values_label"), placeholder=say("grid.values_example"),
                        max_length=_LONGEST, min_width=150, scale=3,
                        elem_id=f"axis-values-{number}",
                    )  # fmt: skip
                self.keys.append(key)
                self.values.append(values)
            with gr.Row():
                self.draw = gr.Button(say("grid.render"), size="sm", elem_id="render-axes")
                self.num = gr.HTML("", padding=False, min_width=150, elem_id="num-axes", elem_classes="beside-button")

    def connect(
        self,
        inputs: set[Any],
        sheet_of: Callable[[dict[Any, Any], list[tuple[str, str]], gr.Request], Iterator[dict[Any, Any]]],
        shown: list[Any],
        lane: dict[str, Any],
    ) -> None:
        """`sheet_of` is given what is on the page and (setting, values), columns last as `axes.draw` has them."""

        @mended_turns
        def draw(held: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
            axes = [
                (held[key], held[values] or "") for key, values in zip(self.keys, self.values, strict=True) if held[key]
            ]
            if not axes:
                raise ConfigError(say("grid.nothing"))
            yield from sheet_of(held, axes[::-1], request)

        def counted(held: dict[Any, Any]) -> str:
            typed = [(held[key] or "", held[values] or "") for key, values in zip(self.keys, self.values, strict=True)]
            return escape(count(typed))

        still: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        changed = [part.change for part in (*self.keys, *self.values)]
        gr.on(
            changed, mended_unasked(counted), {*self.keys, *self.values}, self.num, trigger_mode="always_last", **still
        )

        for key, values in zip(self.keys, self.values, strict=True):
            key.input(None, [key, values], values, js=_BEGIN, **still)
        self.draw.click(draw, {*inputs, *self.keys, *self.values}, shown, **lane)


def grid_of(context: Context, stack: StackConfig, typed: list[tuple[str, str]], places: dict[int, int]) -> Make:
    """What draws the sheet over (setting, values as typed). Raises: ConfigError, AdapterError."""
    axes = [axis_of(context, key, values, places) for key, values in typed]
    if (num := math.prod(len(axis.values) for axis in axes)) > MAX_CELLS:  # before a base is loaded for it
        raise ConfigError(say("grid.too_many", num=num, most=MAX_CELLS))
    return lambda engine, rendering: sheets.over_axes(engine, stack, axes, rendering)
