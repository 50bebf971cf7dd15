"""A new word for the text encoders: textual inversion (arXiv 2208.01618), trained together with the adapter.

Where a base has several CLIP encoders, the word has vectors of its own in each, and all are trained. An encoder's own
table of embeddings is neither grown nor written to: hooks put the new vectors in their places as the table is read, so
that taking the word away leaves every weight as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer import families
from trainer.config import InversionConfig
from trainer.errors import ConfigError

PREFIX = "embedding."


class Word:
    """The word's vectors on a pipeline: by text encoder, `vectors` (n, dim) are trained, `start` is what they were."""

    def __init__(self, pipe: Any, config: InversionConfig, saved: dict[str, Tensor] | None = None) -> None:
        """Raises: ConfigError if the base already knows the word, or not the word to start from."""
        # The text encoders, with their tokenizers and their tables of embeddings.
        self.name, self.keys = config.token, families.of(pipe).words
        tokenizers = {encoder: getattr(pipe, encoder.replace("text_encoder", "tokenizer")) for encoder in self.keys}
        tables: dict[str, nn.Embedding] = {
            encoder: getattr(pipe, encoder).get_input_embeddings() for encoder in self.keys
        }
        self.start = {
            encoder: _start(tokenizers[encoder], table, config).to(table.weight.device)
            for encoder, table in tables.items()
        }

        # The word as tokens behind the tokenizer's last, a token for each vector. Two encoders may share one tokenizer.
        firsts = {encoder: len(tokenizer) for encoder, tokenizer in tokenizers.items()}
        words = [config.token, *(f"{config.token}_{number}" for number in range(1, config.vectors))]
        for tokenizer in {id(tokenizer): tokenizer for tokenizer in tokenizers.values()}.values():
            size = len(tokenizer)
            if tokenizer.add_tokens(words) != len(words) or len(tokenizer) != size + len(words):
                raise ConfigError(
                    f"inversion.token is {config.token!r}, which the base's tokenizer already has as a word of its "
                    f"own; choose another."
                )

        # The vectors, at their start or as saved, in the places of those tokens.
        self.vectors = {
            encoder: nn.Parameter(start.clone() if saved is None else saved[self._parameter(encoder)].to(start.device))
            for encoder, start in self.start.items()
        }
        # The table itself stays as it is: made longer, it would be all trained, or copied at every step.
        self._shown = {
            encoder: _Shown(table, firsts[encoder], self.vectors[encoder]) for encoder, table in tables.items()
        }

    def _parameter(self, encoder: str) -> str:
        """How a checkpoint names an encoder's vectors; those of the first encoder by the word alone."""
        return f"{PREFIX}{self.name}" + ("" if encoder == next(iter(self.keys)) else f"/{encoder}")

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {self._parameter(encoder): vectors for encoder, vectors in self.vectors.items()}

    def in_file(self) -> dict[str, Tensor]:
        """The vectors by their keys in a LoRA file."""
        return {self.keys[encoder]: vectors.detach() for encoder, vectors in self.vectors.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The word as it was before training, for the body."""
        for encoder, shown in self._shown.items():
            shown.vectors = self.start[encoder]
        try:
            yield
        finally:
            for encoder, shown in self._shown.items():
                shown.vectors = self.vectors[encoder]


class _Shown:
    """`vectors` (n, dim) as what a table reads at ids from `first` on."""

    def __init__(self, table: nn.Embedding, first: int, vectors: Tensor) -> None:
        self.first, self.vectors = first, vectors
        self._hooks = [table.register_forward_pre_hook(self._mark), table.register_forward_hook(self._put)]
        self._ids: Tensor | None = None

    def _mark(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Before the table is read: ids that it hasn't become 0, and `_put` replaces what is read for them."""
        self._ids = inputs[0]
        return (torch.where(self._ids >= self.first, 0, self._ids), *inputs[1:])

    def _put(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """After the table is read (B, L, dim): the vectors in the places of the new ids."""
        assert self._ids is not None
        places = (self._ids - self.first).clamp(min=0)  # of the vectors; any for other ids, which keep theirs
        return torch.where((self._ids >= self.first)[..., None], self.vectors[places].to(output.dtype), output)


# Names and starts.


def of_parameter(name: str, keys: Mapping[str, str]) -> tuple[str, str]:
    """The word that a parameter is of, and its key in a LoRA file; `keys` are a family's `words`."""
    word, _, encoder = name.removeprefix(PREFIX).partition("/")
    return word, keys[encoder or next(iter(keys))]


def _start(tokenizer: Any, table: nn.Embedding, config: InversionConfig) -> Tensor:
    """(vectors, dim) float32: the start word's embedding, or the table's mean, once for each vector."""
    if not config.start_from:
        mean = table.weight.detach().float().mean(0)
        return mean.expand(config.vectors, -1).clone()
    ids = tokenizer(config.start_from, add_special_tokens=False).input_ids
    if not ids:
        raise ConfigError(
            f"inversion.start_from is {config.start_from!r}, which the base's tokenizer reads as nothing; name a "
            f"common word."
        )
    rows = table.weight.detach()[torch.tensor(ids, device=table.weight.device)].float()
    # A start word of fewer tokens than there are vectors is said over and over.
    return torch.stack([rows[number % len(rows)] for number in range(config.vectors)])
