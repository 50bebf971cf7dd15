"""Replacing a module's `forward` on the instance: each wraps what was there and takes only its own away.

Compiled blocks, plain attention, convolutions as products, modes and regions each put a forward of their own over a
module's. Set and deleted by hand, the second loses the first, or what a library put there. Here the layers over one
module are a list: whoever takes one away, in any order, leaves the others in force over the same original.

A layer is made anew, by its function, when one below it changes, and what is called is what that function gave, without
a frame in between: torch.compile keeps one compiled program for all blocks of a kind only while it is given the class's
own forward. A deep copy of a module has the same layers, and can take them away.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

Forward = Callable[..., Any]
Wrap = Callable[[Forward], Forward]
_KEPT = "_velatura_forwards"  # on the module itself, so that it is copied and freed with it


@dataclass
class _Layers:
    """What lies over one module's forward."""

    bare: bool  # the instance had no forward of its own
    original: Forward
    wraps: dict[Hashable, Wrap]  # by owner, the innermost first
    top: Forward


def wrap(module: nn.Module, owner: Hashable, layer: Wrap) -> None:
    """Make the module compute `layer(forward)`, over what it computes now.

    A layer that this owner has there already is replaced where it lies.
    """
    layers = _layers(module)
    if layers is None:
        layers = _Layers("forward" not in vars(module), module.forward, {}, module.forward)
    _lay(module, layers, layers.wraps | {owner: layer})


def unwrap(module: nn.Module, owner: Hashable) -> None:
    """Take the owner's layer away, if there is one.

    What a library has put over or in place of the layers since then stays as it is.
    """
    layers = _layers(module)
    if layers is not None and owner in layers.wraps:
        _lay(module, layers, {name: layer for name, layer in layers.wraps.items() if name != owner})


@contextmanager
def wrapped(module: nn.Module, layer: Wrap) -> Iterator[None]:
    """The module computes `layer(forward)` for the body."""
    owner = object()
    wrap(module, owner, layer)
    try:
        yield
    finally:
        unwrap(module, owner)


def _layers(module: nn.Module) -> _Layers | None:
    """The layers over this module; None if there are none or a library has replaced the whole."""
    layers: _Layers | None = vars(module).get(_KEPT)
    return layers if layers is not None and vars(module).get("forward") is layers.top else None


def _lay(module: nn.Module, layers: _Layers, wraps: dict[Hashable, Wrap]) -> None:
    """Put these layers over the original; nothing is changed if one of them can't be made."""
    # Make them all first.
    top = layers.original
    for layer in wraps.values():
        top = layer(top)

    # Then put the outermost in place, past nn.Module.__setattr__, which would register a module.
    own = vars(module)
    if wraps:
        own[_KEPT], own["forward"] = _Layers(layers.bare, layers.original, wraps, top), top
        return

    # Without any layer the instance is as it was.
    del own[_KEPT]
    if layers.bare:
        del own["forward"]
    else:
        own["forward"] = layers.original
