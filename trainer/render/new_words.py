"""New words of a pipeline's text encoders (textual inversion, arXiv 2208.01618), which leave no trace afterwards.

A word of n vectors is n tokens, `word, word_1, ...`, which the diffusers pipelines write out for it. Tokenizers and
tables of embeddings are replaced, not changed, so that putting the old ones back leaves no trace.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from trainer import lora_file
from trainer.errors import AdapterError
from trainer.families.contract import Family

Words = dict[str, dict[str, Tensor]]  # by word: its vectors (n, dim) by their key in a LoRA file


class Vocabulary:
    """The words that a pipeline's text encoders know beside their own; none where the family takes no new words."""

    def __init__(self, pipe: Any, family: Family) -> None:
        self.pipe, self.family = pipe, family
        self.tokenizers = {encoder: getattr(pipe, _tokenizer(encoder)) for encoder in family.words}
        self._shown: Words | None = {}  # None: broken off
        self.tables: dict[str, nn.Embedding] = {
            encoder: getattr(pipe, encoder).get_input_embeddings() for encoder in family.words
        }

    def check(self, words: Words, file: str) -> None:
        """Refuse a file's words if they can't be shown here.

        Raises: AdapterError if the family takes no new words, these don't fit its text encoders, or the base has a word
        of that name.
        """
        if words and not self.family.words:
            raise AdapterError(
                f"{file} brings the word {next(iter(words))!r}; new words are not known for {self.family.title}, so "
                f"it can't be used."
            )
        for word, parts in words.items():
            if set(parts) != set(self.family.words.values()):
                wanted = f"{' and '.join(self.family.words.values())}, vectors for each text encoder"
                raise AdapterError(
                    f"{file} brings the word {word!r} as {' and '.join(sorted(parts))}; allowed for "
                    f"{self.family.title}: {wanted}."
                )
            for encoder, key in self.family.words.items():
                vectors, tokenizer, width = parts[key], self.tokenizers[encoder], self.tables[encoder].embedding_dim
                if vectors.shape[1] != width:
                    raise AdapterError(
                        f"{file} brings the word {word!r} {vectors.shape[1]} wide ({key}); allowed for this base: "
                        f"{width}."
                    )
                # A token that the tokenizer has already isn't counted, or takes the other's number.
                grown = copy.deepcopy(tokenizer)
                num_added = grown.add_tokens(_tokens(word, parts))
                if num_added != len(vectors) or len(grown) != len(tokenizer) + len(vectors):
                    raise AdapterError(
                        f"{file} brings the word {word!r}, which the base's tokenizer has as a word of its own."
                    )

    def together(self, files: list[Words]) -> Words:
        """All words of several files. Raises: AdapterError if two bring different words of one name."""
        together: Words = {}
        for words in files:
            for word, parts in words.items():
                if not lora_file.is_same_word(together.setdefault(word, parts), parts):
                    raise AdapterError(
                        f"two files of the stack bring a word {word!r}, and not the same one; leave one of them out."
                    )
        tokens = [token for word, parts in together.items() for token in _tokens(word, parts)]
        if twins := sorted({token for token in tokens if tokens.count(token) > 1}):
            raise AdapterError(
                f"the stack's words of several vectors share {twins[0]!r}; leave one of their files out."
            )
        return together

    @torch.no_grad()
    def show(self, words: Words) -> None:
        """Know exactly these words; the base's own tokenizers and tables are back if there are none."""
        shown = self._shown
        if (
            shown is not None
            and list(words) == list(shown)
            and all(lora_file.is_same_word(parts, shown[word]) for word, parts in words.items())
        ):
            return

        # Copies with the new tokens take the place of each text encoder's tokenizer and table.
        self._shown = None
        tokens = [token for word, parts in words.items() for token in _tokens(word, parts)]
        for encoder, key in self.family.words.items():
            tokenizer, table = self.tokenizers[encoder], self.tables[encoder]
            if words:
                tokenizer = copy.deepcopy(tokenizer)
                tokenizer.add_tokens(tokens)
                ids = tokenizer.convert_tokens_to_ids(tokens)
                weight = table.weight.new_zeros(
                    max(table.num_embeddings, *[number + 1 for number in ids]), table.embedding_dim
                )
                weight[: table.num_embeddings] = table.weight
                weight[ids] = torch.cat([parts[key] for parts in words.values()]).to(weight)
                table = nn.Embedding.from_pretrained(weight, freeze=True)
            setattr(self.pipe, _tokenizer(encoder), tokenizer)
            getattr(self.pipe, encoder).set_input_embeddings(table)
        self._shown = words


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _tokens(word: str, parts: dict[str, Tensor]) -> list[str]:
    """The tokens of a word, one a vector, as diffusers names them."""
    num = len(next(iter(parts.values())))
    return [word, *(f"{word}_{number}" for number in range(1, num))]
