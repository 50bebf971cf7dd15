"""Weights of words in prompts, `(word:1.3)`, `[word]` and BREAK, and the conditioning they give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from trainer import families
from trainer.config.stack import WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

MAX_BRACKETS = 32  # open at once; deeper brackets are literal text
_ATTENTION = re.compile(
    r"\\[()\[\]\\]|\(|\[|:[ ]{0,4}([+-]?(?:\d{1,4}\.?\d{0,6}|\.\d{1,6}))[ ]{0,4}\)|\)|\]|[^\\()\[\]:]+|.", re.DOTALL
)
_LEAST_MEAN = 0.02  # of the spread; below it the quotient of two means is chance. Imprimatura's is 0.001
_BREAK = re.compile(r"\bBREAK\b")
BREAK = ("BREAK", -1.0)  # in what `parse_attention` gives: what follows starts a new window


def parse_attention(prompt: str) -> list[tuple[str, float]]:
    """The prompt in pieces with a weight each.

    `(a)` is 1.1, `[a]` is 1 / 1.1, `(a:1.3)` is 1.3, nested ones multiply, `\\(` is a bracket. As A1111's
    `modules/prompt_parser.parse_prompt_attention`, whose examples the tests hold; `BREAK` is a piece of its own, as
    there. Raises: ConfigError for a weight beyond -20 to 20.
    """
    pieces: list[list[Any]] = []  # text, weight; None for BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}  # at which piece each open bracket begins

    def weigh(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] = None if piece[1] is None else piece[1] * factor

    for match in _ATTENTION.finditer(prompt):
        text, weight = match[0], match[1]
        if text in opened and len(opened[text]) < MAX_BRACKETS:
            opened[text].append(len(pieces))
        elif weight is not None and opened["("]:
            weigh(opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            weigh(opened["("].pop(), 1.1)
        elif text == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / 1.1)
        elif text[0] == "\\":
            pieces.append([text[1:], 1.0])
        else:
            for number, part in enumerate(_BREAK.split(text)):
                pieces += [[part, 1.0]] if number == 0 else [[BREAK[0], None], [part, 1.0]]

    # Brackets that nothing closes weigh all that follows, as there.
    for bracket, factor in (("(", 1.1), ("[", 1 / 1.1)):
        for start in opened[bracket]:
            weigh(start, factor)
    return _joined(pieces)


def _joined(pieces: list[list[Any]]) -> list[tuple[str, float]]:
    """Neighbours of one weight as one piece."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if weight is None:
            joined.append(BREAK)
        elif abs(weight) > WIDEST_WEIGHT:
            raise ConfigError(
                f"prompt gives {text.strip()[:40]!r} the weight {weight:g}; allowed: -{WIDEST_WEIGHT:g} to "
                f"{WIDEST_WEIGHT:g}."
            )
        elif joined and joined[-1] != BREAK and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        elif text:
            joined.append((text, weight))
    return joined or [("", 1.0)]


def weighted_embeddings(pipe: Any, prompt: str, windows: int = 1) -> dict[str, Tensor]:
    """The conditioning of a prompt with weights, of at least so many windows.

    `encoder_hidden_states` is (k * L, D), with k windows of L tokens, both marks among them. For families whose prompts
    can be cut into windows. A prompt of one window without weights is encoded by the pipeline itself. Else each piece
    is cut into tokens for itself, windows are encoded one by one and laid end to end, each token's output is multiplied
    by its weight, and each window's mean is restored, for each text encoder by itself: A1111's "Original" emphasis
    (modules/sd_hijack_clip.py, sd_emphasis.py). What a text encoder says of a prompt as a whole is the first window's
    and has no weights. Unlike there a window isn't broken early at a comma, and a mean that is next to nothing isn't
    restored: it would scale the rest by chance. Raises: ConfigError for weights beyond -20 to 20.
    """
    # Windows of tokens.
    family, pieces = families.of(pipe), parse_attention(prompt)
    size = family.window(pipe)
    chunks = _chunks(pipe, pieces, size)
    plain = all(weight == 1 for _, weight in pieces)
    if plain and len(chunks) == windows == 1:
        return family.encode_text(pipe, [pieces[0][0]], 1)[0]

    # Both marks and the padding keep the weight 1.
    chunks += [[]] * (windows - len(chunks))
    weights = torch.tensor(
        [[1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * (size - len(chunk))] for chunk in chunks]
    )  # (k, L)

    # The outputs of each text encoder, weighed.
    assert family.encode_windows, "weights are for families whose text encoders read windows"
    hidden, whole = family.encode_windows(pipe, [[token for token, _ in chunk] for chunk in chunks])
    if not plain:
        hidden = [_weighted(output, weights) for output in hidden]
    return {"encoder_hidden_states": torch.cat(hidden, -1).flatten(0, 1), **whole}


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """A text encoder's output (k, L, D) times each token's weight (k, L), its windows' means as they were."""
    before = hidden.float()
    after = before * weights.to(before.device)[..., None]
    mean_before, mean_after = before.mean((1, 2), keepdim=True), after.mean((1, 2), keepdim=True)  # (k, 1, 1)
    # mean_before / mean_after scales by chance where either is small beside the spread.
    is_mean = torch.minimum(mean_before.abs(), mean_after.abs()) > _LEAST_MEAN * before.std((1, 2), keepdim=True)
    return torch.where(is_mean, after * (mean_before / mean_after), after).to(hidden.dtype)


def weighted_pair(pipe: Any, prompt: str, negative_prompt: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditionings of both prompts, as many windows each."""
    windows = max(num_windows(pipe, prompt), num_windows(pipe, negative_prompt))
    return weighted_embeddings(pipe, prompt, windows), weighted_embeddings(pipe, negative_prompt, windows)


def num_windows(pipe: Any, prompt: str) -> int:
    """How many windows of the text encoder a prompt takes, at least one."""
    return len(_chunks(pipe, parse_attention(prompt), families.of(pipe).window(pipe)))


def _chunks(pipe: Any, pieces: list[tuple[str, float]], size: int) -> list[list[tuple[int, float]]]:
    """Tokens and their weights, by window of `size` tokens; BREAK begins a new window."""
    chunks: list[list[tuple[int, float]]] = [[]]
    for text, weight in pieces:
        if (text, weight) == BREAK:
            chunks.append([])
            continue
        # Words of textual inversion become their several tokens first, each of which then has the piece's weight.
        text = pipe.maybe_convert_prompt(text, pipe.tokenizer)
        for token in pipe.tokenizer(text, add_special_tokens=False).input_ids:
            if len(chunks[-1]) == size:
                chunks.append([])
            chunks[-1].append((token, weight))
    return chunks
