"""Settings by folder, `close-ups=3`: how often pictures are repeated and how much they count."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from trainer.data.picture_file import PictureFile
from trainer.errors import ConfigError
from trainer.printing import listed

MAX_REPEATS = 1000
MAX_WEIGHT = 10.0


@dataclass(frozen=True)
class Rule:
    """One line `folder=3`: folders whose path fits `pattern`, in which * stands for anything."""

    pattern: str
    value: float

    def fits(self, folder: str) -> bool:
        """Whether the pattern stands for this folder or any that it lies in; in linear time, whatever the pattern."""
        parts = folder.split("/")
        return any(matches(self.pattern, "/".join(parts[:end])) for end in range(1, len(parts) + 1))


def parse_rules(lines: tuple[str, ...], field: str, whole: bool) -> list[Rule]:
    """The rules in lines `folder=number` of the setting `field`; `whole` allows whole numbers only, as repeats are.

    Raises: ConfigError naming every line that is no rule.
    """
    limit = MAX_REPEATS if whole else MAX_WEIGHT
    kind = "a whole number from 1 to" if whole else "a number above 0, up to"
    example = "close-ups=3" if whole else "sketches=0.5"
    number = r"[0-9]{1,9}" if whole else r"[0-9]{0,9}\.?[0-9]{1,9}"
    rules, problems = [], []
    for line in lines:
        # From the right: a folder's name may hold a = too.
        pattern, equals, value = (part.strip() for part in line.rpartition("="))
        if equals and pattern and re.fullmatch(number, value) and 0 < float(value) <= limit:
            rules.append(Rule(pattern.strip("/") or ".", float(value)))
        else:
            problems.append(
                f"{field} has {line[:80]!r}; allowed: folder=NUMBER with {kind} {limit:g}, such as {example}."
            )
    if problems:
        raise ConfigError(listed(problems))
    return rules


def apply_rules(pictures: list[PictureFile], repeats: list[Rule], weights: list[Rule]) -> list[PictureFile]:
    """The pictures with repeats and weights of the last rule that fits the folder of each.

    Raises: ConfigError for a rule that fits none.
    """
    folders = {picture.path: picture.name.rpartition("/")[0] or "." for picture in pictures}

    # A rule that fits nothing is a misspelt folder.
    for field, rules in (("data.repeats", repeats), ("data.weights", weights)):
        for rule in rules:
            if not any(rule.fits(folder) for folder in set(folders.values())):
                names = ", ".join(sorted(set(folders.values()))[:20])
                raise ConfigError(
                    f"{field} has {rule.pattern!r}, which fits no folder with pictures; there are: {names or 'none'} "
                    f"(. is the set itself)."
                )

    # The last rule that fits counts, so that a general line may come before its exceptions.
    result = []
    for picture in pictures:
        times = [rule.value for rule in repeats if rule.fits(folders[picture.path])]
        factors = [rule.value for rule in weights if rule.fits(folders[picture.path])]
        num_repeats = int(times[-1]) if times else picture.repeats
        result.append(replace(picture, repeats=num_repeats, weight=factors[-1] if factors else picture.weight))
    return result


def matches(pattern: str, text: str) -> bool:
    """Whether the text is the pattern, in which * stands for any piece of it.

    Each piece between two stars is taken where it first fits, which is enough as a star stands for anything. A regular
    expression would try all places, in time that grows with a power of the number of stars.
    """
    first, *others = pattern.split("*")
    if not others:
        return text == pattern
    last = others[-1]
    if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
        return False
    start, end = len(first), len(text) - len(last)
    for piece in others[:-1]:
        start = text.find(piece, start, end)
        if start < 0:
            return False
        start += len(piece)
    return True
