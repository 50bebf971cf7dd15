"""What A1111 changes in a prompt between steps, and weights that can't be meant: found in a prompt and refused by name.

Here a prompt is encoded once, by pipelines that are not ours, and stays the same at every step. Read as words,
`[a:b:0.5]` would draw "a b 0.5". A1111's grammar (modules/prompt_parser.py): `[from:to:when]`, `[to:when]`,
`[from::when]`; `[a|b]`; `a AND b :0.5`. A bracket behind a backslash is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.errors import ConfigError

AND = re.compile(r"(?<!\\)\bAND\b")
_NUMBER = re.compile(r"[+-]?(?:\d{1,8}(?:[.,]\d{0,8})?|[.,]\d{1,8})")
_COMMA = re.compile(r"[+-]?\d{0,4},\d{1,6}")
_MOST_NAMED = 5
_LONGEST_NUMBER = 24  # with blanks around it


@dataclass
class _Bracket:
    """A bracket that is open."""

    start: int  # its place in the prompt
    is_square: bool
    colon: int = -1  # place of the last colon in it
    has_bar: bool = False


def check(prompts: dict[str, str], reads_weights: bool = True) -> None:
    """Look through prompts by their names; where weights of words are not read, brackets of one kind and AND are words.

    Raises: ConfigError naming the first of what can't be done, and what is allowed in its place.
    """
    lines = [
        f"the {name} has {problem}" for name, prompt in prompts.items() for problem in problems(prompt, reads_weights)
    ]
    if lines:
        more = f"\n  and {len(lines) - _MOST_NAMED} more" if len(lines) > _MOST_NAMED else ""
        raise ConfigError("\n  ".join(lines[:_MOST_NAMED]) + more)


def problems(prompt: str, reads_weights: bool = True) -> list[str]:
    """A sentence for each thing in a prompt that would be drawn as something else than it means."""
    sentences = list(_brackets(prompt, reads_weights)) if any(sign in prompt for sign in "[(") else []
    if reads_weights and AND.search(prompt):
        sentences.append(
            "AND, by which A1111 mixes two prompts at every step; not done here; allowed: 'and', a comma, or \\AND "
            "for the word itself."
        )
    return sentences


def _brackets(prompt: str, reads_weights: bool) -> Iterator[str]:
    """A sentence for each edit, alternation and weight with a comma, found in one pass."""
    opened: list[_Bracket] = []
    squares: list[_Bracket] = []  # those of them that are square
    place = 0
    while place < len(prompt):
        sign = prompt[place]
        if sign == "\\":
            place += 1  # and the letter behind it
        elif sign in "([":
            opened.append(_Bracket(place, sign == "["))
            if sign == "[":
                squares.append(opened[-1])
        elif sign == ":" and opened:
            opened[-1].colon = place
        elif sign == "|" and squares:
            squares[-1].has_bar = True
        elif sign in ")]" and any(bracket.is_square == (sign == "]") for bracket in opened[-64:]):
            # It closes the nearest of its kind, and with it all that was opened since; 64 are looked through.
            while opened[-1].is_square != (sign == "]"):
                _close(opened, squares)
            yield from _problem(prompt, place, _close(opened, squares), reads_weights)
        place += 1


def _close(opened: list[_Bracket], squares: list[_Bracket]) -> _Bracket:
    """The last bracket that is open, which is taken out."""
    if opened[-1].is_square:
        squares.pop()
    return opened.pop()


def _problem(prompt: str, end: int, bracket: _Bracket, reads_weights: bool) -> Iterator[str]:
    """A sentence for what a bracket that closes at `end` would do, if it is not done here."""
    start, colon = bracket.start, bracket.colon
    text = prompt[start : end + 1] if end - start < 60 else prompt[start : start + 57] + "..."
    after_colon = prompt[colon + 1 : end].strip() if colon >= 0 and end - colon <= _LONGEST_NUMBER else ""
    if bracket.is_square:
        yield from _square(text, bracket.has_bar, after_colon)
    elif reads_weights and _COMMA.fullmatch(after_colon):
        yield (
            f"{text}, whose weight is written with a comma; allowed: a point, "
            f"({text[1 : text.rfind(':')]}:{after_colon.replace(',', '.')})."
        )


def _square(text: str, has_bar: bool, after_colon: str) -> Iterator[str]:
    """A sentence for square brackets that A1111 reads as an edit or an alternation."""
    if _NUMBER.fullmatch(after_colon):
        yield (
            f"{text}, by which A1111 changes the prompt at a step; not done here; allowed: one of the two, (word:1.3) "
            f"for a weight, or \\[ and \\] for the brackets themselves."
        )
    elif has_bar:
        yield (
            f"{text}, by which A1111 alternates at every step; not done here; allowed: {{a|b}} to draw one of them, "
            f"or \\[ and \\] for brackets."
        )
