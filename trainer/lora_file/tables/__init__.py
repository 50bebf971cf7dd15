"""What other tools find in a LoRA file, as tables made by running their own code (`tests/probe_tools.py`).

There is one file a tool, with its version in it. A module is looked up by its whole name, prefix included, with `#` for
the number of a block: `transformer.transformer_blocks.#.attn.to_q`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_NUMBER = re.compile(r"(?<![a-z])(?<!encoder_)\d+")
_LONGEST = 1000  # characters of a module's name that are looked at; real names have some 100


@dataclass(frozen=True)
class Table:
    """What one version of a tool loads.

    `loads` has module names by family and method; `stops` has modules that make the tool load nothing, with the reason.
    """

    version: str
    methods: frozenset[str]  # that were tried
    families: frozenset[str]  # that were tried; others are not checked
    lacks: frozenset[str]  # families that the tool has no LoRAs for
    loads: dict[str, dict[str, frozenset[str]]]  # family -> method -> modules
    stops: dict[str, dict[str, dict[str, str]]]  # family -> method -> module -> reason

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
    content = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    loads: dict[str, dict[str, frozenset[str]]] = {}
    stops: dict[str, dict[str, dict[str, str]]] = {}
    for family, groups in content["loads"].items():
        by_method = loads.setdefault(family, {})
        for group in groups:
            for method in group["methods"]:
                # A method may stand in several groups.
                by_method[method] = by_method.get(method, frozenset()) | frozenset(group["modules"])
    for family, groups in content["stops"].items():
        for group in groups:
            for method in group["methods"]:
                stops.setdefault(family, {}).setdefault(method, {}).update(
                    dict.fromkeys(group["modules"], group["why"])
                )
    return Table(
        content["version"],
        frozenset(content["methods"]),
        frozenset(content["loads"]),
        frozenset(content["lacks"]),
        loads,
        stops,
    )
