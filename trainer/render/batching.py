"""Which stacks are drawn together: those of one `kind`, as many as fill a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from trainer.render import pipeline_call, sharing

if TYPE_CHECKING:
    from trainer.config import StackConfig
    from trainer.render.opened_base import OpenedBase
    from trainer.render.resolving import Resolved

_MAX_PIXELS = 1 << 20  # of a batch: 64 pictures of 128 px, 4 of 512 px


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
