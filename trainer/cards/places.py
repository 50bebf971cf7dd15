"""Settings without the places they were used with: a card says how to train, never where somebody's pictures lie.

A place that was set is a word in its stead, `(yours)`, so that settings which are only read beside it stay; who uses
the card gives a place of their own, or does without what needs one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer import families, schema
from trainer.config import Settings, TrainConfig

YOURS = "(yours)"
_PLACES = ("heldout", "regularisation", "mask_folder")
_NAMING = ("repeats", "weights")  # rules by the folders of a dataset


def without(config: TrainConfig, with_names: bool = False) -> TrainConfig:
    """The settings with `(yours)` for every place, and the base by its last name.

    Rules of repeats and weights name folders of the dataset; they stay where that was asked for.
    """
    data: dict[str, Any] = {"folder": ""}
    data |= {key: YOURS for key in _PLACES if getattr(config.data, key)}
    data |= {} if with_names else dict.fromkeys(_NAMING, ())
    lines = tuple(f"{YOURS}:{line.rpartition(':')[2]}" for line in config.against.adapters)
    return config.model_copy(
        update={
            "base": base_name(config.base),
            "data": config.data.model_copy(update=data),
            "against": config.against.model_copy(update={"adapters": lines}),
            "start": config.start.model_copy(update={"source": YOURS if config.start.source else ""}),
        }
    )


def base_name(base: str) -> str:
    """A base as others may know it: a hub id or a name as it stands, of a path its last part."""
    path = Path(base)
    is_path = path.is_absolute() or base.startswith((".", "~")) or "\\" in base or base.count("/") != 1 or path.exists()
    return base if base.count("/") == 1 and not is_path else last_name(base)


def last_name(place: str) -> str:
    """The last part of a path, of any system."""
    return place.replace("\\", "/").rstrip("/").rpartition("/")[2]


def left_out(config: TrainConfig) -> list[str]:
    """The settings that name folders of the dataset and so don't travel."""
    return [f"data.{key}" for key in _NAMING if getattr(config.data, key)]


def needed(config: TrainConfig) -> list[str]:
    """The settings that stand as `(yours)`."""
    named = [f"data.{key}" for key in _PLACES if getattr(config.data, key) == YOURS]
    named += ["start.source"] if config.start.source == YOURS else []
    return [*named, *(["against.adapters"] if any(YOURS in line for line in config.against.adapters) else [])]


def forgotten(config: TrainConfig, wanted: list[str]) -> tuple[TrainConfig, list[str]]:
    """The settings without these places, and the further settings that nothing would read without them.

    They are at their defaults then.
    """
    for key in wanted:
        config = _put(config, key, () if key == "against.adapters" else "")
    facts: dict[str, tuple[str, ...]] = {"prediction": families.registry()[config.family].prediction}
    unread = schema.unread_defaults(config, facts)
    for key, default in unread.items():
        config = _put(config, key, default)
    return config, list(unread)


def _put(config: TrainConfig, dotted: str, value: Any) -> TrainConfig:
    """The settings, with a setting of a section changed."""
    section, _, name = dotted.partition(".")
    if not name:
        return config.model_copy(update={section: value})
    group: Settings = getattr(config, section)
    return config.model_copy(update={section: group.model_copy(update={name: value})})
