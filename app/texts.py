"""The page's words: `say("train.start")` is the text of that name in `texts.toml`, where all that an artist reads is.

Only a text of the file is ever a template, and it is filled once: a value may hold braces, and stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib


def _named(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a table and of those within it, by its dotted name."""
    for name, value in table.items():
        if isinstance(value, str):
            yield f"{prefix}{name}", value
        else:
            yield from _named(value, f"{prefix}{name}.")


TEXTS = dict(_named(tomllib.loads(Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))))


def say(key: str, /, **values: object) -> str:
    """The text of that name, with these values in it as they are: what becomes HTML is escaped before or after."""
    return TEXTS[key].format(**values)


def say_num(key: str, num: int, /, **values: object) -> str:
    """The text for one or for several, with the number as `num`: the names `key.one` and `key.many`."""
    return say(f"{key}.one" if num == 1 else f"{key}.many", num=num, **values)
