"""A stack drawn several times for one sheet: over its weights, without each of its LoRAs, in every mode."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from PIL import Image

from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.render import axes, modes
from trainer.render.contact_sheet import contact_sheet

if TYPE_CHECKING:
    from trainer.render.engine import Engine
    from trainer.render.modes.contract import Mode
    from trainer.render.picture_metadata import Picture


def weight_grid(engine: Engine, stack: StackConfig, weights: list[list[float]]) -> Image.Image:
    """The stack at every combination of weights of its first one or two adapters: rows the first, columns the second.

    Raises: ConfigError if the axes don't fit the stack.
    """
    num_axes = len(weights)
    if num_axes not in (1, 2) or num_axes > len(stack.adapters) or not all(weights):
        raise ConfigError(
            f"a weight grid has one or two axes with a weight at least, and an adapter for each; found {num_axes} "
            f"axes and {len(stack.adapters)} adapters."
        )
    weight_axes = [
        axes.Axis(f"adapters.{number}.weight", tuple(map(float, values))) for number, values in enumerate(weights)
    ]
    return axes.draw(engine, stack, weight_axes)[0]


def attribution(engine: Engine, stack: StackConfig) -> Image.Image:
    """What each LoRA does, as one sheet, drawn in as few batches as can be. Raises: ConfigError if no LoRA is on."""
    stacks, labels = subsets(engine, stack)
    pictures = list(engine.render_all(stacks))
    return contact_sheet([[picture.image for picture in pictures]], [""], labels, pictures[-1].stack.prompt)


def subsets(engine: Engine, stack: StackConfig) -> tuple[list[StackConfig], list[str]]:
    """Stacks of the base, each LoRA alone, all but each, and all, with labels; one prompt and seed.

    Raises: ConfigError if no LoRA is on.
    """
    resolved = engine.resolve(stack)
    enabled = [
        number
        for number, adapter in enumerate(resolved.adapters)
        if adapter.enabled and (adapter.weight or adapter.text_weight)
    ]
    if not enabled:
        raise ConfigError("an attribution strip needs a LoRA that is on; the stack has none.")

    def only(numbers: list[int]) -> StackConfig:
        """The stack with these adapters alone; the mode is for all of them, and others sum."""
        adapters = [
            adapter.model_copy(update={"enabled": number in numbers})
            for number, adapter in enumerate(resolved.adapters)
        ]
        mode = resolved.mode if len(numbers) == len(enabled) else "sum"
        return resolved.model_copy(update={"adapters": tuple(adapters), "mode": mode})

    # Which adapters each picture has, and its label. Of two adapters, all but one are the other alone.
    kept: list[list[int]] = [[], *([number] for number in enabled)]
    names = [resolved.adapters[number].name for number in enabled]
    labels = ["base", *names]
    if len(enabled) > 2:
        kept += [[other for other in enabled if other != number] for number in enabled]
        labels += [f"all but {name}" for name in names]
    if len(enabled) > 1:
        kept.append(enabled)
        labels.append("all")
    return [only(numbers) for numbers in kept], labels


def of_modes(engine: Engine, stack: StackConfig) -> tuple[Image.Image, dict[str, float]]:
    """The stack in every mode that it can be drawn in, as one sheet, and seconds for each."""
    fitting = usable_modes(engine, stack)
    drawn = [in_mode(engine, stack, mode) for mode in fitting]
    labels = [mode_label(mode, seconds) for mode, (_, seconds) in zip(fitting, drawn, strict=True)]
    seconds_of = {mode.name: seconds for mode, (_, seconds) in zip(fitting, drawn, strict=True)}
    return contact_sheet([[picture.image for picture, _ in drawn]], [""], labels, stack.prompt), seconds_of


def usable_modes(engine: Engine, stack: StackConfig) -> list[Mode]:
    """The modes that the stack can be drawn in. Raises: ConfigError, AdapterError for what is wrong in any mode."""
    engine.resolve(stack)
    return [
        mode for mode in modes.registry().values() if _is_usable(engine, stack.model_copy(update={"mode": mode.name}))
    ]


def in_mode(engine: Engine, stack: StackConfig, mode: Mode) -> tuple[Picture, float]:
    """The stack's picture in a mode, drawn alone, so that the seconds it took are its own."""
    began = time.perf_counter()
    picture = engine.render(stack.model_copy(update={"mode": mode.name}))
    return picture, time.perf_counter() - began


def mode_label(mode: Mode, seconds: float) -> str:
    """A mode as a sheet names it."""
    return f"{mode.title} {seconds:.2f} s"


def _is_usable(engine: Engine, stack: StackConfig) -> bool:
    """Whether a stack that can be drawn as a sum can be in its own mode."""
    try:
        engine.resolve(stack)
    except ConfigError:
        return False
    return True
