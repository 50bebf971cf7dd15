"""Which events of a log mean anything: their values are of the kinds their fields say, and of a size to be drawn.

A log is a file that anybody may have edited or another version written; `events.read` looks at names only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from trainer.events import KINDS, Event

_LARGEST_INT, _LARGEST_FLOAT = 10**15, 1e30  # beyond these sums and ratios overflow


def plausible(log: Iterable[Event]) -> list[Event]:
    """The events that every reader can take at their word, in their order."""
    return [event for event in log if is_plausible(event)]


def is_plausible(event: Event) -> bool:
    """True if each field holds what its annotation says: finite numbers, text that is text."""
    return all(_fits(getattr(event, name), annotation) for name, annotation in _fields(event.kind))


@cache
def _fields(kind: str) -> list[tuple[str, Any]]:
    hints = get_type_hints(KINDS[kind])
    return [(field.name, hints[field.name]) for field in dataclasses.fields(KINDS[kind])]


def _fits(value: object, annotation: Any) -> bool:
    if annotation is int:
        # `type`, as True is an int as well.
        return type(value) is int and abs(value) <= _LARGEST_INT
    if annotation is float:
        return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT  # type: ignore[arg-type] # not so of nan
    if annotation is str or annotation is type(None):
        return isinstance(value, annotation)
    if get_origin(annotation) is list:
        return isinstance(value, list) and all(_fits(entry, get_args(annotation)[0]) for entry in value)
    # Only unions are left, such as float | None.
    assert get_origin(annotation) is Union or type(annotation).__name__ == "UnionType", annotation
    return any(_fits(value, part) for part in get_args(annotation))
