"""An adapter as it lies in memory once its file was read."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.deltas import Update
from trainer.render.new_words import Words
from trainer.render.packing import Packed


@dataclass(frozen=True)
class Adapter:
    """What a file holds."""

    key: str  # by its content: names and numbers
    sha256: str  # of the numbers alone, as sshs_model_hash
    trigger: str
    updates: dict[str, Update]  # by component.module.path
    components: dict[str, Packed]  # the same as they are folded
    words: Words  # new words for the text encoders
    num_bytes: int
