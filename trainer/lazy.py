"""The large libraries, each loaded when something of it is first used.

`velatura --help`, a mistaken setting and the page's first second need none of them, and they take seconds to load:
torch two, diffusers two more. A module that start-up reads takes them from here (`from trainer.lazy import torch`);
every other module imports them as usual.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# Type checkers and editors see the libraries themselves.
if TYPE_CHECKING:
    import diffusers as diffusers
    import numpy as numpy
    import torch as torch
    import transformers as transformers
    from PIL import Image as Image
    from PIL import ImageOps as ImageOps
else:

    class _Lazy(ModuleType):
        """Stands for a library; what is read from it is read from the library."""

        def __getattr__(self, name: str) -> Any:
            # Not stored: what a test or another library replaces there is seen here too.
            return getattr(import_module(self.__name__), name)

    diffusers, numpy, torch, transformers = map(_Lazy, ("diffusers", "numpy", "torch", "transformers"))
    Image, ImageOps = map(_Lazy, ("PIL.Image", "PIL.ImageOps"))
