"""Ways for several adapters to make one prediction, a file each; its names are the fields of `contract.Mode`."""

from __future__ import annotations

from functools import cache

from trainer import contracts
from trainer.errors import ConfigError
from trainer.render.modes.contract import Mode


@cache
def registry() -> dict[str, Mode]:
    """Every mode by name; a new file in this folder is a new mode."""
    return contracts.gather(Mode, __name__, __path__)


def known(name: str) -> Mode:
    """The mode of this name. Raises: ConfigError, which names those there are."""
    if name not in registry():
        raise ConfigError(f"mode is {name!r}; allowed: {', '.join(registry())}.")
    return registry()[name]


def chosen(name: str, num: int, guidance_scale: float) -> Mode:
    """The mode of this name, to be used with `num` adapters.

    Raises: ConfigError if there is none, or it can't be used with so many or without guidance.
    """
    mode = known(name)
    if mode.is_guided and guidance_scale <= 1:
        raise ConfigError(
            f"mode is {name!r}, which mixes guided predictions, but guidance_scale is {guidance_scale:g}; allowed "
            f"with it: above 1."
        )
    if num < mode.fewest or (mode.most is not None and num > mode.most):
        allowed = f"at least {mode.fewest}" if mode.most is None else f"exactly {mode.fewest}"
        raise ConfigError(f"mode is {name!r}, which is for {allowed} LoRAs that are on; found: {num}.")
    return mode
