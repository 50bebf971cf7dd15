"""What a picture of any tool says of itself, in our words.

Every reader gives this, and `applying_recipe` puts it into a stack. Here is also how a value from outside is read, as
the text or number that it should be, and shown in a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_HASH = re.compile(r"(?:0x)?([0-9a-f]{8,64})", re.IGNORECASE)
# sha256 of no bytes: what a tool writes whose hashing failed.
_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_WHOLE = re.compile(r"[+-]?\d{1,20}(?:\.0{1,6})?")
_DECIMAL = re.compile(r"[+-]?(?:\d{1,6}(?:\.\d{0,17})?|\.\d{1,17})(?:e[+-]?\d{1,2})?", re.IGNORECASE)
LONGEST_SHOWN = 80
MOST_NAMED = 12  # keys or nodes in one sentence


@dataclass(frozen=True)
class Mention:
    """A LoRA that a picture names."""

    name: str
    weight: float
    text_weight: float | None = None  # None: the same
    sha256: str = ""  # its start, of the tensors or of the whole file; nothing if none is given


@dataclass(frozen=True)
class Infotext:
    """What a picture's text says; None or empty where it doesn't."""

    prompt: str = ""  # without tags
    negative_prompt: str = ""
    loras: tuple[Mention, ...] = ()
    steps: int | None = None
    sampler: str = ""  # ours, or as it stands there if we have none such
    guidance_scale: float | None = None
    distilled_guidance: float | None = None  # Forge's, of FLUX.1; `guidance_scale` is then that of true guidance
    guidance_rescale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None  # width, height
    model: str = ""
    model_hash: str = ""
    civitai: tuple[tuple[int, float], ...] = ()  # model version and weight of LoRAs named by nothing else
    pairs: dict[str, str] = field(default_factory=dict)  # every key as it stands there
    unknown: tuple[str, ...] = ()  # tags that mean nothing here
    notes: tuple[str, ...] = ()  # a sentence for each thing that a reader couldn't use


def shown(value: object) -> str:
    """A foreign value as it can stand in a sentence: on one line, printable and short."""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)[: 4 * LONGEST_SHOWN]).split())
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def digest(text: object) -> str:
    """The start of a hash in lower case; nothing for what is no hash, and for that of nothing."""
    match = _HASH.fullmatch(text.strip()) if isinstance(text, str) else None
    start = match[1].lower() if match else ""
    is_filler = len(set(start)) == 1  # 00000000
    return "" if _OF_NOTHING.startswith(start) or is_filler else start


def whole(value: object) -> int | None:
    """A whole number, also as text or as 20.0."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return int(str(value).strip().split(".")[0]) if _WHOLE.fullmatch(str(value).strip()) else None


def decimal(value: object) -> float | None:
    """A number, also as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return float(value) if _DECIMAL.fullmatch(str(value).strip()) else None


def text_of(value: object) -> str:
    """A text, or nothing."""
    return value if isinstance(value, str) else ""


def unread(values: Mapping[str, object], read: Mapping[str, object]) -> list[str]:
    """A sentence for each value that is there and could not be read as what it should be."""
    keys = [key for key, value in read.items() if value is None and values.get(key) not in (None, "")]
    return [f"{key} is {shown(values[key])!r}, which can't be read as a number; it is left out." for key in keys]
