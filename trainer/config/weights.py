"""Weights as people type them behind a file, `fox.safetensors:0.8`; what looks like a number and isn't is refused."""

from __future__ import annotations

import re

_LOOKS = re.compile(r"[-+.,\d\s]{0,40}(?:e[-+\d]{0,8})?|[-+]?(?:nan|inf|infinity)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d{1,8}\.?\d{0,12}|\.\d{1,12})(?:e[+-]?\d{1,3})?", re.IGNORECASE)
_DECIMAL = re.compile(r"[+-]?\d{0,2},(\d{1,6})")


def split(text: str) -> tuple[str, str | None]:
    """A file and the text of its weight; None if what follows the colon looks like no weight: `C:\\fox.safetensors`."""
    file, colon, weight = text.strip().rpartition(":")
    return (file, weight.strip()) if colon and file and _LOOKS.fullmatch(weight) else (text.strip(), None)


def number(text: str) -> float:
    """One weight. Raises: ValueError in words, which say what was meant by a comma."""
    if _NUMBER.fullmatch(text.strip()):
        return float(text)
    if _DECIMAL.fullmatch(text.strip()):
        raise ValueError(f"weight is {text.strip()[:40]!r}, with a comma; write {_with_point(text)}.")
    raise ValueError(f"weight is {text.strip()[:40]!r}; allowed: a number such as 0.8.")


def numbers(text: str, widest: float) -> list[float]:
    """Weights with commas between, from -widest to widest. Raises: ValueError in words.

    `0,8` and `0,05` are no two weights: 8 is none, and nobody writes 5 as 05. `0,1` is two.
    """
    match = _DECIMAL.fullmatch(text.strip())
    hint = f"; if {text.strip()} is one number, write it with a point: {_with_point(text)}" if match else ""
    if match and len(match[1]) > 1 and match[1][0] == "0":
        raise ValueError(f"weight is {match[1]!r} behind a comma{hint}.")
    values = [number(part) for part in text.split(",")]
    if bad := [value for value in values if not -widest <= value <= widest]:
        raise ValueError(f"weight is {bad[0]:g}; allowed: -{widest:g} to {widest:g}{hint}.")
    return values


def _with_point(text: str) -> str:
    return f"{float(text.strip().replace(',', '.')):g}"
