"""All that stands against the settings of the form, at once: each with its field and, where there is one, a cure.

pydantic checks what two settings say to each other only once every single one is sound. So what is wrong by itself is
put right in a copy, with the values that the form was filled with last, and the copy is checked again.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from app import form_words
from app.texts import say, say_num
from trainer.config import TrainConfig
from trainer.config.refusals import sentences

_MULTIPLE = re.compile(r"a multiple of (\d+)")
_AT_MOST = re.compile(r"; allowed: (\d+) or less")
_LATEST = 2  # checks: of single settings, then of several together


@dataclass(frozen=True)
class Cure:
    """What a button does about a problem: settings by dotted path, or a preset to take in place of this one."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""


@dataclass(frozen=True)
class Problem:
    """A sentence in the page's words, the setting it is about ("" for none), and its cure."""

    text: str
    key: str = ""
    cure: Cure | None = None


def of_form(values: dict[str, Any], filled: Mapping[str, Any]) -> tuple[TrainConfig | None, list[Problem]]:
    """The settings, or as many of them as are sound, and what is wrong with the others.

    `filled` are the values that the form was last filled with, by dotted path: a sound one for each setting. The
    config is None where not even those go together.
    """
    problems: list[Problem] = []
    values = copy.deepcopy(values)
    for _ in range(_LATEST + 1):
        try:
            return TrainConfig.model_validate(values), problems
        except ValidationError as error:
            for line in sentences(error, TrainConfig):
                # Each fault is put right with a sound value, so that the next check sees what the sound ones say to
                # each other.
                problem = of_sentence(line, values, filled)
                if problem.text not in [known.text for known in problems]:
                    problems.append(problem)
                _put(values, problem.key, filled.get(problem.key))
    return None, problems


def of_sentence(line: str, values: Mapping[str, Any], filled: Mapping[str, Any]) -> Problem:
    """A sentence of the trainer as a problem of its field, with the cure that the sentence itself says."""
    key = form_words.key_of(line)
    return Problem(form_words.in_page_words(line), key, _cure(key, line, _get(values, key), filled) if key else None)


def _cure(key: str, line: str, value: Any, filled: Mapping[str, Any]) -> Cure | None:
    """The nearest value that is allowed, or else the value that the form was filled with."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    better = filled.get(key)
    if is_number and (multiple := _MULTIPLE.search(line)) and int(multiple[1]):
        step = int(multiple[1])
        better = max(round(value / step), 1) * step
    elif is_number and isinstance(better, int) and (most := _AT_MOST.search(line)) and value > int(most[1]):
        better = int(most[1])
    if better is None or better == value or isinstance(better, list | tuple | dict):
        return None
    return Cure(say("settings.set_to", value=in_words(better)), {key: better})


def in_words(value: Any) -> str:
    """A setting's value on a button or in a line."""
    if isinstance(value, bool):
        return say("word.on") if value else say("word.off")
    if isinstance(value, list | tuple):
        return say_num("settings.lines", len(value)) if value else say("settings.nothing")
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 32 else f"{text[:31]}…") or say("settings.nothing")


def _get(values: Mapping[str, Any], key: str) -> Any:
    here: Any = values
    for part in key.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value in its table, or take it out for None, which leaves it at its default."""
    *parents, last = key.split(".")
    for part in parents:
        inner = values.get(part)
        if not isinstance(inner, dict):
            return
        values = inner
    if value is None:
        values.pop(last, None)
    else:
        values[last] = value
