"""The tensors of a stack's adapters, from the shelf: what to fold, what runs live, and the words they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.render.fold_groups import Share
from trainer.render.folding import Part
from trainer.render.live import Updates
from trainer.render.new_words import Words

if TYPE_CHECKING:
    from trainer.deltas import Update
    from trainer.render.adapter_cache import Adapter, Shelf
    from trainer.render.opened_base import OpenedBase
    from trainer.render.resolving import Effect, Weights


def _adapter(effect: Effect, shelf: Shelf) -> Adapter:
    return shelf.get(Path(effect.choice.file))


def updates(
    effects: Iterable[Effect], shelf: Shelf, of: Callable[[Adapter], Mapping[str, Update]] = attrgetter("updates")
) -> Updates:
    """By path, each adapter's number among these, its factor there and its update, where `of` has an adapter's."""
    by_path: Updates = {}
    for number, effect in enumerate(effects):
        for path, update in of(_adapter(effect, shelf)).items():
            if factor := effect.block_factors.get(path, 1.0):
                by_path.setdefault(path, []).append((number, factor, update))
    return by_path


def shares(weights: Mapping[Effect, Weights], shelf: Shelf, base: OpenedBase) -> list[Share]:
    """What constant adapters do to each component of the pipeline, for `folding`."""
    found = []
    for effect, (weight, text_weight) in weights.items():
        adapter = _adapter(effect, shelf)
        for component, packed in adapter.components.items():
            if component != base.family.denoiser and text_weight:
                found.append(Share(adapter.key, component, text_weight, packed))
            elif component == base.family.denoiser and weight:
                factors = effect.block_factors or None
                found.append(Share(adapter.key, component, weight, packed, effect.choice.blocks, factors))
    return found


def parts(weights: Mapping[Effect, Weights], shelf: Shelf, base: OpenedBase) -> dict[str, list[Part]]:
    """What constant adapters add to each weight, by path, for who bakes a stack into a file."""
    by_path: dict[str, list[Part]] = {}
    for effect, (weight, text_weight) in weights.items():
        key = _adapter(effect, shelf).key
        for path, [(_, block_factor, update)] in updates([effect], shelf).items():
            if factor := block_factor * (weight if base.is_in_denoiser(path) else text_weight):
                by_path.setdefault(path, []).append((key, factor, update))
    return by_path


def words(effects: Iterable[Effect], shelf: Shelf) -> list[Words]:
    """The new words that each file brings, in an order that doesn't depend on the stack's."""
    return [_adapter(effect, shelf).words for effect in sorted(effects, key=lambda effect: effect.choice.sha256)]
