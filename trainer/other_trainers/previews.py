"""Sample prompts in the one-line syntax of sd-scripts, `a cat --w 512 --d 1 --s 20 --l 7 --n blurry` -> previews."""

from __future__ import annotations

import re
from typing import Any

from trainer.other_trainers.reading import Reading

MAX_PROMPTS = 16
_OPTION = re.compile(r"\s--(w|h|d|s|l|g|n|fs|f|am|ctrlmsg|i|ci|cn|of|ow|pt)\s+((?:(?!\s--[a-z]).)*)", re.DOTALL)
_NUMBERS = {"d": "seed", "s": "steps", "l": "guidance_scale"}


def line(text: str) -> tuple[str, dict[str, str]]:
    """A prompt and its options by letter."""
    text = " " + text[:4000]
    options = {letter: value.strip()[:400] for letter, value in _OPTION.findall(text)}
    return _OPTION.sub("", text).strip(), options


def put_lines(reading: Reading, lines: list[str], key: str) -> None:
    """Set the preview's prompts, and its seed, steps and guidance as the first prompt has them."""
    prompts: list[str] = []
    first: dict[str, str] = {}
    for text in lines[:1000]:
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        prompt, options = line(text)
        if prompt:
            first = first if prompts else options
            prompts.append(prompt[:2000])
    if not prompts:
        return
    reading.put("preview.prompts", prompts[:MAX_PROMPTS], key)
    for letter, name in _NUMBERS.items():
        if (number := _number(first.get(letter, ""))) is not None:
            reading.put(f"preview.{name}", number if name == "guidance_scale" else int(number), key)
    if any(letter in first for letter in ("n", "w", "h")):
        reading.notes.append("previews are drawn at the training resolution and without a negative prompt")


def put_prompts(reading: Reading, prompts: list[Any], key: str) -> None:
    """Set the preview's prompts as they are."""
    texts = [str(prompt)[:2000] for prompt in prompts[:1000] if isinstance(prompt, str) and prompt.strip()]
    if texts:
        reading.put("preview.prompts", texts[:MAX_PROMPTS], key)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 2**53 else None
