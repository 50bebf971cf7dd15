"""Which strings a picture can be trained with: lines chosen, `{a|b}` resolved, tags shuffled and dropped.

The strings of a picture are drawn once, before training (`captions.variants` of them), so that each can be encoded and
cached like any other caption; a step then picks one. They depend on the picture's own captions and the seed alone, so
adding a picture changes no other. Captions come from anywhere: braces are parsed once, in linear time, to a bounded
depth and number, and what is chosen is always a part of the text, never more than it.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from trainer.config.data import CaptionsConfig
from trainer.lazy import torch

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 8  # braces within braces
MAX_WILDCARDS = 64  # in one caption; those after them are literal text

T = TypeVar("T")
Part: TypeAlias = "str | list[list[Part]]"  # literal text, or the alternatives of a wildcard


def variants(captions: tuple[str, ...], config: CaptionsConfig, seed: int) -> list[str]:
    """The strings a picture with these captions is trained with, in a fixed order; at least one.

    Draw k is seeded from (seed, captions, k). Lines take turns in a seeded order, so that each is read about as often.
    A string that was drawn twice stands there twice: otherwise rare wordings would be trained as often as common.
    """
    from trainer import objective

    parsed: list[list[Part]] = [parse(caption) if config.wildcards else [caption] for caption in captions]
    if (
        len(captions) == 1
        and not config.shuffle_tags
        and not config.tag_dropout
        and all(isinstance(part, str) for part in parsed[0])
    ):
        return list(captions)
    # One stream of random numbers for each picture, named by its captions.
    stream = f"wording {hashlib.sha256(chr(0).join(captions).encode('utf-8', 'surrogatepass')).hexdigest()}"
    turns = _permuted(list(range(len(captions))), objective.generator(seed, stream, -1))
    strings = []
    for draw in range(config.variants):
        rng = objective.generator(seed, stream, draw)
        strings.append(_retagged(_resolve(parsed[turns[draw % len(turns)]], rng), config, rng))
    return strings


def settled(captions: tuple[str, ...], config: CaptionsConfig, seed: int) -> str:
    """The one string a picture is measured with: its first caption, wildcards resolved, tags in order and whole."""
    from trainer import objective

    if not config.wildcards:
        return captions[0]
    return _resolve(parse(captions[0]), objective.generator(seed, f"settled {captions[0]}", 0)).strip()


def tags(text: str, separator: str) -> list[str]:
    """The tags of a caption, without blanks around them and without empty tags."""
    return [tag for part in text.split(separator.strip() or separator) if (tag := part.strip())]


def _retagged(text: str, config: CaptionsConfig, rng: torch.Generator) -> str:
    """The text with its tags shuffled and some left out; never the kept tags, never all."""
    if not config.shuffle_tags and not config.tag_dropout:
        return text.strip()
    all_tags = tags(text, config.separator)
    kept, loose = all_tags[: config.keep_tags], all_tags[config.keep_tags :]
    if config.tag_dropout and loose:
        draws = torch.rand(len(loose), generator=rng).tolist()
        # Never all: of a caption without kept tags, the tag with the highest draw stays.
        survivors = [tag for tag, draw in zip(loose, draws, strict=True) if draw >= config.tag_dropout]
        loose = survivors if survivors or kept else [loose[draws.index(max(draws))]]
    if config.shuffle_tags:
        loose = _permuted(loose, rng)
    joiner = config.separator if config.separator != config.separator.strip() else f"{config.separator} "
    return joiner.join(kept + loose)


def _permuted(things: list[T], rng: torch.Generator) -> list[T]:
    return [things[place] for place in torch.randperm(len(things), generator=rng).tolist()]


def parse(text: str) -> list[Part]:
    """Literal text and wildcards. A brace without partner or bar, too deep, or beyond the bounded number is literal."""
    stack: list[list[list[Part]]] = [[[]]]  # alternatives of each open brace; the outermost is the text itself
    beyond = num_wildcards = 0  # braces open beyond the depth; wildcards so far
    # A brace becomes a wildcard only when it is closed with a bar inside; until then it may still be literal.
    for token in re.split(r"([{}|])", text):
        top = stack[-1]
        if token == "{" and len(stack) <= MAX_DEPTH:
            stack.append([[]])
        elif token == "}" and len(stack) > 1 and not beyond:
            closed = stack.pop()
            if len(closed) > 1 and num_wildcards < MAX_WILDCARDS:
                num_wildcards += 1
                stack[-1][-1].append(closed)
            else:
                stack[-1][-1] += ["{", *_literal(closed), "}"]
        elif token == "|" and len(stack) > 1 and not beyond:
            top.append([])
        elif token:
            beyond += (token == "{") - (token == "}" and beyond > 0)
            top[-1].append(token)
    # Braces that were never closed.
    while len(stack) > 1:
        opened = stack.pop()
        stack[-1][-1] += ["{", *_literal(opened)]
    return stack[0][0]


def _literal(alternatives: list[list[Part]]) -> list[Part]:
    """What stood between two braces that are no wildcard."""
    parts = list(alternatives[0])
    for more in alternatives[1:]:
        parts += ["|", *more]
    return parts


def _resolve(parts: list[Part], rng: torch.Generator) -> str:
    """The text with one alternative of each wildcard; only wildcards that are chosen draw."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        else:
            texts.append(_resolve(part[int(torch.randint(len(part), (1,), generator=rng))], rng))
    return "".join(texts)
