"""How a dynamic prompt is written: a text parsed into literal text and braces, and what the head of a brace says.

Nothing is drawn here; `wildcards` does that and shows the whole syntax. A brace without a partner, or one that holds
neither a bar nor `$$`, is literal text. A brace that is meant as syntax and can't be read is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from trainer.errors import ConfigError

MAX_DEPTH = 32  # braces within braces
NAME = re.compile(r"__(~?)((?:[^\W_]|\*)(?:[\w .*?-](?<!__)(?<!\.\.)|/(?=[^\W_]|\*)){0,79})(?<![_ ])__")
SHARE = re.compile(r"\s{0,8}(\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})::")
_COUNT = re.compile(r"\s{0,8}~?\s{0,8}(?:(\d{1,3})?(-)(\d{1,3})?|(\d{1,3}))\$\$")
_ASSIGNMENT = re.compile(r"\s{0,8}([A-Za-z_-][\w-]{0,63})\s{0,8}(\??)=(!?)\s{0,8}")
_VARIABLE = re.compile(r"\s{0,8}([A-Za-z_-][\w-]{0,63})\s{0,8}(?::(.*))?", re.DOTALL)
_ALLOWED = "allowed: {a|b}, {2::a|b}, {2$$a|b}, {1-2$$ and $$a|b|c}, __name__, ${name=a}, ${name}, ${name:a}"


@dataclass
class Braces:
    """What stands between two braces: alternatives, or what `$` or `%` before them makes of it."""

    mark: str  # "", "$" or "%"
    alternatives: list[list[Part]] = field(default_factory=lambda: [[]])


Part: TypeAlias = "str | Braces"


def parse(text: str) -> list[Part]:
    """The text as literal text and braces.

    A brace without a partner is text, and so are two without a bar or `$$` between, but for variables. Raises:
    ConfigError for `${` or `%{` without its `}`.
    """
    # One pass over marks and the text between them, linear in the text.
    stack: list[Braces] = [Braces("")]  # the outermost is the text itself
    beyond = 0  # braces open beyond the depth, which are text until those around them are drawn
    for token in re.split(r"(\$\$(?=\$?\{)|[$%]\{|[{}|])", text):
        opens = token in ("{", "${", "%{")
        if beyond or (opens and len(stack) > MAX_DEPTH):
            beyond += opens - (token == "}")
            _append(stack[-1], [token])
        elif opens:
            stack.append(Braces(token[:-1]))
        elif token == "}" and len(stack) > 1:
            # Braces that mean nothing are put back as text: people write {this} too.
            closed = stack.pop()
            if closed.mark or len(closed.alternatives) > 1 or count_match(closed):
                stack[-1].alternatives[-1].append(closed)
            else:
                _append(stack[-1], ["{", *literal(closed), "}"])
        elif token == "|" and len(stack) > 1:
            stack[-1].alternatives.append([])
        elif token:
            _append(stack[-1], [token])

    # What is still open has no partner.
    while len(stack) > 1:
        opened = stack.pop()
        if opened.mark:
            raise ConfigError(f"prompt has {opened.mark}{{ without its }}; {_ALLOWED}.")
        _append(stack[-1], ["{", *literal(opened)])
    return stack[0].alternatives[0]


def _append(braces: Braces, parts: list[Part]) -> None:
    """Put parts behind the last alternative, texts that meet as one."""
    alternative = braces.alternatives[-1]
    for part in parts:
        if isinstance(part, str) and alternative and isinstance(alternative[-1], str):
            alternative[-1] += part
        else:
            alternative.append(part)


def literal(braces: Braces) -> list[Part]:
    """What stands between two braces, with the bars as text again."""
    parts = list(braces.alternatives[0])
    for alternative in braces.alternatives[1:]:
        parts += ["|", *alternative]
    return parts


def head(braces: Braces) -> str:
    """The text right behind the opening brace, up to the next brace."""
    first = braces.alternatives[0]
    return first[0] if first and isinstance(first[0], str) else ""


def check(part: Part, outermost: bool) -> None:
    """Raises: ConfigError for braces that can't be drawn, whether they would be or not."""
    if isinstance(part, str):
        return
    start = head(part)
    if part.mark == "%":
        raise ConfigError(
            f"prompt has %{{{start[:40]}...}}, which wraps words and is not read here; write them out; {_ALLOWED}."
        )
    if part.mark == "$" and not (assignment_match(part) and outermost) and not variable_match(part):
        why = "a variable's name begins with a letter, and it is set outside other braces"
        raise ConfigError(f"prompt has ${{{start[:60]}}}, which can't be read: {why}; {_ALLOWED}.")
    if not part.mark and not count_match(part) and (start.lstrip().startswith(("@", "!")) or "$$" in start[:24]):
        why = "@ and ! take turns over many pictures, and $$ follows a number"
        raise ConfigError(f"prompt has {{{start[:40]}..., which can't be read: {why}; {_ALLOWED}.")
    for alternative in part.alternatives:
        for inner in alternative:
            check(inner, False)


# The head of a brace.


def count_match(braces: Braces) -> re.Match[str] | None:
    """`2$$` or `1-3$$` at the start: least, dash, most, exact number as its groups; None if there is none."""
    return _COUNT.match(head(braces))


def assignment_match(part: Part) -> re.Match[str] | None:
    """`name=`, `name?=` or `name=!` at the start: name, `?`, `!` as its groups; None if the part sets no variable."""
    return None if isinstance(part, str) or part.mark != "$" else _ASSIGNMENT.match(head(part))


def variable_match(part: Braces) -> re.Match[str] | None:
    """`name` or `name:value` as the whole of it: name and value as its groups; None if no variable is read."""
    written = "".join(inner if isinstance(inner, str) else "{...}" for inner in literal(part))
    return _VARIABLE.fullmatch(written)


# Alternatives.


def without_leading_blanks(parts: list[Part]) -> list[Part]:
    """An alternative without blanks in front."""
    return [parts[0].lstrip(), *parts[1:]] if parts and isinstance(parts[0], str) else parts


def split_share(parts: list[Part]) -> tuple[float, list[Part]]:
    """An alternative's share, 1 if none is given, and what is left without it."""
    match = SHARE.match(parts[0]) if parts and isinstance(parts[0], str) else None
    return (float(match[1]), [str(parts[0])[match.end() :], *parts[1:]]) if match else (1.0, parts)


def split_separator(alternatives: list[list[Part]]) -> tuple[str, list[list[Part]]] | None:
    """The words before `$$`, and the alternatives after it; None if there is no `$$`.

    The words may hold bars, at which they were split: in `1$$ | $$a|b` they are ` | `.
    """
    words = ""
    for number, alternative in enumerate(alternatives):
        first = alternative[0] if alternative else ""
        if not isinstance(first, str):
            return None
        before, marks, after = first.partition("$$")
        if marks:
            return words + before, [[after, *alternative[1:]], *alternatives[number + 1 :]]
        if len(alternative) > 1:
            return None
        words += first + "|"
    return None
