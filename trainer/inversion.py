"""A new word for the text encoder: textual inversion (arXiv 2208.01618), trained together with the adapter.

The text encoder's own table of embeddings is neither grown nor written to: hooks put the new vectors in their places as
the table is read, so that taking the word away leaves every weight as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config import InversionConfig
from trainer.errors import ConfigError

PREFIX = "embedding."


class Word:
    """The word's vectors on a pipeline with one CLIP text encoder; `vectors` (n, dim) is what is trained."""

    def __init__(self, pipe: Any, config: InversionConfig, saved: dict[str, Tensor] | None = None) -> None:
        """Raises: ConfigError if the base already knows the word, or not the one to start from."""
        self.name = config.token
        table: nn.Embedding = pipe.text_encoder.get_input_embeddings()
        words = [config.token, *(f"{config.token}_{number}" for number in range(1, config.vectors))]
        start = _start(pipe.tokenizer, table, config)
        self.first = len(pipe.tokenizer)
        if pipe.tokenizer.add_tokens(words) != len(words) or len(pipe.tokenizer) != self.first + len(words):
            raise ConfigError(f"inversion.token is {config.token!r}, which the base's tokenizer already has as a word of its own; choose another.")
        self.start = start.to(table.weight.device)
        key = f"{PREFIX}{config.token}"
        self.vectors = nn.Parameter(self.start.clone() if saved is None else saved[key].to(table.weight.device))
        self._shown: Tensor = self.vectors
        self._hooks = [table.register_forward_pre_hook(self._mark), table.register_forward_hook(self._put)]
        self._ids: Tensor | None = None

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{PREFIX}{self.name}": self.vectors}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The word as it was before training, for the body."""
        self._shown = self.start
        try:
            yield
        finally:
            self._shown = self.vectors

    def _mark(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._ids = inputs[0]
        return (torch.where(self._ids >= self.first, 0, self._ids), *inputs[1:])

    def _put(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert self._ids is not None
        places = (self._ids - self.first).clamp(min=0)
        return torch.where((self._ids >= self.first)[..., None], self._shown[places].to(output.dtype), output)


def _start(tokenizer: Any, table: nn.Embedding, config: InversionConfig) -> Tensor:
    """(vectors, dim) float32: the start word's embedding, or the table's mean, once for each vector."""
    if not config.start_from:
        mean = table.weight.detach().float().mean(0)
        return mean.expand(config.vectors, -1).clone()
    ids = tokenizer(config.start_from, add_special_tokens=False).input_ids
    if not ids:
        raise ConfigError(f"inversion.start_from is {config.start_from!r}, which the base's tokenizer reads as nothing; name a common word.")
    rows = table.weight.detach()[torch.tensor(ids, device=table.weight.device)].float()
    return torch.stack([rows[number % len(rows)] for number in range(config.vectors)])
