"""The panel beside Start: what will happen, each problem with the button that cures it, and the fields it is about.

One component for all lines; a press sends the line's number, and what that line was is kept beside it. A field is
marked by a style sheet over its id, so that a hundred fields need not be sent for one that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from app.forecast import Forecast
from app.form_problems import Cure, Problem
from app.texts import say, say_num
from trainer.printing import escape

MOST_ROWS = 8
_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-line]');
  if (button) trigger('cured', {line: Number(button.dataset.line)});
});
"""
Line = tuple[Problem, bool]  # and whether a start must fail of it
# Settings that the tab draws itself, with the ids of their elements.
OWN_IDS = {"data.folder": "train-dataset", "data.heldout": "train-heldout", "data.trigger": "trigger"}
# How a changed field is marked, how a wrong field, and the sentence under a wrong field.
_CHANGED = "box-shadow: inset 3px 0 0 var(--color-accent) !important;"
_WRONG = "box-shadow: inset 0 0 0 2px var(--wrong) !important;"
_ROOM = "height: auto !important;"  # a list to choose from takes the whole field, and what stands under it is cut off
_UNDER = "display: block; color: var(--wrong); font-size: .85rem; padding: .25rem .1rem;"


def element_id(key: str, name: str = "field") -> str:
    """The id of a setting's element on the page."""
    return OWN_IDS.get(key, f"{name}-{key.replace('.', '-')}")


class ForecastPanel:
    """The panel's components, and their updates for a forecast."""

    def draw(self) -> None:
        """Draw the panel; it says nothing yet."""
        self.marks = gr.HTML(elem_id="field-marks", elem_classes="unseen", padding=False)
        with gr.Column(elem_classes="forecast", elem_id="forecast"):
            self.head = gr.HTML('<div class="will"><h3>…</h3></div>', elem_id="forecast-head", padding=True)
            self.lines = gr.HTML(elem_id="problems", js_on_load=_SCRIPT, padding=False)
        self.sent = gr.State([])  # the lines that are shown

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.marks, self.head, self.lines, self.sent]

    def updates(
        self, forecast: Forecast, ids: Mapping[str, str], changed: Iterable[str], sent: Sequence[Line]
    ) -> dict[Any, Any]:
        """What the panel shows of a forecast, without the lines where they are shown already.

        `ids` are the elements by key, `changed` the keys of changed settings, `sent` the lines that were last sent.
        """
        lines: list[Line] = [(problem, True) for problem in forecast.problems]
        lines += [(note, False) for note in forecast.notes]
        shown = lines[:MOST_ROWS]
        updates: dict[Any, Any] = {
            self.head: _head(forecast, len(lines) - MOST_ROWS),
            self.marks: _marks(forecast, ids, changed),
            self.sent: shown,
        }
        if shown != list(sent):
            updates[self.lines] = "".join(_line(number, *line, ids) for number, line in enumerate(shown))
        return updates


def cure_of(event: gr.EventData, sent: Sequence[Line]) -> Cure | None:
    """The cure whose button was pressed; None for a line that is not shown any more."""
    number = getattr(event, "line", None)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(sent):
        return None
    return sent[number][0].cure


def _head(forecast: Forecast, num_more: int) -> str:
    """The headline, the facts under it, and what is still looked at; what stands against a start comes first."""
    state = "bad" if forecast.problems else "warn" if forecast.notes else "good"
    headline, facts, count = forecast.headline, list(forecast.facts), len(forecast.problems)
    if count:
        headline, facts = say_num("forecast.to_mend", count), [headline, *facts]
    if forecast.num_unseen:
        facts.append(say("forecast.looking", num=forecast.num_unseen))
    if num_more > 0:
        facts.append(say("forecast.more", num=num_more))
    return (
        f'<div class="will {state}" role="status" aria-live="polite"><h3>{escape(headline)}</h3>'
        f'<p class="facts">{" · ".join(map(escape, facts))}</p></div>'
    )


def _line(number: int, problem: Problem, is_bad: bool, ids: Mapping[str, str]) -> str:
    """A problem's sentence, which leads to its field, and the button that cures it."""
    word = say("forecast.mend") if is_bad else say("forecast.note")
    text = f'<span class="kind {"bad" if is_bad else "warn"}">{word}</span> {escape(problem.text)}'
    if problem.key in ids:
        text += f' <a href="#{escape(ids[problem.key])}">{say("button.show")}</a>'
    cure = (
        f'<button type="button" id="cure-{number + 1}" data-line="{number}">{escape(problem.cure.label)}</button>'
        if problem.cure
        else ""
    )
    return f'<div class="problem" id="problem-{number + 1}"><p>{text}</p>{cure}</div>'


def _marks(forecast: Forecast, ids: Mapping[str, str], changed: Iterable[str]) -> str:
    """A style sheet: what is wrong with a field under it, and a dot at each changed field."""
    rules = [f"#{ids[key]} {{ {_CHANGED} }}" for key in changed if key in ids]
    for problem in forecast.problems:
        if problem.key in ids:
            box = f"#{ids[problem.key]}"
            rules.append(f"{box} {{ {_WRONG} }} {box}::after {{ {_UNDER} content: '{_css_text(problem.text)}'; }}")
            rules.append(f"{box} > .container {{ {_ROOM} }}")
    return f"<style>{' '.join(rules)}</style>"


def _css_text(text: str) -> str:
    """The text inside a style sheet's string: every sign that isn't a letter, digit or blank as its code."""
    return "".join(sign if sign == " " or sign.isascii() and sign.isalnum() else f"\\{ord(sign):x} " for sign in text)
