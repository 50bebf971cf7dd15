"""What A1111 changes between the steps of a picture, and weights that can't be meant: found in a prompt and refused by name.

Here a prompt is encoded once, by pipelines that are not ours, and stays the same at every step. Read as words, `[a:b:0.5]` would draw "a b 0.5".
A1111's grammar (modules/prompt_parser.py): `[from:to:when]`, `[to:when]`, `[from::when]`; `[a|b]`; `a AND b :0.5`. A bracket behind a backslash is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.errors import ConfigError

AND = re.compile(r"(?<!\\)\bAND\b")
_NUMBER = re.compile(r"[+-]?(?:\d{1,8}(?:[.,]\d{0,8})?|[.,]\d{1,8})")
_COMMA = re.compile(r"[+-]?\d{0,4},\d{1,6}")
_MOST_SAID = 5
_LONGEST = 24  # of a number with blanks around it


def check(prompts: dict[str, str], reads_weights: bool = True) -> None:
    """Look through prompts by their names; where weights of words are not read, brackets of one kind and AND are words.

    Raises: ConfigError naming the first of what can't be done, and what is allowed in its place.
    """
    found = [f"the {name} has {one}" for name, prompt in prompts.items() for one in problems(prompt, reads_weights)]
    if found:
        more = f"\n  and {len(found) - _MOST_SAID} more" if len(found) > _MOST_SAID else ""
        raise ConfigError("\n  ".join(found[:_MOST_SAID]) + more)


def problems(prompt: str, reads_weights: bool = True) -> list[str]:
    """A sentence for each thing in a prompt that would be drawn as something else than it means."""
    found = list(_brackets(prompt, reads_weights)) if any(sign in prompt for sign in "[(") else []
    if reads_weights and AND.search(prompt):
        found.append("AND, by which A1111 mixes two prompts at every step; not done here; allowed: 'and', a comma, or \\AND for the word itself.")
    return found


def _brackets(prompt: str, reads_weights: bool) -> Iterator[str]:
    """Edits, alternations and weights with a comma, in one pass: what is open, where, its last colon and whether a bar is in it."""
    opened: list[list[int]] = []  # place, is it square, place of its last colon or -1, has it a bar
    squares: list[int] = []  # which of them are square
    place = 0
    while place < len(prompt):
        sign = prompt[place]
        if sign == "\\":
            place += 1
        elif sign in "([":
            if sign == "[":
                squares.append(len(opened))
            opened.append([place, sign == "[", -1, 0])
        elif sign == ":" and opened:
            opened[-1][2] = place
        elif sign == "|" and squares:
            opened[squares[-1]][3] = 1
        elif sign in ")]" and any(frame[1] == (sign == "]") for frame in opened[-64:]):
            while opened[-1][1] != (sign == "]"):
                _close(opened, squares)
            start, is_square, colon, bar = _close(opened, squares)
            said = prompt[start : place + 1] if place - start < 60 else prompt[start : start + 57] + "..."
            behind = prompt[colon + 1 : place].strip() if colon >= 0 and place - colon <= _LONGEST else ""
            if is_square:
                yield from _square(said, bool(bar), behind)
            elif reads_weights and _COMMA.fullmatch(behind):
                yield f"{said}, whose weight is written with a comma; allowed: a point, ({said[1 : said.rfind(':')]}:{behind.replace(',', '.')})."
        place += 1


def _close(opened: list[list[int]], squares: list[int]) -> list[int]:
    if opened[-1][1]:
        squares.pop()
    return opened.pop()


def _square(said: str, has_bar: bool, behind: str) -> Iterator[str]:
    if _NUMBER.fullmatch(behind):
        yield (
            f"{said}, by which A1111 changes the prompt at a step; not done here; allowed: one of the two, (word:1.3) for a weight, "
            "or \\[ and \\] for the brackets themselves."
        )
    elif has_bar:
        yield f"{said}, by which A1111 alternates at every step; not done here; allowed: {{a|b}} to draw one of them, or \\[ and \\] for brackets."
