"""Values that a PEFT config gives to some modules by regular expressions (`alpha_pattern`, `rank_pattern`).

Read as PEFT reads them (`get_pattern_key`): the first pattern that a path is, or ends with after a dot, counts. Whoever
made the file chose the patterns, so their length and the time that all of them take together are bounded: one can be
written that takes years.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import regex

_LONGEST, _MOST = 500, 20_000  # characters of a pattern, and patterns
_ALL_S, _ONE_S = 3.0, 1.0  # seconds of processor time, for all patterns of a file and for one match
# A pattern that is a path.
_PLAIN = re.compile(r"(?P<whole>\^?)(?P<path>(?:[\w-]|\\?\.|\\-)+)\$?")


class Patterns:
    """Numbers by pattern, looked up by path. Raises: ValueError, when made, for patterns that can't be read."""

    def __init__(self, values: Mapping[str, float]) -> None:
        if len(values) > _MOST or any(len(pattern) > _LONGEST for pattern in values):
            raise ValueError(
                f"{len(values)} patterns, the longest of {max(map(len, values))} characters; allowed: {_MOST} of "
                f"{_LONGEST}"
            )
        self._rules = [_rule(pattern, value) for pattern, value in values.items()]
        self._left_s = _ALL_S

    def get(self, path: str) -> float | None:
        """The number of the first pattern that fits a path, or None. Raises: ValueError if that takes too long."""
        if not self._rules:
            return None
        start = time.thread_time()
        try:
            return next((rule.value for rule in self._rules if rule.fits(path)), None)
        except TimeoutError:
            self._left_s = 0.0
            return None
        finally:
            self._left_s -= time.thread_time() - start
            if self._left_s < 0:
                raise ValueError(
                    f"patterns that take more than {_ALL_S:g} s to compare with the modules' names"
                ) from None


@dataclass(frozen=True)
class _Rule:
    """A pattern and its value.

    A pattern that is a path, with nothing to repeat, is compared only with the end of its own length of a name.
    """

    pattern: Any  # of `re` for a path, else of `regex`, which can be told how long it may take
    value: float
    length: int = 0  # of what matches; 0 where that isn't known before
    is_whole: bool = False  # a name has to match from its start

    def fits(self, path: str) -> bool:
        """True if the path is, or ends after a dot with, what the pattern matches."""
        if not self.length:
            return self.pattern.match(path, timeout=_ONE_S) is not None
        start = len(path) - self.length
        return (
            start >= 0
            and (start == 0 or (not self.is_whole and path[start - 1] == "."))
            and self.pattern.fullmatch(path, start) is not None
        )


def _rule(pattern: str, value: float) -> _Rule:
    plain = _PLAIN.fullmatch(pattern)
    try:
        if plain:
            return _Rule(re.compile(plain["path"]), value, len(plain["path"].replace("\\", "")), bool(plain["whole"]))
        whole = rf"(.*\.)?({pattern})$"
        re.compile(whole)  # PEFT's own reader has to take it
        return _Rule(regex.compile(whole), value)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a pattern that is no regular expression, {pattern[:80]!r} ({error})") from None
