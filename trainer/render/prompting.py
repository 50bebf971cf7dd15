"""What a prompt means here: its wildcards drawn, its LoRAs found, trigger words in front; the rest is refused by name.

The spellings are A1111's and sd-dynamic-prompts'. Prompts come from anywhere: everything here is linear in their length
and bounded in depth, number and size; a file of alternatives is only ever found in the folder the caller names. A
stack's prompt goes through `spelled_out`, then `with_triggers`, then `emphasis.weighted_pair`. What is spelled out once
has nothing left in it to draw or to take out, so that a recipe with the prompt as it was drawn gives the same picture
again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import families
from trainer.config import AdapterChoice, StackConfig, parse
from trainer.config.stack import USUAL_WEIGHT
from trainer.data import has_trigger
from trainer.errors import ConfigError
from trainer.render import lora_lookup, prompt_editing, tags, wildcard_syntax
from trainer.render.emphasis import BREAK as BREAK
from trainer.render.emphasis import num_windows as num_windows
from trainer.render.emphasis import parse_attention as parse_attention
from trainer.render.emphasis import weighted_embeddings as weighted_embeddings
from trainer.render.emphasis import weighted_pair as weighted_pair
from trainer.render.tags import LoraTag as LoraTag
from trainer.render.tags import Tagged as Tagged
from trainer.render.tags import tag as tag
from trainer.render.tags import take_tags as take_tags
from trainer.render.wildcards import MAX_CHARS as MAX_CHARS
from trainer.render.wildcards import expand as expand

if TYPE_CHECKING:
    from trainer.lora_file import LoraInfo

_MOST_NAMED = 5


def without_tags(stack: StackConfig, folder: Path | None, library: Callable[[], dict[str, LoraInfo]]) -> StackConfig:
    """The stack with its prompts drawn, and each LoRA that the prompt names, found in the library, after its own.

    Doing it again changes nothing. A tag beyond -2 to 2 asks for `wide_weights` by being there. Raises: ConfigError for
    what can't be read, AdapterError for a name that isn't one LoRA's.
    """
    # Prompts.
    prompt, lora_tags = _without_exact_names(stack.prompt, library)
    tagged = spelled_out(prompt, stack.seed, folder)
    negative = spelled_out(stack.negative_prompt, stack.seed, folder, "negative")
    if tagged.unknown:
        raise ConfigError(
            f"the prompt has {_some(tagged.unknown)}; allowed: <lora:name:weight>{_hint(tagged.unknown)}."
        )
    if negative.loras or negative.unknown:
        raise ConfigError(
            f"the negative prompt has {_some((*map(tag, negative.loras), *negative.unknown))}; allowed there: words."
        )
    # Syntax of A1111's that would be drawn as words.
    reads_weights = families.registry()[stack.family].encode_windows is not None
    prompt_editing.check({"prompt": tagged.prompt, "negative prompt": negative.prompt}, reads_weights)
    drawn = stack.model_copy(update={"prompt": tagged.prompt, "negative_prompt": negative.prompt})

    # LoRAs. The library is only asked for if there are any: it may take a while to read.
    lora_tags += tagged.loras
    if not lora_tags:
        return drawn
    added = [_choice(lora, lora_lookup.one(lora.name, library().values(), "the prompt")) for lora in lora_tags]
    is_wide = any(max(abs(choice.weight), abs(choice.text_weight or 0)) > USUAL_WEIGHT for choice in added)
    values = {"adapters": (*stack.adapters, *added), "wide_weights": stack.wide_weights or is_wide}
    return parse(StackConfig, dict(drawn) | values, "the prompt")


def _some(tags_: tuple[str, ...]) -> str:
    """The first five, each cut, and how many more there are."""
    more = f" and {len(tags_) - _MOST_NAMED} more" if len(tags_) > _MOST_NAMED else ""
    return ", ".join(text[:80] for text in tags_[:_MOST_NAMED]) + more


def _hint(unknown: tuple[str, ...]) -> str:
    """The weight that was meant where a weight is written with a comma, in words; else nothing."""
    weight = next((weight for text in unknown if (weight := tags.comma_meant(text))), "")
    return f", with a point in the weight: {weight}" if weight else ""


def _choice(lora: LoraTag, info: LoraInfo) -> AdapterChoice:
    return AdapterChoice(
        file=str(info.path), name=lora_lookup.bare(lora.name), weight=lora.weight, text_weight=lora.text_weight
    )


def _without_exact_names(prompt: str, library: Callable[[], dict[str, LoraInfo]]) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without tags of LoRAs whose names look like wildcards, and those tags.

    A LoRA may be called `my__style__v1`: its tag is taken as it stands, before anything is drawn.
    """
    loras: list[LoraTag] = []

    def take(match: re.Match[str]) -> str:
        lora = tags.of_match(match)
        looks_like_wildcard = lora is not None and ("{" in lora.name or "__" in lora.name)
        if lora is None or not looks_like_wildcard or not lora_lookup.matches(lora.name, library().values()):
            return match[0]
        loras.append(lora)
        return ""

    return tags.TAG.sub(take, prompt), tuple(loras)


def spelled_out(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> Tagged:
    """The prompt drawn by `expand`, then without its tags, which may come from wildcards too.

    Doing it again changes nothing. Raises: ConfigError as `expand` does.
    """
    # A tag that is taken out may join what stood around it to a new wildcard: go on until nothing changes.
    loras: tuple[LoraTag, ...] = ()
    unknown: tuple[str, ...] = ()
    for _ in range(tags.MAX_NESTED):
        tagged = take_tags(expand(prompt, seed, folder, stream))
        loras, unknown = loras + tagged.loras, unknown + tagged.unknown
        if tagged.prompt == prompt:
            return Tagged(prompt, loras, unknown)
        prompt = tagged.prompt
    raise ConfigError(
        f"prompt has tags and wildcards that make new ones of each other; allowed: {tags.MAX_NESTED} deep."
    )


# Trigger words.


def split_triggers(phrase: str) -> list[str]:
    """The words of a trigger phrase: up to 16 of 200 characters, on one line.

    They come from headers of LoRA files, so that none may begin a tag, a wildcard or an edit in a prompt.
    """
    words = (" ".join(word.split()) for word in phrase[:4000].split(","))
    printable = (word for word in words if word and len(word) <= 200 and word.isprintable())
    return list(dict.fromkeys(word for word in printable if not _is_syntax(word)))[:16]


def _is_syntax(word: str) -> bool:
    """Whether a prompt would read it as more than a word."""
    if any(sign in word for sign in "{[]") or prompt_editing.problems(word):
        return True
    return bool(wildcard_syntax.NAME.search(word) or tags.TAG.search(f"{word}>"))


def with_triggers(prompt: str, triggers: list[str]) -> str:
    """The prompt with the words that aren't in it yet put in front, in their order.

    Raises: ConfigError if that is too long.
    """
    missing = [word for word in dict.fromkeys(triggers) if word and not has_trigger(prompt, word)]
    whole = ", ".join([*missing, *([prompt] if prompt else [])])
    if len(whole) > MAX_CHARS:
        raise ConfigError(f"prompt is {len(whole)} characters long with its trigger words; allowed: up to {MAX_CHARS}.")
    return whole
