"""The page's tabs, one a file: TITLE, ORDER, build(context) -> Refresh | None, called inside its `gr.Tab`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType


@cache
def registry() -> list[ModuleType]:
    """Every tab module in the order it is shown; a new file in this folder is a new tab."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return sorted(modules, key=lambda module: module.ORDER)
