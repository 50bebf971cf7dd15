"""What a mode says of itself: how several adapters make one prediction. Nothing in a mode knows a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.deltas import Update
else:  # the fields' kinds are read without torch
    Tensor = Update = Any

Text = Annotated[str, Field(min_length=1)]


def all_act(num: int, step: int, num_steps: int) -> list[float]:
    """Every adapter at every step."""
    return [1.0] * num


@dataclass(frozen=True, eq=False, kw_only=True)
class Mode:
    """One way to draw with several adapters. A field with a default may be left out of the mode's file."""

    name: Text  # in `mode`
    title: Text  # for people
    is_guided: bool  # True where it mixes guided predictions, so that it needs a guidance scale above 1
    fewest: int  # adapters that it is for, and
    most: int | None = None  # None: no end
    # (number of adapters, step, number of steps) -> each adapter's factor at that step. It is what drawing goes by and the conflict map asks.
    acting: Callable[[int, int, int], list[float]] = all_act
    only_acting: bool = False  # True where a step is one pass with those factors and nothing else, so that the conflict map sees all of it

    # (call, number of adapters, step, number of steps) -> the denoiser's output at that step. `call(factors)` runs the denoiser with each adapter's weights
    # times its factor and may be called as often as it takes; `call(factors, only)` lets in each layer named in `only` one adapter act.
    # What `prepare` made comes after those, then `unsaid` with `splits_guidance`.
    predict: Callable[..., Tensor]
    prepare: Callable[[Mapping[str, list[tuple[int, float, Update]]], Callable[[str], Tensor]], Any] | None = None  # (updates, base) -> what it needs of them
    # True where the unconditional half of guidance, which not every family has, is another: `unsaid(rows)` says which of so many rows are of it.
    splits_guidance: bool = False

    # Both of: a mode whose adapters have trigger words in the prompt reads where the picture attends to them in so many of the first steps, and makes of
    # the attention to the words of each adapter in each image (A, B, rows, columns) masks (A, B, h, w) in the latents' size, in which they act from then on.
    watched: Callable[[int], int] | None = None
    place: Callable[[Tensor, tuple[int, int]], Tensor] | None = None
