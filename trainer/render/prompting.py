"""What a prompt means here: its wildcards drawn, its LoRAs found, trigger words in front, and what can't be meant refused by name.

The spellings are A1111's and sd-dynamic-prompts'. Prompts come from anywhere: everything here is linear in their length and bounded in
depth, number and size; a file of alternatives is only ever found in the folder the caller names. A stack's prompt goes through
`spelled_out`, then `with_triggers`, then `emphasis.weighted_pair`. What is spelled out once has nothing left in it to draw or to take out, so
that a recipe with the prompt as it was drawn gives the same picture again.
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
from trainer.render import editing, naming, tags, wildcards
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

_MOST_SAID = 5


def without_tags(stack: StackConfig, folder: Path | None, library: Callable[[], dict[str, LoraInfo]]) -> StackConfig:
    """The stack with its prompts drawn, and each LoRA that the prompt names, found in the library, after its own. Doing it again changes nothing.

    A tag beyond -2 to 2 asks for `wide_weights` by being there. Raises: ConfigError for what can't be read, AdapterError for a name that isn't one LoRA's.
    """
    prompt, named = _taken_as_they_stand(stack.prompt, library)
    tagged, negative = spelled_out(prompt, stack.seed, folder), spelled_out(stack.negative_prompt, stack.seed, folder, "negative")
    if tagged.unknown:
        raise ConfigError(f"the prompt has {_few(tagged.unknown)}; allowed: <lora:name:weight>{_meant(tagged.unknown)}.")
    if negative.loras or negative.unknown:
        raise ConfigError(f"the negative prompt has {_few((*map(tag, negative.loras), *negative.unknown))}; allowed there: words.")
    reads_weights = families.registry()[stack.family].encode_windows is not None
    editing.check({"prompt": tagged.prompt, "negative prompt": negative.prompt}, reads_weights)
    drawn = stack.model_copy(update={"prompt": tagged.prompt, "negative_prompt": negative.prompt})
    named += tagged.loras
    if not named:
        return drawn
    added = [_choice(one, naming.one(one.name, library().values(), "the prompt")) for one in named]
    is_wide = any(max(abs(one.weight), abs(one.text_weight or 0)) > USUAL_WEIGHT for one in added)
    values = {"adapters": (*stack.adapters, *added), "wide_weights": stack.wide_weights or is_wide}
    return parse(StackConfig, dict(drawn) | values, "the prompt")


def _few(tags_: tuple[str, ...]) -> str:
    more = f" and {len(tags_) - _MOST_SAID} more" if len(tags_) > _MOST_SAID else ""
    return ", ".join(one[:80] for one in tags_[:_MOST_SAID]) + more


def _meant(unknown: tuple[str, ...]) -> str:
    """What was meant by a weight with a comma, in words."""
    meant = next((found for one in unknown if (found := tags.comma_meant(one))), "")
    return f", with a point in the weight: {meant}" if meant else ""


def _choice(lora: LoraTag, info: LoraInfo) -> AdapterChoice:
    return AdapterChoice(file=str(info.path), name=naming.bare(lora.name), weight=lora.weight, text_weight=lora.text_weight)


def _taken_as_they_stand(prompt: str, library: Callable[[], dict[str, LoraInfo]]) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without those tags whose names hold signs of wildcards and are yet a LoRA's very name, and these tags."""
    loras: list[LoraTag] = []

    def taken(match: re.Match[str]) -> str:
        lora = tags.of_match(match)
        if lora is None or not ("{" in lora.name or "__" in lora.name) or not naming.matches(lora.name, library().values()):
            return match[0]
        loras.append(lora)
        return ""

    return tags.TAG.sub(taken, prompt), tuple(loras)


def spelled_out(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> Tagged:
    """The prompt drawn by `expand`, then without its tags, which may come from wildcards too; doing it again changes nothing.

    Raises: ConfigError as `expand` does.
    """
    loras: tuple[LoraTag, ...] = ()
    unknown: tuple[str, ...] = ()
    for _ in range(tags.MAX_NESTED):
        tagged = take_tags(expand(prompt, seed, folder, stream))
        loras, unknown = loras + tagged.loras, unknown + tagged.unknown
        if tagged.prompt == prompt:
            return Tagged(prompt, loras, unknown)
        prompt = tagged.prompt
    raise ConfigError(f"prompt has tags and wildcards that make new ones of each other; allowed: {tags.MAX_NESTED} deep.")


# Trigger words.


def split_triggers(phrase: str) -> list[str]:
    """The words of a trigger phrase: up to 16 of 200 characters, on one line; none that could begin a tag, a wildcard or an edit in a prompt."""
    words = (" ".join(word.split()) for word in phrase[:4000].split(","))
    plain = (word for word in words if word and len(word) <= 200 and word.isprintable())
    return list(dict.fromkeys(word for word in plain if not _is_language(word)))[:16]


def _is_language(word: str) -> bool:
    if any(sign in word for sign in "{[]") or editing.problems(word):
        return True
    return bool(wildcards.NAME.search(word) or tags.TAG.search(f"{word}>"))


def with_triggers(prompt: str, triggers: list[str]) -> str:
    """The prompt with the words that aren't in it yet put in front, in their order. Raises: ConfigError if that is too long."""
    lacking = [word for word in dict.fromkeys(triggers) if word and not has_trigger(prompt, word)]
    found = ", ".join([*lacking, *([prompt] if prompt else [])])
    if len(found) > MAX_CHARS:
        raise ConfigError(f"prompt is {len(found)} characters long with its trigger words; allowed: up to {MAX_CHARS}.")
    return found
