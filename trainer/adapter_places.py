"""Where a run's adapter goes: on which layers of which components, and from which seed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import Tensor

from trainer import layer_patterns, methods, objective, sample_passes
from trainer.adapter import Attachment, attach, matching, refuse_ranks_of_nothing
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.families.contract import Family

if TYPE_CHECKING:
    from trainer.training_model import TrainingModel


def patterns(config: TrainConfig, family: Family) -> dict[str, str]:
    """A regular expression over layer paths for each component that gets an adapter, the denoiser first."""
    # The first component is the denoiser; text encoders follow in the family's order.
    by_component = {family.denoiser: family.targets[config.adapter.targets]}
    if getattr(config.adapter, "text_encoder", False):
        by_component |= dict.fromkeys([*family.components][1:], family.text_targets)
    return by_component


def attach_all(model: TrainingModel, saved: dict[str, Tensor] | None) -> dict[str, Attachment]:
    """The adapter on each component, at its start or as saved. Raises: ConfigError if it can't lie there."""
    # Ranks for layers that are not there are refused before anything is changed.
    config, method = model.config, methods.registry()[model.config.adapter.method]
    targets = _narrowed(model, patterns(config, model.family))
    refuse_ranks_of_nothing(config.adapter, [(getattr(model.pipe, name), targets[name]) for name in targets])

    attachments = {}
    for number, (component, pattern) in enumerate(targets.items()):
        seed = objective.generator(config.seed, "init", number).initial_seed()
        samples = sample_passes.first_batches(model) if component == model.component else None
        # Text encoders start without samples: what flows through them is not noised pictures.
        part = _of_component(saved, component) if saved else None
        attachments[component] = attach(
            getattr(model.pipe, component), method, config.adapter, pattern, seed, part, samples
        )
    return attachments


def _narrowed(model: TrainingModel, targets: dict[str, str]) -> dict[str, str]:
    """The patterns over the layers that `only_layers` and `without_layers` leave, which name the component too.

    Raises: ConfigError for a line that fits no layer, or if none is left.
    """
    adapter = model.config.adapter
    only, without = tuple(getattr(adapter, "only_layers", ())), tuple(getattr(adapter, "without_layers", ()))
    if not only and not without:
        return targets
    paths = {name: matching(getattr(model.pipe, name), pattern) for name, pattern in targets.items()}
    named = [f"{name}/{path}" for name, own in paths.items() for path in own]
    # What is left out may be any part of the model, such as the gate of experts, which no method adapts.
    parts = [f"{name}/{path}" for name in targets for path, _ in getattr(model.pipe, name).named_modules()]
    layer_patterns.refuse_idle("only_layers", only, named, "layer of adapter.targets")
    layer_patterns.refuse_idle("without_layers", without, parts, "part of the model")
    kept = set(layer_patterns.chosen(named, only, without))
    left = {name: [path for path in own if f"{name}/{path}" in kept] for name, own in paths.items()}
    if none_left := [name for name, own in left.items() if not own]:
        raise ConfigError(
            f"adapter.only_layers and adapter.without_layers leave no layer of {', '.join(none_left)}; allow one."
        )
    return {name: "|".join(map(re.escape, own)) for name, own in left.items()}


def _of_component(saved: dict[str, Tensor], component: str) -> dict[str, Tensor]:
    """The saved tensors of one component, by their names within it."""
    return {name.partition("/")[2]: tensor for name, tensor in saved.items() if name.startswith(f"{component}/")}
