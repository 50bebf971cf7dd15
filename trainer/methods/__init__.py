"""Adapter methods, one a file: the module's name is the method's.

Contract of a method module (`tests/house.py` holds every one to it):

    name            the tag in `adapter.method`, the module's own name
    title           for people
    Config          its settings; `method: Literal[name]` without a default
    peft_config     (Config, target regex) -> the PEFT config that attaches it
    to_file         tensors of one module as PEFT calls them -> as the file calls them, alpha included
    from_file       the other way: a `Delta`, whatever the tool that wrote it
    recognises      whether a file's suffixes are this method's

A method sees `schema` and torch, never the loop, the config or another method.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def registry() -> dict[str, ModuleType]:
    """Every method module by name; a new file in this folder is a new method."""
    names = sorted(info.name for info in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}
