"""The alpha of a module where a file keeps it in its header: diffusers' `lora_adapter_metadata`, PEFT's config as JSON.

Patterns there are regular expressions that whoever made the file chose; only plain paths are taken, as every writer makes them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from trainer.errors import AdapterError

_PATH = re.compile(r"\^?[\w.\\-]+\$?")
Alpha = Callable[[str, int], float | None]


def from_header(name: str, metadata: dict[str, str]) -> Alpha:
    """`alpha(module, rank)` of the file called `name`; None where the header says nothing. Raises: AdapterError if what it says can't be read."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return lambda module, rank: None
    try:
        values = {str(key): value for key, value in json.loads(text).items() if value}
        wide = {key.removesuffix(".lora_alpha"): float(value) for key, value in values.items() if key.endswith(".lora_alpha")}
        patterns = {key.removesuffix(".alpha_pattern"): _paths(value) for key, value in values.items() if key.endswith(".alpha_pattern")}
        stabilised = {key.removesuffix(".use_rslora") for key in values if key.endswith(".use_rslora")}
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        raise AdapterError(f"{name} has lora_adapter_metadata that can't be read, so its alpha is unknown.") from None

    def alpha(module: str, rank: int) -> float | None:
        component, _, path = module.partition(".")
        own = next((value for pattern, value in patterns.get(component, {}).items() if f".{path}".endswith(f".{pattern}")), wide.get(component))
        return own if own is None or component not in stabilised else own * math.sqrt(rank)

    return alpha


def _paths(found: dict[str, float]) -> dict[str, float]:
    """`{end of a path: alpha}`. Raises: ValueError for patterns that are more than a path."""
    if not all(_PATH.fullmatch(pattern) for pattern in found):
        raise ValueError("a pattern")
    return {pattern.removeprefix("^").removesuffix("$").replace("\\", ""): float(value) for pattern, value in found.items()}
