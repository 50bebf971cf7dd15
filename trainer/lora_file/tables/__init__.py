"""What other tools find in a LoRA file, as tables made by running their own code (`tests/probe_tools.py`): one file a tool, its version in it.

A module is looked up by its whole name, prefix included, with `#` for the number of a block: `transformer.transformer_blocks.#.attn.to_q`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NUMBER = re.compile(r"(?<![a-z])(?<!encoder_)\d+")
_LONGEST = 1000  # of a module's name


@dataclass(frozen=True)
class Table:
    """What one version of a tool loads. `loads` and `stops` are by family and method; a module that stops a tool has the reason with it."""

    version: str
    methods: frozenset[str]  # that were tried
    families: frozenset[str]  # that were tried; others are not checked
    lacks: frozenset[str]  # families that the tool has no LoRAs for
    loads: dict[str, dict[str, frozenset[str]]]
    stops: dict[str, dict[str, dict[str, str]]]

    def finds(self, family: str, method: str, module: str) -> bool:
        """Whether the tool finds a module of a file."""
        return pattern(module) in self.loads.get(family, {}).get(method, frozenset())

    def stopped(self, family: str, method: str, module: str) -> str:
        """Why the tool loads nothing of a file with such a module, or nothing."""
        return self.stops.get(family, {}).get(method, {}).get(pattern(module), "")


def pattern(module: str) -> str:
    """A module's name with `#` for block numbers; those that are part of a word stay (`attn1`, `text_encoder_2`)."""
    return _NUMBER.sub("#", module[:_LONGEST])


@cache
def table(name: str) -> Table:
    """The table of a tool."""
    read = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    loads: dict[str, dict[str, frozenset[str]]] = {}
    stops: dict[str, dict[str, dict[str, str]]] = {}
    for family, groups in read["loads"].items():
        by_method = loads.setdefault(family, {})
        for group in groups:
            for method in group["methods"]:
                by_method[method] = by_method.get(method, frozenset()) | frozenset(group["modules"])
    for family, groups in read["stops"].items():
        for group in groups:
            for method in group["methods"]:
                stops.setdefault(family, {}).setdefault(method, {}).update(dict.fromkeys(group["modules"], group["why"]))
    return Table(
        read["version"], frozenset(read["methods"]), frozenset(read["loads"]), frozenset(read["lacks"]), loads, stops
    )  # fmt: skip
