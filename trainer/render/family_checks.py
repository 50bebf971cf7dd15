"""Settings of a stack that its family would not read, refused by name; no model is needed to know."""

from __future__ import annotations

import re

from trainer import printing
from trainer.config import StackConfig
from trainer.errors import ConfigError
from trainer.families.contract import Family
from trainer.render import modes, samplers
from trainer.schema import unread

_WEIGHTED = re.compile(r"\([^()]{1,200}:\s{0,4}[+-]?\d{0,4}\.?\d{1,6}\s{0,4}\)")


def check(family: Family, stack: StackConfig) -> None:
    """Raises: ConfigError with every setting that a picture of this family would not be drawn by."""
    samplers.check(stack.sampler, family)
    problems = unread(stack, {"prediction": family.prediction, "guidance": (family.guidance,)})

    # Guidance and the negative prompt.
    if not family.rescales and stack.guidance_rescale:
        problems.append(
            f"guidance_rescale is {stack.guidance_rescale:g}, but nothing would read it: {family.title}'s pipeline "
            f"has none."
        )
    is_distilled = family.guidance == "distilled"
    if not family.negates:
        unread_values = {
            "negative_prompt": repr(stack.negative_prompt) if stack.negative_prompt else "",
            "true_guidance_scale": f"{stack.true_guidance_scale:g}" if stack.true_guidance_scale > 1 else "",
        }
        problems += [
            f"{key} is {value}, but nothing would read it: {family.title} takes no negative prompt."
            for key, value in unread_values.items()
            if value
        ]
    elif is_distilled and stack.negative_prompt and stack.true_guidance_scale <= 1:
        problems.append(
            f"negative_prompt is set, but nothing would read it: {family.title} takes one with true_guidance_scale "
            f"above 1."
        )
    if is_distilled and stack.mode in modes.registry() and modes.registry()[stack.mode].splits_guidance:
        problems.append(f"mode is {stack.mode!r}, which works on the two halves of guidance; {family.title} has none.")

    # Weights of words, where prompts are sentences.
    prompts = {} if family.encode_windows else {"prompt": stack.prompt, "negative_prompt": stack.negative_prompt}
    for key, text in prompts.items():
        if match := _WEIGHTED.search(text):
            problems.append(
                f"{key} has {match[0]!r}; weights such as (word:1.3) are not known for {family.title}, whose prompts "
                f"are sentences: leave it out."
            )
    if problems:
        raise ConfigError(printing.listed(problems))
