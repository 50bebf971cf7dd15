"""Layers in train mode for a while: everything else of a run computes as it does in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_training(layers: list[nn.Module]) -> Iterator[None]:
    """These adapter layers in train mode for the body, where their dropout works; the base stays as in use."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
