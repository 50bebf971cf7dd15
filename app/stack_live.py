"""What Live follows: the events after which another picture would come, and what a picture is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gradio as gr

from trainer.config import StackConfig


def changes_of(components: Iterable[Any]) -> list[Any]:
    """The events by which a person has set each of these, not those on the way to it: half a number is none yet."""
    events = []
    for part in components:
        # A slider is set when it is let go, a box when it is left or Enter is pressed.
        if isinstance(part, gr.Slider):
            events.append(part.release)
        elif isinstance(part, gr.Textbox | gr.Number):
            events += [part.blur, part.submit]
        else:
            events.append(part.input)
    return events


def drawn_from(stack: StackConfig) -> dict[str, Any]:
    """All of a stack that its picture depends on: equal for two that draw the same."""
    # A LoRA is what its hash says, wherever its file lies and whatever it is called.
    adapters = [adapter.model_dump(exclude={"file", "name"}) for adapter in stack.adapters if adapter.enabled]
    return stack.model_dump(exclude={"adapters"}) | {"adapters": adapters}
