"""How a chart of losses is looked at: how much it is smoothed, and which stretch of steps it shows.

Both stand in fields of the page, so that they are this browser's and outlast a reload; the server draws the chart anew.
The held-out losses are drawn as they were measured, whatever is chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from app import scripts
from app.texts import say
from trainer.printing import escape
from trainer.report.curves import USUAL_DECAY
from trainer.report.svg_charts import SIDES

SCRIPT = scripts.read("chart_zoom.js")
_TOOLS_SCRIPT = scripts.read("chart_tools.js")
DECAYS = {"raw": 0.0, "some": USUAL_DECAY, "much": 0.99}
_SOME, _FEWEST = "some", 2  # steps of a stretch
_LATEST = 10**9  # no step is later
Span = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """What the fields hold; of a stretch what it is of comes first, since of another run it says nothing."""

    smoothing: str = _SOME
    stretch: str = ""

    @property
    def decay(self) -> float:
        """Of the running mean; 0 for none."""
        return DECAYS.get(str(self.smoothing), DECAYS[_SOME])

    def span(self, key: str, reach: tuple[int, int]) -> Span | None:
        """The stretch that is shown of what `key` names, which reaches from one step to another; None for all."""
        of, _, steps = str(self.stretch or "").rpartition(":")
        first, _, last = steps.partition("-")
        if of != key or not (first.isdecimal() and last.isdecimal()):
            return None
        return clamped((int(first[:10]), int(last[:10])), reach)


USUAL = Look()


def clamped(span: Span, reach: tuple[int, int]) -> Span | None:
    """The stretch as far as there are steps, and not too short to be seen; None where it is all of them or none."""
    low, high = reach
    first, last = max(min(span), low), min(max(span), high)
    if last <= first and not low <= first <= high:
        return None
    if last - first < _FEWEST:  # a drag of a pixel, or two steps that are one
        middle = (first + last) / 2
        first = max(low, min(round(middle - _FEWEST / 2), high - _FEWEST))
        last = min(high, first + _FEWEST)
    return None if (first, last) == (low, high) or last <= first else (first, last)


def key_of(names: Sequence[str]) -> str:
    """What stands for several runs in a stretch."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "replace")).hexdigest()[:12]


def asked(event: gr.EventData, key: str) -> str:
    """The stretch that was dragged out or chosen by a key, as the field holds it; "" for all."""
    # A browser may send anything.
    ends = [getattr(event, name, None) for name in ("first", "last")]
    whole = [
        round(end) for end in ends if isinstance(end, int | float) and not isinstance(end, bool) and 0 <= end <= _LATEST
    ]
    return f"{key}:{min(whole)}-{max(whole)}" if len(whole) == len(ends) else ""


def html(charts: Sequence[str], reach: tuple[int, int], span: Span | None, note: str) -> str:
    """The charts where they can be dragged across; what is shown of them stands below; "" without a chart."""
    charts = [chart for chart in charts if chart]
    if not charts:
        return ""
    data = f'data-first="{reach[0]}" data-last="{reach[1]}" data-left="{SIDES[0]}" data-right="{SIDES[1]}"'
    shown = "".join(f'<div class="chart-view zoomable" {data}>{chart}</div>' for chart in charts)
    said = say("chart.stretch", first=span[0], last=span[1], end=reach[1]) if span else ""
    return f'{shown}<p class="quietly">{escape(" ".join(filter(None, (said, note))))}</p>'


class ChartLook:
    """The fields above a chart, and its buttons."""

    def __init__(self, name: str, chart: str) -> None:
        """`name` begins the ids of its fields; `chart` is the id of the chart's element."""
        self.name, self.chart = name, chart

    def draw(self, kept: bool = True) -> None:
        """Draw them, unseen until there is a chart; what is chosen is `kept` for this browser."""
        more: dict[str, Any] = {} if kept else {"elem_classes": "unkept"}
        with gr.Row(visible=False, elem_classes="chart-look") as self.row:
            self.smoothing = gr.Radio(
                [(say("chart.raw"), "raw"), (say("chart.some"), "some"), (say("chart.much"), "much")],
                value=_SOME, label=say("chart.smoothing"), container=False, min_width=150, scale=2,
                elem_id=f"{self.name}-smoothing",
                elem_classes=["tabs-like", "segments", *([] if kept else ["unkept"])],
            )  # fmt: skip
            gr.HTML(_tools_html(self.chart), js_on_load=_TOOLS_SCRIPT, padding=False, elem_id=f"{self.name}-tools")
        self.stretch = gr.Textbox("", visible=False, max_length=80, elem_id=f"{self.name}-stretch", **more)

    def fields(self) -> list[Any]:
        """What a look is read from, in the order of `Look`."""
        return [self.smoothing, self.stretch]

    def of(self, held: dict[Any, Any]) -> Look:
        """The look of what an event was given."""
        return Look(held.get(self.smoothing) or _SOME, held.get(self.stretch) or "")


def _tools_html(chart: str) -> str:
    """The buttons by which a stretch is chosen without a mouse, and how else it is."""
    acts = (
        ("in", "+", say("chart.closer")), ("out", "−", say("chart.wider")), ("earlier", "←", say("chart.earlier")),
        ("later", "→", say("chart.later")),
    )  # fmt: skip
    buttons = "".join(
        f'<button type="button" data-act="{act}" aria-label="{escape(name)}" title="{escape(name)}">{sign}</button>'
        for act, sign, name in acts
    )
    every = f'<button type="button" data-act="all">{escape(say("chart.all"))}</button>'
    return (
        f'<div class="chart-tools" role="group" aria-label="{escape(say("chart.stretch_of"))}" data-chart="{chart}" '
        f'title="{escape(say("chart.drag"))}">{buttons}{every}</div>'
    )
