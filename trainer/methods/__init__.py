"""Adapter methods, one a file: the module's name is the method's.

Contract of a method module (`tests/house.py` holds every one to it):

    name            the tag in `adapter.method`, the module's own name
    title           for people
    Config          its settings; `method: Literal[name]` without a default; `linear_only` is True where it can't be on convolutions
    peft_config     (Config, target regex) -> the PEFT config that attaches it
    to_file         (tensors of one module as PEFT calls them, Config) -> as the file calls them, alpha included
    header          Config -> what the file's header says of it (`ss_network_*`)
    recognises      whether these are the suffixes of one of its modules in a file, alpha left out
    from_file       (tensors of one module as a file calls them, alpha or None) -> its `trainer.deltas.Update`, whatever the
                    tool that wrote it; raises ValueError with the shapes if the parts don't fit each other
    as_said         only where the numbers alone don't tell: (that update, what the file's header says in PEFT's words) -> the
                    update as its file means it; raises ValueError, in words that go on from the module's name
    says            only with `as_said`, where names are given anew: update -> the `ss_network_args` that make it read so again
    scaled          only for a method with a scale: (update, its tensors) -> those that have to be others for the file alone to say it

A method whose update is not low-rank has a class of its own for it, which keeps `Update`. A method sees `schema`, `deltas`
and torch, never the loop, the config or another method.
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
