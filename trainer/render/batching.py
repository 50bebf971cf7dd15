"""Which stacks are drawn together, and what of them is constant.

Pictures of one batch share what `kind` says. What an adapter does is constant if it is the same weighted sum in every
picture, step and place: it is folded into the base's weights, and a step then costs what the base costs, however many
adapters there are. All else is live: it runs beside the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trainer.render import pipeline_call, sharing

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.config import StackConfig
    from trainer.render.opened_base import OpenedBase
    from trainer.render.resolving import Effect, Resolved, Weights

_MAX_PIXELS = 1 << 20  # of a batch: 64 pictures of 128 px, 4 of 512 px


@dataclass(frozen=True, eq=False)
class Batch:
    """Stacks of one kind, and what each adapter does in their pictures."""

    stacks: tuple[StackConfig, ...]
    size: tuple[int, int]  # height and width of the latents
    effects: tuple[Effect, ...]  # of all stacks, each once
    folded: Mapping[Effect, Weights]  # the constant ones
    live: tuple[Effect, ...]
    denoiser: Tensor  # (A, B), weights of the live ones in each picture, in the denoiser
    text: Tensor  # (A, B), in the text encoders

    def at(self, step: int, turns: list[float] | None = None) -> Tensor:
        """The live adapters' weights in the denoiser at a step (A, B); `turns` are a mode's factors for them."""
        turns = turns or [1.0] * len(self.live)
        if all(effect.is_steady for effect in self.live) and set(turns) <= {1.0}:
            return self.denoiser  # the very same, by which it is known that nothing has changed
        factors = [effect.at(step) * turn for effect, turn in zip(self.live, turns, strict=True)]
        return self.denoiser * torch.tensor(factors)[:, None]


def together(pictures: list[Resolved]) -> Batch:
    """The batch of some resolved stacks, which must be of one kind."""
    first = pictures[0]
    effects = tuple(dict.fromkeys(effect for picture in pictures for effect in picture.weights))
    live = tuple(effect for effect in effects if not is_constant(effect, pictures))
    folded = {effect: first.weights[effect] for effect in effects if effect not in live}
    stacks = tuple(picture.stack for picture in pictures)
    return Batch(stacks, first.size, effects, folded, live, _matrix(pictures, live, 0), _matrix(pictures, live, 1))


def is_constant(effect: Effect, pictures: list[Resolved]) -> bool:
    """True if what this adapter does is the same constant sum in every picture."""
    is_steady = pictures[0].stack.mode == "sum" and effect.is_constant
    return is_steady and len({picture.weights.get(effect) for picture in pictures}) == 1


def _matrix(pictures: list[Resolved], effects: tuple[Effect, ...], part: int) -> Tensor:
    """Weights of the denoiser's (0) or the text encoders' (1) part: adapters by pictures (A, B)."""
    absent = (0.0, 0.0)
    rows = [[picture.weights.get(effect, absent)[part] for picture in pictures] for effect in effects]
    return torch.tensor(rows).reshape(len(effects), len(pictures))


def groups(pictures: Iterable[Resolved], base: OpenedBase) -> Iterator[list[Resolved]]:
    """The same pictures in their order, neighbours that can be one batch together.

    The next picture is asked for before a batch is given, since it may belong to it.
    """
    group: list[Resolved] = []
    for picture in pictures:
        if group and (kind(picture, base) != kind(group[0], base) or len(group) >= most(picture.stack)):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def most(stack: StackConfig) -> int:
    """How many pictures of this size make a full batch."""
    return max(1, _MAX_PIXELS // (stack.width_px * stack.height_px))


def kind(picture: Resolved, base: OpenedBase) -> tuple[Any, ...]:
    """What pictures of one batch have in common: equal for two pictures that can be drawn together."""
    stack, effects, limit = picture.stack, picture.weights, base.family.batch_limit
    # New words belong to the tokenizer, which all prompts share.
    words = tuple(sorted({effect.choice.sha256 for effect in effects if effect.brings_words}))
    # A mode mixes all its adapters in one call of the denoiser.
    mixed = tuple(effects) if stack.mode != "sum" else ()
    # Prompts with weights are encoded one by one.
    alone = stack if pipeline_call.is_weighted(base.pipe, base.family, stack) else None
    weights = tuple(effects.items()) if limit == "weights" else ()
    # Where joined tokens are as many as each prompt has, a region needs one prompt for all.
    is_bound = limit and any(effect.choice.region for effect in effects)
    prompts = (stack.prompt, stack.negative_prompt) if is_bound else ()
    return alone, weights, prompts, sharing.key(stack), mixed, words
