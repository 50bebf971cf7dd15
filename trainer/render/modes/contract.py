"""What a mode's file says: how several adapters make one prediction. Nothing in a mode knows a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.deltas import Update
else:  # start-up reads these types without loading torch
    Tensor = Update = Any

Text = Annotated[str, Field(min_length=1)]


def all_act(num: int, step: int, num_steps: int) -> list[float]:
    """Every adapter at every step."""
    return [1.0] * num


@dataclass(frozen=True, eq=False, kw_only=True)
class Mode:
    """One way to draw with several adapters; a field with a default may be left out of the mode's file."""

    # The value of the setting `mode`.
    name: Text
    # What people read.
    title: Text
    # What it does, behind the title in a list of modes.
    says: Text
    # True where it mixes guided predictions, so that it needs a guidance scale above 1.
    is_guided: bool
    # How many adapters it needs, and how many it can use; None for any number.
    fewest: int
    most: int | None = None

    # (number of adapters, step, number of steps) -> each adapter's factor at that step. The mode's own `predict` uses
    # it, and the conflict map.
    acting: Callable[[int, int, int], list[float]] = all_act
    # True where a step is one pass with those factors and nothing else, so that the conflict map shows all of it.
    only_acting: bool = False

    # (call, number of adapters, step, number of steps) -> the denoiser's output at that step. `call(factors)` runs the
    # denoiser with each adapter's weights times its factor, and may be called several times; `call(factors, only)` has
    # one adapter alone act in each layer named in `only`. After these arguments comes what `prepare` gave, if there is
    # one, then `negative_rows` if `splits_guidance`.
    predict: Callable[..., Tensor]
    # ({path: [(adapter's number, factor, update)]}, path -> the base's weight) -> what `predict` needs of the updates,
    # made once for the same adapters.
    prepare: Callable[[Mapping[str, list[tuple[int, float, Update]]], Callable[[str], Tensor]], Any] | None = None
    # True where the predictions for the negative prompt, which not every family makes, are mixed in another way:
    # `negative_rows(number of rows)` is the slice of them.
    splits_guidance: bool = False

    # A mode that finds regions has both of these. In the first steps it reads where the picture attends to each
    # adapter's trigger words; from then on each adapter acts in the mask that was made of that.

    # number of steps -> how many of the first steps are read.
    watched: Callable[[int], int] | None = None
    # (attention to the words of each adapter in each image (A, B, rows, columns), height and width of the latents) ->
    # masks (A, B, h, w) in [0, 1].
    place: Callable[[Tensor, tuple[int, int]], Tensor] | None = None
