"""A setting that is one of a few words, where code branches on it: a word that no branch is for is refused, never taken for the last of the others."""

from __future__ import annotations

from typing import Literal, NoReturn, get_args, get_origin

from trainer.errors import ConfigError
from trainer.schema import Settings


def check(config: Settings, section: str = "") -> None:
    """Raises: ConfigError for the first setting, in any section, whose value is none of its words. Parsing refuses such; a copy with changes doesn't."""
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, Settings):
            check(value, f"{section}{key}.")
        elif get_origin(field.annotation) is Literal and value not in (words := get_args(field.annotation)):
            raise ConfigError(f"{section}{key} is {value!r}, which nothing here computes; allowed: {', '.join(map(str, words))}.")


def never(value: NoReturn) -> NoReturn:
    """The last branch over a setting's words: mypy refuses it where a word has no branch, and this one refuses it at run time. Raises: ConfigError."""
    raise ConfigError(f"{value!r} is a choice that nothing here computes.")
