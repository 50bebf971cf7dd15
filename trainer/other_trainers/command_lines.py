"""Command lines in a text: the first that starts a trainer, and its options; nothing is run or expanded."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from typing import Any

MAX_WORDS = 600
# `accelerate launch [its options] script.py ...`, `python script.py ...`, in a shell's or a batch file's spelling.
_START = re.compile(r"(?:\baccelerate(?:\.exe)?\s+launch|\bpython[\d.]*(?:\.exe)?|\btorchrun)\b", re.IGNORECASE)
_SCRIPT = re.compile(r"[^\s\"']{0,200}?([A-Za-z0-9_]{1,60}\.py)\b")
_CONTINUED = re.compile(r"[\\^`][ \t]*\r?\n")
_VARIABLE = re.compile(
    r"^\s*(?:export\s+|set\s+)?([A-Za-z_][A-Za-z0-9_]{0,60})=(\"[^\"\n]*\"|'[^'\n]*'|[^\s;&|]*)\s*$", re.MULTILINE
)


@dataclass(frozen=True)
class Command:
    """A command that starts a trainer."""

    script: str  # the file's own name: train_network.py
    words: tuple[str, ...]  # what stands behind it


def first(text: str) -> Command | None:
    """The first command that starts a training script, or None."""
    # A command that goes on in the next line is one line; variables are those that the text sets.
    joined = _CONTINUED.sub(" ", text)
    variables = {name: value.strip("\"'") for name, value in _VARIABLE.findall(joined)}
    lines = [line.strip() for line in joined.splitlines()]
    for row, stripped in enumerate(lines):
        if stripped.startswith(("#", "REM ", "::")) or not _START.search(stripped):
            continue
        # Options on lines of their own belong to it, as documentation has them, though no shell would read them so.
        further = itertools.takewhile(lambda line: line.startswith("--"), lines[row + 1 :])
        words = _words(" ".join([stripped, *further]))
        for place, word in enumerate(words):
            match = _SCRIPT.fullmatch(word)
            if match and "train" in match[1]:
                return Command(match[1], tuple(_filled(word, variables) for word in words[place + 1 :]))
    return None


def _words(line: str) -> list[str]:
    try:
        lexer = shlex.shlex(line[:100_000], posix=True)
        lexer.whitespace_split, lexer.escape = True, ""  # paths of Windows keep their backslashes
        words = []
        for word in lexer:
            words.append(word)
            if len(words) >= MAX_WORDS:
                break
        return words
    except ValueError:  # a quote that is never closed
        return line[:100_000].split()[:MAX_WORDS]


def _filled(word: str, variables: dict[str, str]) -> str:
    """The word with variables that the text itself sets."""
    for match in re.findall(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?", word)[:4]:
        if match in variables:
            word = word.replace("${" + match + "}", variables[match]).replace("$" + match, variables[match])
    return word[:4000]


def options(command: Command) -> dict[str, Any]:
    """Options by name: true where nothing follows, a text, or a list of texts; up to the command's end."""
    values: dict[str, Any] = {}
    name = ""
    for word in command.words:
        if word in ("&&", "||", ";", "|", ">", ">>", "2>&1"):
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            values[name] = value if equals else True
        elif name:
            held = values[name]
            values[name] = word if held is True else [*held, word] if isinstance(held, list) else [held, word]
    return values
