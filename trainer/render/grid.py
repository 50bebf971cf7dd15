"""A stack drawn several times for one sheet: over its weights, without each of its LoRAs, in every mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import axes
from trainer.render.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from trainer.render.engine import Engine


def weight_grid(engine: Engine, stack: StackConfig, weights: list[list[float]]) -> Image.Image:
    """The stack at every combination of weights of its first one or two adapters: rows the first, columns the second.

    Raises: ConfigError if the axes don't fit the stack.
    """
    num = len(weights)
    if num not in (1, 2) or num > len(stack.adapters) or not all(weights):
        raise ConfigError(
            f"a weight grid has one or two axes with a weight at least, and an adapter for each; found {num} axes and {len(stack.adapters)} adapters."
        )
    return axes.draw(engine, stack, [axes.Axis(f"adapters.{number}.weight", tuple(map(float, values))) for number, values in enumerate(weights)])[0]


def attribution(engine: Engine, stack: StackConfig) -> Image.Image:
    """What each LoRA does: the base, each alone, all but each, and all; one prompt and seed, as few batches as can be.

    Raises: ConfigError if no LoRA is on.
    """
    resolved = engine.resolve(stack)
    on = [number for number, adapter in enumerate(resolved.adapters) if adapter.enabled and (adapter.weight or adapter.text_weight)]
    if not on:
        raise ConfigError("an attribution strip needs a LoRA that is on; the stack has none.")

    def only(numbers: list[int]) -> StackConfig:
        adapters = [adapter.model_copy(update={"enabled": number in numbers}) for number, adapter in enumerate(resolved.adapters)]
        mode = resolved.mode if len(numbers) == len(on) else "sum"
        return resolved.model_copy(update={"adapters": tuple(adapters), "mode": mode})

    names = [resolved.adapters[number].name for number in on]
    alone, without = [[number] for number in on], [[other for other in on if other != number] for number in on]
    asked = [[], *alone, *(without if len(on) > 2 else []), *([on] if len(on) > 1 else [])]
    labels = ["base", *names, *([f"all but {name}" for name in names] if len(on) > 2 else []), *(["all"] if len(on) > 1 else [])]
    found = [picture.image for picture in engine.render_all(map(only, asked))]
    return contact_sheet([found], [""], labels, resolved.prompt)


def of_modes(engine: Engine, stack: StackConfig) -> tuple[Image.Image, dict[str, float]]:
    """The stack in every mode that it can be drawn in, as one sheet, and seconds for each."""
    import time

    from trainer.render import modes

    pictures, seconds = [], {}
    engine.resolve(stack)
    fitting = [mode for mode in modes.registry().values() if _is_usable(engine, stack.model_copy(update={"mode": mode.name}))]
    for mode in fitting:
        began = time.perf_counter()
        pictures.append(engine.render(stack.model_copy(update={"mode": mode.name})).image)
        seconds[mode.name] = time.perf_counter() - began
    labels = [f"{mode.title} {seconds[mode.name]:.2f} s" for mode in fitting]
    return contact_sheet([pictures], [""], labels, stack.prompt), seconds


def _is_usable(engine: Engine, stack: StackConfig) -> bool:
    """Whether a stack that can be drawn as a sum can be in its own mode."""
    try:
        engine.resolve(stack)
    except ConfigError:
        return False
    return True
