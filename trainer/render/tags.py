"""`<lora:name:weight>` in prompts, read as A1111 reads it and written so that A1111, Forge and we read it again."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.config.stack import WIDEST_WEIGHT

MAX_NESTED = 8  # tags made by tags
TAG = re.compile(r" ?<([A-Za-z]\w{0,31}):([^<>\n]{1,300})>")
_NUMBER = re.compile(r"[+-]?(?:\d{1,4}\.?\d{0,12}|\.\d{1,12})(?:e[+-]?\d{1,2})?", re.IGNORECASE)
_COMMA = re.compile(r":[ ]{0,4}([+-]?\d{0,4},\d{1,6})[ ]{0,4}(?:>|:)")


@dataclass(frozen=True)
class LoraTag:
    """A LoRA that a prompt names."""

    name: str
    weight: float = 1.0
    text_weight: float | None = None  # None: the same


@dataclass(frozen=True)
class Tagged:
    """A prompt without its tags, the LoRAs they name, and the tags that mean nothing here."""

    prompt: str
    loras: tuple[LoraTag, ...]
    unknown: tuple[str, ...]


def take_tags(prompt: str) -> Tagged:
    """The prompt without tags: `<lora:...>`, and any other `<word:...>`, which is named in `unknown`.

    As A1111 reads them (extensions-builtin/Lora/extra_networks_lora.py): the first number is the text encoder's weight,
    the second the denoiser's and the same if left out; `te=` and `unet=` go before both. `lyco` is `lora`.
    """
    loras, unknown = [], []

    def take(match: re.Match[str]) -> str:
        tag = of_match(match)
        loras.append(tag) if tag else unknown.append(match[0].strip())
        return ""

    # Without its tags a prompt may have new tags: `<lo<a:b>ra:cat:1>`.
    for _ in range(MAX_NESTED):
        prompt, num = TAG.subn(take, prompt)
        if not num:
            break
    else:  # tags within tags within tags
        prompt = prompt.replace("<", "")
        unknown.append("<")
    return Tagged(prompt, tuple(loras), tuple(unknown))


def of_match(match: re.Match[str]) -> LoraTag | None:
    """The LoRA and weights that a match of `TAG` means; None if it is no LoRA's or can't be read."""
    if match[1] not in ("lora", "lyco"):
        return None
    name, *parts = (part.strip() for part in match[2].split(":"))
    by_key = dict(part.split("=", 1) for part in parts if "=" in part)
    by_order = [part for part in parts if "=" not in part]
    if (
        not name
        or "=" in name
        or len(by_order) > 2
        or not set(by_key) <= {"te", "unet"}
        or not all(map(_NUMBER.fullmatch, [*by_order, *by_key.values()]))
    ):
        return None
    text_weight = float(by_key.get("te", by_order[0] if by_order else "1"))
    weight = float(by_key.get("unet", by_order[1] if len(by_order) > 1 else text_weight))
    if max(abs(text_weight), abs(weight)) > WIDEST_WEIGHT:
        return None
    return LoraTag(name, weight, None if text_weight == weight else text_weight)


def tag(lora: LoraTag) -> str:
    """The tag that A1111 and Forge read so; tools that know one number alone take the denoiser's."""
    by_key = "" if lora.text_weight in (None, lora.weight) else f":te={lora.text_weight:g}:unet={lora.weight:g}"
    return f"<lora:{lora.name}:{lora.weight:g}{by_key}>"


def comma_meant(tag: str) -> str:
    """`0.8` for a tag whose weight is written `0,8`; empty for any other."""
    match = _COMMA.search(tag)
    return match[1].replace(",", ".") if match else ""
