"""What `velatura serve --ray` is started with, checked before Ray is looked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.errors import ConfigError

_MOST = 1000
_FEW_MANY = re.compile(r"([1-9]\d{0,3})(?::([1-9]\d{0,3}))?")


@dataclass(frozen=True)
class Replicas:
    """Where replicas are and how many there are of each base."""

    least: int = 1
    most: int = 1
    address: str = ""  # HOST:PORT of a Ray cluster; empty for one of this machine's own
    shrink_s: float = 300.0  # how long there are more than are needed


def parsed(text: str, address: str, shrink_s: float = Replicas.shrink_s) -> Replicas:
    """Replicas of `LEAST:MOST`, or of a number that stays. Raises: ConfigError."""
    match = _FEW_MANY.fullmatch(text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most <= _MOST:
        raise ConfigError(
            f"--replicas is {text[:40]!r}; allowed: how many of each base, such as 2, or the least and the most, such "
            f"as 1:4, up to {_MOST}."
        )
    return Replicas(least, most, address, shrink_s)


def check_options(is_ray: bool, bases: list[str], replicas: str, address: str) -> None:
    """Raises: ConfigError for options that only go with `--ray`."""
    if is_ray:
        return
    if len(bases) > 1:
        raise ConfigError(
            f"--base is given {len(bases)} times; without --ray one base is served: start a server for each, or add "
            f"--ray."
        )
    given = [name for name, value in (("--replicas", replicas), ("--address", address)) if value]
    if given:
        raise ConfigError(f"{', '.join(given)}: read with --ray only, which isn't given.")
