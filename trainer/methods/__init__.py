"""Adapter methods, one a file, whose names are the facts and functions of `contract.Method`.

A method whose update is not low-rank has a class of its own for it, which keeps `Update`. A method sees `schema`,
`deltas` and torch, never the loop, the config or another method.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from trainer import contracts
from trainer.methods.contract import Method


@cache
def registry() -> dict[str, Method]:
    """Every method by name; a new file in this folder is a new method."""
    return contracts.gather(Method, __name__, __path__)


def on_quantised() -> str:
    """The methods that can lie on a quantised base, and by what they are started there, in words."""
    allowed = {name: method.starts_on_quantised for name, method in registry().items() if method.starts_on_quantised}
    return "; ".join(
        f"{name}, started by {', '.join(starts[:-1])} or {starts[-1]}" if len(starts) > 1 else name
        for name, starts in allowed.items()
    )


def allowing(is_allowed: Callable[[Method], bool]) -> tuple[str, ...]:
    """Names of the methods with which something may be done, for a message or a form; LoRA, the usual one, first."""
    names = [name for name, method in registry().items() if is_allowed(method)]
    return tuple(sorted(names, key=lambda name: name != "lora"))
