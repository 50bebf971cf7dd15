"""Values of a grid's axis that are numbers, written as a range: `1-4`, `1-10 (+2)` and `0-1 [5]` stand for a list.

The first goes by ones, the second by the step in its brackets, the third is so many values from one end to the other.
Either end may be below zero, and the first may be the larger. Reckoned in decimals, so that 0.1 stays 0.1.
"""

from __future__ import annotations

import re
from decimal import Decimal

from app.texts import say
from trainer.errors import ConfigError

_NUMBER = r"-?\d{1,16}(?:\.\d{1,8})?"
_RANGE = re.compile(
    rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*([+-]\d{{1,16}}(?:\.\d{{1,8}})?)\s*\)|\[\s*(\d{{1,6}})\s*\])?", re.ASCII
)
_FINEST = Decimal("0.0001")


def spelled_out(parts: list[str], most: int, whole: bool) -> list[str]:
    """The same values with those of each range in its place; `whole` for a setting of whole numbers.

    Raises: ConfigError for a range that holds no value or more than `most`, or that steps away from its end.
    """
    values: list[str] = []
    for part in parts:
        match = _RANGE.fullmatch(part)
        values += _of_range(part, match, most, whole) if match else [part]
    return values


def _of_range(part: str, match: re.Match[str], most: int, whole: bool) -> list[str]:
    """The values that a range stands for."""
    first, last = Decimal(match[1]), Decimal(match[2])
    if match[4]:  # so many
        num = int(match[4])
        gaps = max(num - 1, 1)
        step = (last - first) / gaps
    else:
        step = Decimal(match[3]) if match[3] else Decimal(1 if last >= first else -1)
        is_towards = step and (last - first) / step >= 0
        num = int((last - first) / step) + 1 if is_towards else 0
    if not 1 <= num <= most:
        raise ConfigError(say("grid.bad_range", range=part[:40], num=num, most=most))
    finest = Decimal(1) if whole else _FINEST
    numbers = [(first + step * place).quantize(finest) if match[4] else first + step * place for place in range(num)]
    return list(dict.fromkeys(_written(number) for number in numbers))


def _written(number: Decimal) -> str:
    """The number without zeros that say nothing."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text
