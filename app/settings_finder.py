"""A search over all settings, and those that were changed since the form was filled, each with a reset.

While something is searched for, only settings that match are shown and every group that has one is open; then all is as
it was before. The rows of changed settings are there from the beginning, as rows that are drawn anew lose what they
hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.form import Form
from app.form_problems import in_words
from app.texts import say, say_num
from trainer.printing import escape

MOST_ROWS = 10
_SCRIPT = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-key]');
  if (button) trigger('reset', {key: button.dataset.key});
});
"""


class SettingsFinder:
    """The search box, the rows of changed settings, and their updates."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.sent = gr.State([])  # what the rows were last sent

    def draw(self) -> None:
        """Draw the box and the rows."""
        self.search = gr.Textbox(
            label=say("settings.find"), placeholder=say("settings.find_example"), max_length=60, elem_id="find-setting"
        )
        with gr.Accordion(say("settings.changed"), open=False, visible=False, elem_id="changed-settings") as self.box:
            self.lines = gr.HTML(elem_id="changed-lines", js_on_load=_SCRIPT, padding=False)

    def outputs(self) -> list[Any]:
        """Everything that `updates` may change."""
        return [self.box, self.lines, self.sent]

    def changed(self, held: Mapping[Any, Any], filled: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Settings that are read and not as the form was filled, by key: what they were, what they are."""
        values, read = self.form.values_of(held), self.form.read_of(held)
        changed = {}
        for key, value in values.items():
            path = ".".join(self.form.specs[key].path)
            before = filled.get(path, self.form.specs[key].default)
            # A setting that nothing reads counts as left at its default, whatever its hidden field holds.
            if read[key] and _alike(value) != _alike(before):
                changed[key] = (before, value)
        return changed

    def updates(self, changed: Mapping[str, tuple[Any, Any]], sent: list[str]) -> dict[Any, Any]:
        """The rows of what is changed; none where they show it already."""
        lines = [f"{key}\0{before!r}\0{now!r}" for key, (before, now) in changed.items()]
        if lines == sent:
            return {}
        count = len(changed)
        title = say_num("settings.num_changed", count)
        rows = [self._line(key, *changed[key]) for key in list(changed)[:MOST_ROWS]]
        return {
            self.box: gr.update(visible=bool(count), label=title),
            self.lines: f"<ol>{''.join(rows)}</ol>",
            self.sent: lines,
        }

    def _line(self, key: str, before: Any, now: Any) -> str:
        label = escape(self.form.specs[key].info.title or key)
        return (
            f'<li class="queued"><p><b>{label}</b> {escape(in_words(now))} '
            f"<span>{say('settings.was', value=escape(in_words(before)))}</span></p>"
            f'<button type="button" data-key="{escape(key)}" aria-label="{say("settings.reset_this", setting=label)}">'
            f"{say('settings.reset')}</button></li>"
        )

    def found(self, held: Mapping[Any, Any], words: str, keys: list[str]) -> dict[Any, Any]:
        """Updates that show which of these settings match, and the groups they lie in; without words, all of them."""
        read, wanted = self.form.read_of(held), words.lower().split()
        matches = {key: read[key] and self._matches(key, wanted) for key in keys}
        updates: dict[Any, Any] = {self.form.components[key]: gr.update(visible=matches[key]) for key in keys}
        for group, inside in self.form.groups:
            some = any(matches[key] for key in inside)
            updates[group] = gr.update(visible=some, open=bool(wanted) and some)
        return updates

    def _matches(self, key: str, wanted: list[str]) -> bool:
        spec = self.form.specs[key]
        text = f"{spec.info.title} {spec.info.description} {key} {' '.join(spec.kinds)}".lower()
        return all(word in text for word in wanted)


def _alike(value: Any) -> Any:
    """The value as it compares: a list as its lines, nothing as an empty text, a number in a text as that number."""
    if isinstance(value, list | tuple):
        return [str(line) for line in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return "" if value is None else value
