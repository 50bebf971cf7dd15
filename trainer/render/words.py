"""New words of a pipeline's text encoder (textual inversion, arXiv 2208.01618): known for a while, then forgotten bit for bit.

A word of n vectors is n tokens, `word, word_1, ...`, which the diffusers pipelines write out for it. Tokenizer and table of
embeddings are replaced, not changed, so that putting the old ones back leaves no trace.
"""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import AdapterError


class Vocabulary:
    """What a pipeline can read beside its own words; nothing where its family takes none."""

    def __init__(self, pipe: Any, family: ModuleType) -> None:
        self.pipe, self.family = pipe, family
        self.tokenizer = pipe.tokenizer
        self.table: nn.Embedding = pipe.text_encoder.get_input_embeddings()

    def check(self, words: dict[str, Tensor], file: str) -> None:
        """Raises: AdapterError if the family takes no new words, a file's have another width than the table's, or the base has a word of that name."""
        if words and not self.family.words:
            raise AdapterError(f"{file} brings the word {next(iter(words))!r}; new words are not known for {self.family.title}, so it can't be used.")
        for word, vectors in words.items():
            if vectors.shape[1] != self.table.embedding_dim:
                raise AdapterError(f"{file} brings the word {word!r} {vectors.shape[1]} wide; allowed for this base: {self.table.embedding_dim}.")
            grown = copy.deepcopy(self.tokenizer)
            if grown.add_tokens(_tokens(word, vectors)) != len(vectors) or len(grown) != len(self.tokenizer) + len(vectors):
                raise AdapterError(f"{file} brings the word {word!r}, which the base's tokenizer has as a word of its own.")

    def together(self, brought: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """All words of several files. Raises: AdapterError if two bring different ones of one name."""
        found: dict[str, Tensor] = {}
        for words in brought:
            for word, vectors in words.items():
                if not torch.equal(found.setdefault(word, vectors), vectors):
                    raise AdapterError(f"two files of the stack bring a word {word!r}, and not the same one; leave one of them out.")
        tokens = [token for word, vectors in found.items() for token in _tokens(word, vectors)]
        if twins := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise AdapterError(f"the stack's words of several vectors share {twins[0]!r}; leave one of their files out.")
        return found

    @torch.no_grad()
    def show(self, words: dict[str, Tensor]) -> None:
        """Know exactly these words; the base's own tokenizer and table are back if there are none."""
        if not self.family.words:
            return
        tokenizer, table = self.tokenizer, self.table
        if words:
            tokens = [token for word, vectors in words.items() for token in _tokens(word, vectors)]
            tokenizer = copy.deepcopy(self.tokenizer)
            tokenizer.add_tokens(tokens)
            ids = tokenizer.convert_tokens_to_ids(tokens)
            weight = table.weight.new_zeros(max(table.num_embeddings, *[number + 1 for number in ids]), table.embedding_dim)
            weight[: table.num_embeddings] = table.weight
            weight[ids] = torch.cat(list(words.values())).to(weight)
            table = nn.Embedding.from_pretrained(weight, freeze=True)
        self.pipe.tokenizer = tokenizer
        self.pipe.text_encoder.set_input_embeddings(table)


def _tokens(word: str, vectors: Tensor) -> list[str]:
    return [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
