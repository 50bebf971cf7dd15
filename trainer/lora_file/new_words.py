"""New words for the text encoders that a LoRA file brings with it: vectors of tokens that training made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import AdapterError
from trainer.lazy import torch
from trainer.lora_file.content import Content, content
from trainer.lora_file.header import EMBEDDING, read_header

if TYPE_CHECKING:
    from torch import Tensor


def embeddings(path: Path) -> dict[str, dict[str, Tensor]]:
    """New words of a file, `{word: {key: (vectors, dim)}}`; mostly none. Raises: AdapterError.

    A text encoder's key is A1111's: `string_to_param.*` where there is one encoder, `clip_l` and `clip_g` where there
    are these two.
    """
    return words(content(path)) if any(EMBEDDING.match(name) for name in read_header(path).shapes) else {}


def words(read: Content) -> dict[str, dict[str, Tensor]]:
    """The same of a file that was read. Raises: AdapterError."""
    path = read.path
    by_word: dict[str, dict[str, Tensor]] = {}
    for name, vectors in read.tensors.items():
        if match := EMBEDDING.match(name):
            by_word.setdefault(match["word"], {})[match["key"]] = vectors
    for word, parts in by_word.items():
        if refused := [
            vectors
            for vectors in parts.values()
            if vectors.ndim != 2 or not vectors.numel() or not vectors.is_floating_point()
        ]:
            raise AdapterError(
                f"{path.name}: the word {word!r} has vectors of shape {tuple(refused[0].shape)}; allowed: (vectors, "
                f"width)."
            )
        if len({len(vectors) for vectors in parts.values()}) > 1:
            counted = ", ".join(f"{key} {len(vectors)}" for key, vectors in parts.items())
            raise AdapterError(
                f"{path.name}: the word {word!r} has a number of vectors for each text encoder ({counted}); allowed: "
                f"one for all."
            )
    return by_word


def is_same_word(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """True if two words, vectors by key, are the same."""
    return one.keys() == other.keys() and all(torch.equal(vectors, other[key]) for key, vectors in one.items())
