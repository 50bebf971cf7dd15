"""A setting that is one of a few words, where code branches on it: a word without a branch is refused.

It is never taken for the last of the others, as an `else` would. `check` refuses it before anything starts, `never`
and `unknown` at the branches themselves: `never` after a `match`, which mypy then holds to be complete.
"""

from __future__ import annotations

from typing import Literal, NoReturn, get_args, get_origin

from trainer.errors import ConfigError
from trainer.schema import Settings


def check(config: Settings, section: str = "") -> None:
    """Raises: ConfigError for the first setting, in any section, whose value is none of its words.

    Parsing refuses such; a copy with changes doesn't.
    """
    for key, field in type(config).model_fields.items():
        value = getattr(config, key)
        if isinstance(value, Settings):
            check(value, f"{section}{key}.")
        elif get_origin(field.annotation) is Literal and value not in get_args(field.annotation):
            raise unknown(config, key, section)


def unknown(config: Settings, key: str, section: str) -> ConfigError:
    """The refusal of a setting's value that no branch is for; `section` ends with its dot: `optimizer.`."""
    words = ", ".join(map(str, get_args(type(config).model_fields[key].annotation)))
    return ConfigError(f"{section}{key} is {getattr(config, key)!r}, which nothing here computes; allowed: {words}.")


def never(value: NoReturn) -> NoReturn:
    """The last branch over a setting's words: mypy refuses the code where a word has no branch, this the run.

    Raises: ConfigError.
    """
    raise ConfigError(f"{value!r} is a choice that nothing here computes.")
