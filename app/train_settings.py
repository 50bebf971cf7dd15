"""The settings of a training, from the Train tab's form and from a file, as this server may run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import path_gate, preset_choices, shared_cards
from app.context import Context
from app.texts import say
from trainer import card_file, presets
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError


def config_of(
    context: Context, form_values: dict[str, Any], dataset: str | None, heldout: str, trigger: str
) -> TrainConfig:
    """The settings of the form, checked, with folders spelled out. Raises: ConfigError, DataError."""
    from trainer import session  # loads torch, which the page itself must not

    folder = context.dataset(dataset)
    if not context.pictures(folder):
        raise ConfigError(say("train.no_pictures", dataset=dataset))
    data = form_values.setdefault("data", {})
    data |= {
        "folder": str(folder),
        "heldout": str(context.dataset(heldout)) if heldout else "",
        "trigger": trigger.strip(),
    }
    return session.absolute(path_gate.checked(context, parse(TrainConfig, form_values, say("where.form"))))


def recipe_of(context: Context, preset: str) -> tuple[TrainConfig, str]:
    """The settings of a card, a LoRA, a preset or a config.toml, and what they come from, as `shared_cards.source_of`.

    What is no preset of ours must be for a base that this server offers. Raises: ConfigError, AdapterError.
    """
    if card_file.is_card(Path(preset)):
        return shared_cards.for_form(context, Path(preset))
    # Known by its path: any file may be called as a preset is.
    name = Path(preset).stem
    if name in presets.names() and presets.path_of(name) == Path(preset):
        return preset_choices.filled(context, name), shared_cards.source_of(name)
    try:
        config = presets.load(preset, {"start.source": "", "start.optimizer": False})  # a path of another time or place
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError(say("train.no_recipe", name=Path(preset).name, reason=error)) from None
    return config.model_copy(update={"base": context.base(config.base)}), ""
