"""A stack as it is said -> as it is drawn: wildcards drawn, and the LoRAs that its prompt names found and put behind the others.

The engine does it to every stack, a batch when it is planned: only then are the recipes known by which pictures are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.config import AdapterChoice, StackConfig, parse
from trainer.errors import AdapterError, ConfigError
from trainer.lora_file import LoraInfo
from trainer.render import prompting

Library = Callable[[], dict[str, LoraInfo]]  # LoRAs by hash


def spelled_out(stack: StackConfig, library: Library, wildcards: Path | None) -> StackConfig:
    """The stack without tags and wildcards; doing it again changes nothing. Raises: AdapterError, ConfigError."""
    tagged = prompting.spelled_out(stack.prompt, stack.seed, wildcards)
    if tagged.unknown:
        raise ConfigError(f"the prompt has {', '.join(tagged.unknown)}; allowed: <lora:name:weight>.")
    negative = prompting.spelled_out(stack.negative_prompt, stack.seed, wildcards, "negative")
    if negative.loras or negative.unknown:
        raise ConfigError(f"the negative prompt has {', '.join([*map(prompting.tag, negative.loras), *negative.unknown])}; allowed there: words.")
    found = stack.model_copy(update={"prompt": tagged.prompt, "negative_prompt": negative.prompt})
    if not tagged.loras:
        return found
    known = list(library().values())
    adapters = [*stack.adapters, *(_named(tag, known) for tag in tagged.loras)]
    return parse(StackConfig, found.model_dump() | {"adapters": [one.model_dump() for one in adapters]}, "the stack with the LoRAs of its prompt")


def _named(tag: prompting.LoraTag, known: list[LoraInfo]) -> AdapterChoice:
    """The LoRA that a prompt names."""
    named = [info for info in known if info.name == tag.name]
    if len(named) != 1:
        names = ", ".join(sorted(info.name for info in known)[:20])
        raise AdapterError(f"the prompt names the LoRA {tag.name!r}, of which there are {len(named)} here; allowed: one of {names or '(none)'}.")
    return AdapterChoice(file=str(named[0].path), name=tag.name, weight=tag.weight, text_weight=tag.text_weight)
