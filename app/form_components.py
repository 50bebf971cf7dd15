"""The Gradio component of one setting, and its value both ways; label, help and bounds come from its field."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component

from app.form_fields import Spec
from app.form_words import as_done_here
from app.texts import say

_SLIDER_STEPS = 100
_MAX_INT_SLIDER = 64  # a slider of more whole numbers is hard to set by hand


def new_component(spec: Spec, value: Any, allowed: list[Any] | None, elem_id: str, visible: bool) -> Component:
    """The component that fits the setting's type; `allowed` are the only values that it may have, if there are such."""
    value_type, value = spec.value_type, as_shown(value)
    common: dict[str, Any] = {
        "label": spec.info.title or spec.path[-1],
        "info": spec.kinds.get(str(value), "") if spec.kinds else explained(spec),
        "elem_id": elem_id,
        "visible": visible,
    }

    # A choice, a yes or no, a number.
    literals = list(get_args(value_type)) if get_origin(value_type) is Literal else []
    if choices := allowed or list(spec.kinds) or literals:
        return gr.Dropdown(choices, value=value, interactive=True, **common)
    if value_type is bool:
        return gr.Checkbox(bool(value), interactive=True, **common)
    # gr.Number shows an empty value as 0 (Gradio 6.31), so a number that may be empty is a text box.
    if value_type in (int, float) and not spec.may_be_empty:
        return _number(spec, value, common)

    # A text; of several lines if it is a list.
    lines = 2 if get_origin(value_type) is tuple else 1
    return gr.Textbox(
        "" if value is None else str(value),
        lines=lines,
        max_lines=max(lines, 6),
        max_length=spec.bounds.get("max_length") if lines == 1 else None,
        interactive=True,
        elem_classes="wide" if lines > 1 else None,
        **common,
    )


def explained(spec: Spec) -> str:
    """What a setting does, and its usual value where the words of the setting itself don't name one."""
    words, usual = as_done_here(spec.info.description or ""), spec.default
    if usual is None or "sual" in words:
        return words
    if isinstance(usual, bool):
        usual = say("word.on") if usual else say("word.off")
    elif isinstance(usual, int | float):
        usual = f"{usual:g}" if isinstance(usual, float) else usual
    elif not usual:  # a text or a list
        return words if "empty" in words else say("settings.usually_empty", words=words)
    return say("settings.usual", words=words, usual=usual)


def _number(spec: Spec, value: Any, common: dict[str, Any]) -> Component:
    """A slider for an everyday setting whose bounds are near, else a number without bounds.

    Bounds are checked by the model, with everything else that is wrong.
    """
    bounds, whole = spec.bounds, spec.value_type is int
    low, high = bounds.get("ge"), bounds.get("le")
    step = bounds.get("multiple_of", 1) if whole else None
    if not spec.advanced and low is not None and high is not None and (not whole or high - low <= _MAX_INT_SLIDER):
        if not whole:
            step = (high - low) / _SLIDER_STEPS if high - low <= 1 else 0.1
        return gr.Slider(low, high, value=value, step=step, interactive=True, **common)
    return gr.Number(value, precision=0 if whole else None, step=step, interactive=True, **common)


def as_model_value(spec: Spec, value: Any) -> Any:
    """A component's value as the model takes it."""
    value_type = spec.value_type
    if spec.may_be_empty:
        return str(value).strip() or None if value is not None else None
    if get_origin(value_type) is tuple:
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if value_type is str:
        return value or ""
    if value_type is int and isinstance(value, float) and value.is_integer():  # a browser has no whole numbers
        return int(value)
    return value


def as_shown(value: Any) -> Any:
    """A model's value as the component shows it."""
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else value
