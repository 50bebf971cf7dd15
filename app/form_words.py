"""Messages of the trainer in the page's own words: settings by their labels, and no word of the command line.

The trainer writes for its command: `validation.folds=3`, `write cat.txt`. On the page the same setting is called by
the label that its field has, and what to do is said as it is done there.
"""

from __future__ import annotations

import re
from functools import cache

from app.form_fields import specs
from app.texts import say
from trainer.config import TrainConfig

# Whole phrases of messages, and what the page says in their place; tried in this order.
_PHRASES = (
    (re.compile(r"\(write [^()]{1,300}?\.txt, or set data\.trigger to train it on the trigger alone\)"),
     say("settings.or_trigger")),
    (re.compile(r"\(write [^()]{1,300}?\.txt, or name its folder like [^()]{1,80}\)"), say("settings.write_caption")),
    (re.compile(r" ?\(--json lists all\)"), ""),
    (re.compile(r"; go on with --resume\b"), say("settings.press_resume")),
    (re.compile(r", then: velatura [^.\n]{1,300}\.?"), say("settings.then_press_resume")),
    (re.compile(r"(?<=\d)\.0 or (?=less|more)"), " or "),
    (re.compile(r"; add --download to fetch it"), ""),
    (re.compile(r" Start it with --base to offer another\."), ""),
    (re.compile(r"a name (?:in|from) `velatura models list`"), say("settings.model_added")),
)  # fmt: skip


@cache
def labels() -> dict[str, str]:
    """Each setting's label by its dotted path."""
    return {".".join(spec.path): spec.info.title or spec.path[-1] for spec in specs(TrainConfig)}


def as_done_here(text: str) -> str:
    """The text with the page's ways for the command's."""
    for pattern, phrase in _PHRASES:
        text = pattern.sub(phrase, text)
    return text


def in_page_words(text: str) -> str:
    """The text with labels for settings, and the page's ways for the command's."""
    text = as_done_here(text)
    text = _assigned().sub(lambda match: f"{_quoted(match[1])} {_value(match[2])}", text)
    text = _named().sub(lambda match: _quoted(match[0]), text)
    # A setting of one plain word, such as seed, is meant only where it begins the sentence.
    word = re.match(r"([a-z]+)(?= (?:is|has) )", text)
    return f"{_quoted(word[1])}{text[word.end() :]}" if word and word[1] in labels() else text


def key_of(text: str) -> str:
    """The dotted path of the setting that a sentence of the trainer begins with; "" if it begins with none."""
    match = re.match(r"[a-z_][a-z_0-9.]*", text)
    path = match[0].rstrip(".") if match else ""
    while path and path not in labels():
        path = path.rpartition(".")[0]
    return path


def _quoted(path: str) -> str:
    return say("settings.quoted", label=labels()[path])


def _value(text: str) -> str:
    plain = text.strip("'\"")
    return {"true": say("word.on"), "false": say("word.off")}.get(plain, say("settings.at", value=plain))


@cache
def _named() -> re.Pattern[str]:
    """The name of a setting that is no ordinary word: it has a dot or a `_`."""
    return re.compile(rf"(?<![\w./-])(?:{_alternatives()})(?![\w/-]|\.\w)")


@cache
def _assigned() -> re.Pattern[str]:
    """The same with its value: `validation.folds=3`, `optimizer.name = other`."""
    # A value's last dot may be the sentence's.
    return re.compile(rf"(?<![\w./-])({_alternatives()}) ?= ?((?:[^\s,;()]*[^\s,;().])+)")


def _alternatives() -> str:
    names = sorted((path for path in labels() if "." in path or "_" in path), key=len, reverse=True)
    return "|".join(map(re.escape, names))
