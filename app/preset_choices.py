"""The presets as the page offers them: which have their base here, and which is the like of a preset that hasn't.

A preset's base that isn't here is no reason to half-change the form: with another base of its family here the form is
filled with that base; else it is filled with the preset as it is, whose base can't be started with, and the panel
beside Start offers the like preset for a base that is here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache

from app.context import OWN_BASE, Context
from app.texts import say
from trainer import bases, preset_tiers, presets
from trainer.config import TrainConfig
from trainer.errors import ConfigError

_STAY_S = 30  # how long a base's family is believed: its folder may be changed


def first() -> str:
    """The preset the form starts with: a style, if there is one."""
    names = presets.names()
    return next((name for name in names if name.endswith("style")), names[0])


def choices(context: Context) -> list[tuple[str, str]]:
    """The presets as (title, name), those that can be started first; the others say what they lack."""
    # Read once: it looks into the folder of bases.
    offered = context.bases
    here = [(presets.title(name), name) for name in presets.names() if _base_among(offered, load(name))]
    names = [name for _, name in here]
    absent = [
        (say("preset.base_not_here", preset=presets.title(name)), name) for name in presets.names() if name not in names
    ]
    return here + absent


def base_choices(context: Context) -> list[tuple[str, str]]:
    """The bases as (label, base): those that are here, then those that presets name."""
    wanted, here = dict.fromkeys(load(name).base for name in presets.names()), context.bases
    return context.base_choices() + [(say("preset.not_here", base=base), base) for base in wanted if base not in here]


def load(name: str) -> TrainConfig:
    """A preset's settings; its file is read anew when it was changed, as the user's own may be."""
    return _load(name, presets.path_of(name).stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _load(name: str, _changed_ns: int) -> TrainConfig:
    return presets.load(name, {})


def base_here(context: Context, config: TrainConfig) -> str:
    """The base of this server that the settings can be trained on: their own, or another of its family; "" for none."""
    return _base_among(context.bases, config)


def _base_among(offered: Sequence[str], config: TrainConfig) -> str:
    if config.base in offered:
        return config.base
    # Imprimatura is of sd's family and stands for no other base of it: it is a fiftieth of their size.
    alike = [base for base in offered if base != OWN_BASE and family(base) == config.family]
    return alike[0] if alike else ""


def filled(context: Context, name: str) -> TrainConfig:
    """The settings that a preset fills the form with: its own, on a base that is here if there is one.

    Raises: ConfigError for a name that is none of those that ship: the page may send anything.
    """
    if not presets.has(name):
        raise ConfigError(say("preset.gone"))
    config = load(fitted(name))
    return config.model_copy(update={"base": base_here(context, config) or config.base})


def fitted(name: str) -> str:
    """The name with the tier of the GPU here, if there is one; without a GPU the settings stay as they are."""
    tiers = preset_tiers.of(name)
    if not tiers or preset_tiers.MARK in name or (tier := preset_tiers.at_hand(tiers)).name == preset_tiers.CPU:
        return name
    return f"{name}{preset_tiers.MARK}{tier.name}"


def like(context: Context, config: TrainConfig) -> str:
    """The preset for the same purpose whose base is here; "" for none."""
    purpose = "character" if config.data.trigger or "character" in _name_of(config) else "style"
    able = [name for name in presets.names() if base_here(context, load(name))]
    return next((name for name in able if name.endswith(purpose)), able[0] if able else "")


def _name_of(config: TrainConfig) -> str:
    """The preset whose previews and length these settings have; "" for none."""
    same = (name for name in presets.names() if load(name).preview.prompts == config.preview.prompts)
    return next((name for name in same if load(name).family == config.family), "")


def family(base: str) -> str:
    """The family of a base that this server offers, as it was a moment ago."""
    return _family(base, int(time.monotonic() / _STAY_S))


@lru_cache(maxsize=256)
def _family(base: str, _moment: int) -> str:
    return bases.family_of(base)
