"""Two sets of settings beside each other: what differs, in the form's words, with the effective scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainer.cards.places import YOURS
from trainer.config import TrainConfig
from trainer.schema import Settings, path_kind

_PLACE_KINDS = ("dataset", "loras", "start")


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same; None where one side doesn't have it."""

    key: str
    title: str
    before: Any
    after: Any


def differences(before: Settings, after: Settings) -> list[Difference]:
    """The settings that differ, in the form's order; where somebody's pictures lie is none."""
    old, new = dict(_rows(before)), dict(_rows(after))
    found = []
    for key in dict.fromkeys([*old, *new]):
        values = [rows[key][1] if key in rows else None for rows in (old, new)]
        if values[0] != values[1]:
            found.append(Difference(key, (new.get(key) or old[key])[0], *values))
    return found


def scale(config: Settings) -> float | None:
    """By how much an update counts: alpha / rank, or alpha / sqrt(rank) where it is rank-stabilised; None without."""
    adapter = getattr(config, "adapter", None)
    rank, alpha = getattr(adapter, "rank", None), getattr(adapter, "alpha", None)
    if not rank or alpha is None:
        return None
    return float(alpha / (math.sqrt(rank) if getattr(adapter, "rank_stabilised", False) else rank))


def _rows(config: Settings) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Each setting's key with its title and value; after the adapter's own, their effective scale."""
    for key, title, value in _leaves(config, ""):
        yield key, (title, value)
        if key == "adapter.rank" and (effective := scale(config)) is not None:
            yield "adapter.scale", ("Effective scale", round(effective, 6))


def _leaves(group: Settings, prefix: str) -> Iterator[tuple[str, str, Any]]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Settings):
            yield from _leaves(value, f"{prefix}{name}.")
        elif path_kind(field) not in _PLACE_KINDS:
            yield f"{prefix}{name}", field.title or name, _plain(value)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Settings):
        return value.model_dump(mode="json", exclude_none=True)
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def describe(found: list[Difference], names: tuple[str, str]) -> str:
    """A line for each difference; a sentence where there is none."""
    if not found:
        return "their settings are the same."
    lines = [f"{'':<28}{'':<26}{names[0][:28]:<30}{names[1][:28]}"]
    for one in found:
        lines.append(f"{one.key:<28}{one.title[:24]:<26}{spelled(one.before)[:28]:<30}{spelled(one.after)[:60]}")
    return "\n".join(line.rstrip() for line in lines)


def spelled(value: Any) -> str:
    """A value in a line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(spelled, value)) or "none" if isinstance(value, list | tuple) else str(value) or "none"


def against_defaults(config: TrainConfig) -> list[Difference]:
    """What the settings change of the defaults; those that have none count as changed."""
    found = []
    for key, title, value in _leaves(config, ""):
        default = _default(config, key)
        if value != default and value != YOURS:
            found.append(Difference(key, title, default, value))
    return found


def _default(config: Settings, dotted: str) -> Any:
    *parents, last = dotted.split(".")
    for part in parents:
        config = getattr(config, part)
    field = type(config).model_fields[last]
    return None if field.is_required() else _plain(field.default)
