"""Dynamic prompts: what is drawn of a prompt before it is read, as sd-dynamic-prompts writes it
(adieyal/dynamicprompts, docs/SYNTAX.md).

    {a|2::b}                 one of them, b twice as often
    {2$$a|b|c}  {1-2$$ and $$a|b|c}    so many different ones, with `,` or the given words between
    __name__  __animals/*__  a line of `name.txt`, or of any file that fits; lines may have shares too
    ${c={red|blue}} ${c} ${c:green}    a variable, drawn at each use; `=!` draws it once; `?=` keeps what it was

Prompts come from anywhere: everything is linear in their length, and how deep, how often and how far they grow is
bounded. What can't be read is refused by name (`wildcard_syntax`). `__name__` inside a tag is text, a part of a
file's name, unless it is the tag's whole name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import ConfigError
from trainer.lazy import torch
from trainer.render.tags import TAG
from trainer.render.wildcard_files import lines_of
from trainer.render.wildcard_syntax import (
    MAX_DEPTH,
    NAME,
    SHARE,
    Braces,
    Part,
    assignment_match,
    check,
    count_match,
    head,
    literal,
    parse,
    split_separator,
    split_share,
    variable_match,
    without_leading_blanks,
)

if TYPE_CHECKING:
    import torch

MAX_CHARS = 8000  # of a prompt, drawn out; StackConfig.prompt has as many
MAX_DRAWS = 256  # lines of files and values of variables in one prompt
MAX_NESTED = 8  # files and variables named by those
MAX_ROUNDS = 32  # of drawing what was drawn


def expand(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> str:
    """The prompt as it is drawn, with lines of the files in `folder`; doing it again changes nothing.

    The draw is seeded from (seed, stream): the same picture, the same words; prompt and negative prompt have a stream
    each. Blank lines of files and those that start with # are not drawn. Raises: ConfigError for what can't be read, a
    name without a file or a variable without a value, or a prompt that grows beyond its bounds.
    """
    if not ("{" in prompt or "__" in prompt):
        return prompt
    from trainer import objective

    draw = _Draw(objective.generator(seed, f"wildcards {stream}", 0), folder)
    # What is drawn may hold wildcards itself: go on until nothing changes.
    for _ in range(MAX_ROUNDS):
        before, prompt = prompt, draw.text(prompt, 0)
        if prompt == before:
            return prompt
    raise ConfigError(f"prompt has wildcards that make new ones again and again; allowed: {MAX_ROUNDS} times.")


class _Draw:
    """One prompt being drawn: its random numbers, its variables, and how much it may still grow.

    In all methods `nested` counts the files and variables around a text, `depth` the braces.
    """

    def __init__(self, rng: torch.Generator, folder: Path | None) -> None:
        self.rng, self.folder = rng, folder
        self.draws_left = MAX_DRAWS
        self.files: dict[str, list[str]] = {}
        self.variables: dict[str, list[Part]] = {}

    def text(self, text: str, nested: int) -> str:
        """The text with everything in it drawn once: variables, braces, then names of files."""
        parts = parse(text)
        for part in parts:
            check(part, True)
        parts = self._without_assignments(parts, nested)
        return self._checked_length(self._with_lines(self._drawn(parts, nested, 0), nested))

    def _checked_length(self, text: str) -> str:
        """The text itself. Raises: ConfigError if it has grown too long."""
        if len(text) > MAX_CHARS:
            raise ConfigError(
                f"prompt is {len(text)} characters long once its wildcards are drawn; allowed: up to {MAX_CHARS}."
            )
        return text

    def _count_draw(self, nested: int, where: str) -> None:
        """Count one line or variable more. Raises: ConfigError if they are too many or nested too deep."""
        self.draws_left -= 1
        if nested > MAX_NESTED or self.draws_left < 0:
            raise ConfigError(
                f"prompt has wildcards that name each other without end, at {where[:80]}; allowed: {MAX_NESTED} deep "
                f"and {MAX_DRAWS} in all."
            )

    # Variables.

    def _without_assignments(self, parts: list[Part], nested: int) -> list[Part]:
        """The parts without `${name=value}`, which count for the whole text, wherever in it they stand."""
        others: list[Part] = []
        for part in parts:
            match = assignment_match(part)
            if not match or isinstance(part, str):
                others.append(part)
                continue
            name, keeps, at_once = match[1], match[2], match[3]
            # `?=` keeps what the variable was.
            if keeps and name in self.variables:
                continue
            inner = literal(part)
            value: list[Part] = [str(inner[0])[match.end() :], *inner[1:]]
            self.variables[name] = [self._with_lines(self._drawn(value, nested, 0), nested)] if at_once else value
        return others

    def _variable(self, part: Braces, nested: int, depth: int) -> str:
        """The value of `${name}`, drawn anew, or the default of `${name:default}` where it has none."""
        inner, match = literal(part), variable_match(part)
        assert match is not None, "a prompt is checked before it is drawn"
        name = match[1]
        self._count_draw(nested + 1, f"${{{name}}}")
        if name in self.variables:
            return self._checked_length(self._drawn(self.variables[name], nested + 1, depth))
        if match[2] is None:
            variables = ", ".join(f"${{{variable}}}" for variable in list(self.variables)[:10]) or "none is set"
            raise ConfigError(
                f"prompt has ${{{name}}}, which has no value; allowed: {variables}, or ${{{name}=red}} before it, or "
                f"${{{name}:red}}."
            )
        first = str(inner[0])
        default: list[Part] = [first[first.index(":") + 1 :].lstrip(), *inner[1:]]
        return self._checked_length(self._drawn(default, nested + 1, depth))

    # Braces.

    def _drawn(self, parts: list[Part], nested: int, depth: int) -> str:
        """The text of parts, drawn; names of files are still in it."""
        if depth > MAX_DEPTH:
            raise ConfigError(f"prompt has braces within braces within braces; allowed: {MAX_DEPTH} deep.")
        return "".join(part if isinstance(part, str) else self._braces(part, nested, depth) for part in parts)

    def _braces(self, part: Braces, nested: int, depth: int) -> str:
        """The text that a pair of braces stands for."""
        if part.mark == "$":
            return self._variable(part, nested, depth + 1)
        alternatives, count, separator = self._alternatives(part)
        texts = [self._drawn(alternative, nested, depth + 1) for alternative in self._chosen(alternatives, count)]
        return self._checked_length(separator.join(texts))

    def _alternatives(self, part: Braces) -> tuple[list[list[Part]], int, str]:
        """The alternatives, how many of them are drawn, and what stands between those."""
        match, first = count_match(part), part.alternatives[0]
        if match is None:
            start = head(part).lstrip()
            if not start.startswith("~"):
                return part.alternatives, 1, ""
            # Their sign for what is done here anyway: a random draw.
            return [[start[1:], *first[1:]], *part.alternatives[1:]], 1, ""

        # What stands behind the count: words to put between, then the alternatives.
        behind = str(first[0])[match.end() :]
        alternatives, separator = [[behind, *first[1:]], *part.alternatives[1:]], ","
        split = split_separator(alternatives)
        if split is not None:
            separator, alternatives = split

        # A single name of a file stands for all of its lines: {2$$__animals__} gives two different lines.
        only = alternatives[0] if len(alternatives) == 1 else []
        name = NAME.fullmatch(only[0].strip()) if len(only) == 1 and isinstance(only[0], str) else None
        if name:
            alternatives = [[line] for line in self._lines(name[2])]
        alternatives = [without_leading_blanks(alternative) for alternative in alternatives]

        # How many: an end that is left out is 1, or all of them.
        low, dash, high, exact = match[1], match[2], match[3], match[4]
        ends = sorted((int(exact or low or 1), int(exact or high or len(alternatives)))) if dash or exact else [1, 1]
        least, most = (min(end, len(alternatives)) for end in ends)
        return alternatives, least + (self._below(most - least + 1) if most > least else 0), separator

    def _chosen(self, alternatives: list[list[Part]], count: int) -> list[list[Part]]:
        """So many different alternatives by their shares, in the order they were drawn."""
        shares, without_shares = zip(*map(split_share, alternatives), strict=True)
        shares_left = torch.tensor(shares, dtype=torch.float64)
        chosen: list[list[Part]] = []
        for _ in range(count):
            if not shares_left.any():
                if chosen:
                    break
                raise ConfigError(
                    "prompt has a wildcard whose alternatives all have the share 0; allowed: at least one above 0, "
                    "such as {2::a|b}."
                )
            # Its share is taken out, so that nothing is drawn twice.
            number = int(torch.multinomial(shares_left, 1, generator=self.rng))
            chosen.append(without_shares[number])
            shares_left[number] = 0
        return chosen

    def _below(self, number: int) -> int:
        """A random whole number from 0 to below `number`."""
        return int(torch.randint(number, (1,), generator=self.rng))

    # Files.

    def _with_lines(self, text: str, nested: int) -> str:
        """The text with a line for each `__name__`, but for names that are a part of a tag."""
        if "__" not in text:
            return text
        tag_spans = [match.span() for match in TAG.finditer(text)]
        place = 0  # both kinds of matches come in order: each span is passed once, so that long prompts take no time

        def line(match: re.Match[str]) -> str:
            nonlocal place
            while place < len(tag_spans) and tag_spans[place][1] <= match.start():
                place += 1
            is_in_tag = place < len(tag_spans) and tag_spans[place][0] <= match.start()
            before, behind = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
            is_whole_name = before == ":" and behind in (":", ">")
            return match[0] if is_in_tag and not is_whole_name else self._line(match[2], nested + 1)

        return NAME.sub(line, text)

    def _line(self, name: str, nested: int) -> str:
        """A random line of the files of that name, itself drawn."""
        self._count_draw(nested, f"__{name}__")
        # Lines may have shares, as alternatives in braces have.
        lines = self._lines(name)
        if any(SHARE.match(line) for line in lines):
            return self.text(str(self._chosen([[line] for line in lines], 1)[0][0]), nested)
        return self.text(lines[self._below(len(lines))], nested)

    def _lines(self, name: str) -> list[str]:
        if name not in self.files:
            self.files[name] = lines_of(name, self.folder)
        return self.files[name]
