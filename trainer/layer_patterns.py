"""Which layers of a target are adapted, by texts in their paths: `*` stands for any text between two others.

Regular expressions are none of a preset's: a stranger's could take hours on a path of a hundred letters.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainer.errors import ConfigError


def fits(pattern: str, path: str) -> bool:
    """Whether a path has the texts between the pattern's stars, in their order."""
    start = 0
    for text in pattern.strip().split("*"):
        place = path.find(text, start)
        if place < 0:
            return False
        start = place + len(text)
    return True


def chosen(paths: Iterable[str], only: tuple[str, ...], without: tuple[str, ...]) -> list[str]:
    """The paths that one of `only` fits, or all if there is none, and none of `without`."""
    return [
        path
        for path in paths
        if (not only or any(fits(pattern, path) for pattern in only))
        and not any(fits(pattern, path) for pattern in without)
    ]


def refuse_idle(setting: str, patterns: tuple[str, ...], paths: list[str], what: str) -> None:
    """Refuse patterns of a setting that fit none of the paths, which are `what`. Raises: ConfigError."""
    for pattern in patterns:
        if not any(fits(pattern, path) for path in paths):
            example = max(paths, key=len, default="none")
            raise ConfigError(f"adapter.{setting} has {pattern!r}, which fits no {what}; one of them is {example}.")
