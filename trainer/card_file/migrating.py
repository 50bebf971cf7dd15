"""Cards of an older schema -> the schema of today, one version at a time.

A card keeps its digest, which is of what stands in it; only what is read from it is brought up to date.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainer.card_file.contents import SCHEMA
from trainer.errors import ConfigError
from trainer.printing import plain

Values = dict[str, Any]
_MASKED = "pictures with masks"


def migrated(values: Values, where: str) -> Values:
    """The values of `card.toml` as today's schema has them. Raises: ConfigError for a schema that isn't known."""
    version = values.get("schema_version")
    if type(version) is not int or not 1 <= version <= SCHEMA:
        newer = " It was made by a newer Velatura." if type(version) is int and version > SCHEMA else ""
        raise ConfigError(f"{where}: schema_version is {plain(version, 40)}; allowed: 1 to {SCHEMA}.{newer}")
    for older in range(version, SCHEMA):
        values = {**_STEPS[older](values), "schema_version": older + 1}
    return values


def _memory_in_bytes(values: Values) -> Values:
    """1 -> 2: memory was `peak_memory_gib`, a rounded number; it is counted in bytes, as a run's log has it."""
    evidence = values.get("evidence")
    if not isinstance(evidence, dict) or "peak_memory_gib" not in evidence:
        return values
    gib = evidence["peak_memory_gib"]
    if not isinstance(gib, int | float) or isinstance(gib, bool) or not 0 <= gib < 1 << 20:
        raise ConfigError(f"evidence.peak_memory_gib is {plain(gib, 40)}; allowed: a number of GiB.")
    kept = {key: value for key, value in evidence.items() if key != "peak_memory_gib"}
    return {**values, "evidence": {**kept, "peak_memory_bytes": round(gib * (1 << 30))}}


def facts_of_schema_2(facts: Any) -> Any:
    """Facts of a dataset as schema 2 had them -> as schema 3 has them, which a run's folder may hold too."""
    if not isinstance(facts, dict) or "kind" not in facts:
        return facts
    kept = {key: value for key, value in facts.items() if key != "kind"}
    return {**kept, "masks": "some"} if facts["kind"] == _MASKED else kept


def _masks_apart(values: Values) -> Values:
    """2 -> 3: `kind` was a text, `pictures` or `pictures with masks`; it is what they teach, and masks stand apart."""
    evidence = values.get("evidence")
    if not isinstance(evidence, dict) or "dataset" not in evidence:
        return values
    return {**values, "evidence": {**evidence, "dataset": facts_of_schema_2(evidence["dataset"])}}


_STEPS: dict[int, Callable[[Values], Values]] = {1: _memory_in_bytes, 2: _masks_apart}
