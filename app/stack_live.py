"""What Live follows: the events after which another picture would come, and what a picture is drawn from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gradio as gr

from trainer.config import StackConfig

# Ctrl+Enter renders; a slider moved by keys has stopped when the key is up, and so has a number's little arrow when it
# says that it changed.
KEYS = """
if (!window.velaturaStackKeys) {
  window.velaturaStackKeys = true;
  document.addEventListener('keydown', event => {
    const render = document.querySelector('#render');
    if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || !render || !render.offsetParent) return;
    event.preventDefault();
    event.stopPropagation();
    render.click();
  }, true);
  let stopped;
  document.addEventListener('keyup', event => {
    const slider = event.target;
    if (!slider.matches || !slider.matches('.layer input[type=range]')) return;
    clearTimeout(stopped);
    stopped = setTimeout(() => slider.dispatchEvent(new PointerEvent('pointerup', {bubbles: true})), 250);
  }, true);
  document.addEventListener('change', event => {
    const box = event.target;
    if (box === document.activeElement && box.matches?.('#tab-stack input[type=number]'))
      box.dispatchEvent(new FocusEvent('blur'));
  }, true);
}
"""


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
