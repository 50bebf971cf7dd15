"""Dynamic prompts: what is drawn of a prompt before it is read, as sd-dynamic-prompts writes it (adieyal/dynamicprompts, docs/SYNTAX.md).

    {a|2::b}                 one of them, b twice as often
    {2$$a|b|c}  {1-2$$ and $$a|b|c}    so many different ones, with `,` or the given words between
    __name__  __animals/*__  a line of `name.txt`, or of any file that fits; lines may have shares too
    ${c={red|blue}} ${c} ${c:green}    a variable, drawn at each use; `=!` draws it once; `?=` keeps what it was

Prompts come from anywhere: everything is linear in their length, and how deep, how often and how far they grow is bounded. What can't be
read is refused by name. A brace without partner or bar is text; so is `__name__` inside a tag, where it is a part of a file's name, unless it
is the whole name.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trainer.config.parsing import text_of
from trainer.errors import ConfigError
from trainer.render.tags import TAG

if TYPE_CHECKING:
    import torch

MAX_CHARS = 8000  # of a prompt, drawn out; StackConfig.prompt has as many
MAX_DRAWS = 256  # lines of files and values of variables in one prompt
MAX_NESTED = 8  # files and variables named by those
MAX_DEPTH = 32  # braces within braces
MAX_ROUNDS = 32  # of drawing what was drawn
MAX_FILE_BYTES = 1 << 20
MAX_FILES = 10_000  # looked at for a name with * in it
NAME = re.compile(r"__(~?)((?:[^\W_]|\*)(?:[\w .*?-](?<!__)(?<!\.\.)|/(?=[^\W_]|\*)){0,79})(?<![_ ])__")
_SHARE = re.compile(r"\s{0,8}(\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})::")
_BOUND = re.compile(r"\s{0,8}~?\s{0,8}(?:(\d{1,3})?(-)(\d{1,3})?|(\d{1,3}))\$\$")
_ASSIGNS = re.compile(r"\s{0,8}([A-Za-z_-][\w-]{0,63})\s{0,8}(\??)=(!?)\s{0,8}")
_READS = re.compile(r"\s{0,8}([A-Za-z_-][\w-]{0,63})\s{0,8}(?::(.*))?", re.DOTALL)
_ALLOWED = "allowed: {a|b}, {2::a|b}, {2$$a|b}, {1-2$$ and $$a|b|c}, __name__, ${name=a}, ${name}, ${name:a}"


@dataclass
class _Braces:
    """What stands between two braces: alternatives, or what `$` or `%` before them makes of it."""

    mark: str  # "", "$" or "%"
    alternatives: list[list[_Part]] = field(default_factory=lambda: [[]])


_Part: TypeAlias = "str | _Braces"


def expand(prompt: str, seed: int, folder: Path | None = None, stream: str = "prompt") -> str:
    """The prompt as it is drawn, with lines of the files in `folder`; doing it again changes nothing.

    The draw is seeded from (seed, stream): the same picture, the same words; prompt and negative prompt have a stream each. Blank lines of
    files and those that start with # are not drawn. Raises: ConfigError for what can't be read, a name without a file or a variable
    without a value, or a prompt that grows beyond its bounds.
    """
    if not ("{" in prompt or "__" in prompt):
        return prompt
    from trainer import objective

    draw = _Draw(objective.generator(seed, f"wildcards {stream}", 0), folder)
    for _ in range(MAX_ROUNDS):
        before, prompt = prompt, draw.text(prompt, 0)
        if prompt == before:
            return prompt
    raise ConfigError(f"prompt has wildcards that make new ones again and again; allowed: {MAX_ROUNDS} times.")


def _parse(text: str) -> list[_Part]:
    """Literal text and braces. A brace without partner is text, and so are two without a bar or `$$` between, but for variables."""
    stack: list[_Braces] = [_Braces("")]  # the outermost is the text itself
    beyond = 0  # braces open beyond the depth, which are text until those around them are drawn
    for token in re.split(r"(\$\$(?=\$?\{)|[$%]\{|[{}|])", text):
        opens = token in ("{", "${", "%{")
        if beyond or (opens and len(stack) > MAX_DEPTH):
            beyond += opens - (token == "}")
            _say(stack[-1], [token])
        elif opens:
            stack.append(_Braces(token[:-1]))
        elif token == "}" and len(stack) > 1:
            closed = stack.pop()
            if closed.mark or len(closed.alternatives) > 1 or _bound(closed):
                stack[-1].alternatives[-1].append(closed)
            else:
                _say(stack[-1], ["{", *_literal(closed), "}"])
        elif token == "|" and len(stack) > 1:
            stack[-1].alternatives.append([])
        elif token:
            _say(stack[-1], [token])
    while len(stack) > 1:
        opened = stack.pop()
        if opened.mark:
            raise ConfigError(f"prompt has {opened.mark}{{ without its }}; {_ALLOWED}.")
        _say(stack[-1], ["{", *_literal(opened)])
    return stack[0].alternatives[0]


def _say(braces: _Braces, parts: list[_Part]) -> None:
    """Put parts behind the last alternative, texts that meet as one."""
    last = braces.alternatives[-1]
    for part in parts:
        if isinstance(part, str) and last and isinstance(last[-1], str):
            last[-1] += part
        else:
            last.append(part)


def _literal(braces: _Braces) -> list[_Part]:
    """What stands between braces that are none."""
    parts = list(braces.alternatives[0])
    for more in braces.alternatives[1:]:
        parts += ["|", *more]
    return parts


def _bound(braces: _Braces) -> re.Match[str] | None:
    return _BOUND.match(_head(braces))


class _Draw:
    """One prompt being drawn: its luck, its variables, and how much it may still grow."""

    def __init__(self, rng: torch.Generator, folder: Path | None) -> None:
        self.rng, self.folder = rng, folder
        self.draws_left = MAX_DRAWS
        self.files: dict[str, list[str]] = {}
        self.variables: dict[str, list[_Part]] = {}

    def text(self, text: str, nested: int) -> str:
        parts = _parse(text)
        for part in parts:
            _check(part, True)
        parts = self._without_assignments(parts, nested)
        return self._checked(self._names(self._drawn(parts, nested, 0), nested))

    def _checked(self, text: str) -> str:
        if len(text) > MAX_CHARS:
            raise ConfigError(f"prompt is {len(text)} characters long once its wildcards are drawn; allowed: up to {MAX_CHARS}.")
        return text

    def _spend(self, nested: int, at: str) -> None:
        self.draws_left -= 1
        if nested > MAX_NESTED or self.draws_left < 0:
            raise ConfigError(f"prompt has wildcards that name each other without end, at {at[:80]}; allowed: {MAX_NESTED} deep and {MAX_DRAWS} in all.")

    # Variables.

    def _without_assignments(self, parts: list[_Part], nested: int) -> list[_Part]:
        """The parts without `${name=value}`, which count for the whole text, wherever in it they stand."""
        left: list[_Part] = []
        for part in parts:
            match = _assigned(part)
            if not match or isinstance(part, str):
                left.append(part)
                continue
            name, keeps, at_once = match[1], match[2], match[3]
            if keeps and name in self.variables:
                continue
            inner = _literal(part)
            value: list[_Part] = [str(inner[0])[match.end() :], *inner[1:]]
            self.variables[name] = [self._names(self._drawn(value, nested, 0), nested)] if at_once else value
        return left

    def _variable(self, part: _Braces, nested: int, depth: int) -> str:
        inner, match = _literal(part), _read_variable(part)
        assert match is not None, "a prompt is checked before it is drawn"
        name = match[1]
        self._spend(nested + 1, f"${{{name}}}")
        if name in self.variables:
            return self._checked(self._drawn(self.variables[name], nested + 1, depth))
        if match[2] is None:
            known = ", ".join(f"${{{one}}}" for one in list(self.variables)[:10]) or "none is set"
            raise ConfigError(f"prompt has ${{{name}}}, which has no value; allowed: {known}, or ${{{name}=red}} before it, or ${{{name}:red}}.")
        first = str(inner[0])
        return self._checked(self._drawn([first[first.index(":") + 1 :].lstrip(), *inner[1:]], nested + 1, depth))

    # Braces.

    def _drawn(self, parts: list[_Part], nested: int, depth: int) -> str:
        """The text of parts, drawn; names of files are still in it."""
        if depth > MAX_DEPTH:
            raise ConfigError(f"prompt has braces within braces within braces; allowed: {MAX_DEPTH} deep.")
        return "".join(part if isinstance(part, str) else self._braces(part, nested, depth) for part in parts)

    def _braces(self, part: _Braces, nested: int, depth: int) -> str:
        if part.mark == "$":
            return self._variable(part, nested, depth + 1)
        alternatives, count, between = self._bounded(part, nested)
        drawn = [self._drawn(one, nested, depth + 1) for one in self._chosen(alternatives, count)]
        return self._checked(between.join(drawn))

    def _bounded(self, part: _Braces, nested: int) -> tuple[list[list[_Part]], int, str]:
        """The alternatives, how many of them are drawn, and what stands between."""
        match = _bound(part)
        if match is None:
            head = _head(part).lstrip()
            if not head.startswith("~"):
                return part.alternatives, 1, ""
            return [[head[1:], *part.alternatives[0][1:]], *part.alternatives[1:]], 1, ""  # their sign for what is done anyway: a draw
        first = part.alternatives[0]
        head = str(first[0])
        low, dash, high, exact = match[1], match[2], match[3], match[4]
        rest = head[match.end() :]
        alternatives, between = [[rest, *first[1:]], *part.alternatives[1:]], ","
        said = _separated(alternatives)
        if said is not None:
            between, alternatives = said
        lone = alternatives[0] if len(alternatives) == 1 else []
        name = NAME.fullmatch(lone[0].strip()) if len(lone) == 1 and isinstance(lone[0], str) else None
        if name:
            alternatives = [[line] for line in self._lines(name[2])]
        alternatives = [_bare(one) for one in alternatives]
        ends = sorted((int(exact or low or 1), int(exact or high or len(alternatives)))) if dash or exact else [1, 1]
        few, many = (min(end, len(alternatives)) for end in ends)
        return alternatives, few + (self._below(many - few + 1) if many > few else 0), between

    def _chosen(self, alternatives: list[list[_Part]], count: int) -> list[list[_Part]]:
        """So many different ones by their shares, in the order they were drawn."""
        import torch

        shares, bare = zip(*map(_shared, alternatives), strict=True)
        left = torch.tensor(shares, dtype=torch.float64)
        found: list[list[_Part]] = []
        for _ in range(count):
            if not left.any():
                if found:
                    break
                raise ConfigError("prompt has a wildcard whose alternatives all have the share 0; allowed: at least one above 0, such as {2::a|b}.")
            number = int(torch.multinomial(left, 1, generator=self.rng))
            found.append(bare[number])
            left[number] = 0
        return found

    def _below(self, number: int) -> int:
        import torch

        return int(torch.randint(number, (1,), generator=self.rng))

    # Files.

    def _names(self, text: str, nested: int) -> str:
        """The text with a line for each name, but for names that are a part of a tag."""
        if "__" not in text:
            return text
        kept = [match.span() for match in TAG.finditer(text)]
        place = 0

        def drawn(match: re.Match[str]) -> str:
            nonlocal place
            while place < len(kept) and kept[place][1] <= match.start():
                place += 1
            inside = place < len(kept) and kept[place][0] <= match.start()
            whole = text[match.start() - 1 : match.start()] == ":" and text[match.end() : match.end() + 1] in (":", ">")
            return match[0] if inside and not whole else self._line(match[2], nested + 1)

        return NAME.sub(drawn, text)

    def _line(self, name: str, nested: int) -> str:
        self._spend(nested, f"__{name}__")
        lines = self._lines(name)
        if any(_SHARE.match(line) for line in lines):
            return self.text(str(self._chosen([[line] for line in lines], 1)[0][0]), nested)
        return self.text(lines[self._below(len(lines))], nested)

    def _lines(self, name: str) -> list[str]:
        if name not in self.files:
            self.files[name] = lines_of(name, self.folder)
        return self.files[name]


def _head(braces: _Braces) -> str:
    """The text right behind the opening brace, up to the next one."""
    first = braces.alternatives[0]
    return first[0] if first and isinstance(first[0], str) else ""


def _check(part: _Part, outermost: bool) -> None:
    """Raises: ConfigError for braces that can't be drawn, whether they would be or not."""
    if isinstance(part, str):
        return
    if part.mark == "%":
        raise ConfigError(f"prompt has %{{{_head(part)[:40]}...}}, which wraps words and is not read here; write them out; {_ALLOWED}.")
    if part.mark == "$" and not (_assigned(part) and outermost) and not _read_variable(part):
        why = "a variable's name begins with a letter, and it is set outside other braces"
        raise ConfigError(f"prompt has ${{{_head(part)[:60]}}}, which can't be read: {why}; {_ALLOWED}.")
    if not part.mark and not _bound(part) and (_head(part).lstrip().startswith(("@", "!")) or "$$" in _head(part)[:24]):
        why = "@ and ! take turns over many pictures, and $$ follows a number"
        raise ConfigError(f"prompt has {{{_head(part)[:40]}..., which can't be read: {why}; {_ALLOWED}.")
    for alternative in part.alternatives:
        for one in alternative:
            _check(one, False)


def _assigned(part: _Part) -> re.Match[str] | None:
    return None if isinstance(part, str) or part.mark != "$" else _ASSIGNS.match(_head(part))


def _read_variable(part: _Braces) -> re.Match[str] | None:
    written = "".join(one if isinstance(one, str) else "{...}" for one in _literal(part))
    return _READS.fullmatch(written)


def _bare(parts: list[_Part]) -> list[_Part]:
    """An alternative without blanks in front."""
    return [parts[0].lstrip(), *parts[1:]] if parts and isinstance(parts[0], str) else parts


def _shared(parts: list[_Part]) -> tuple[float, list[_Part]]:
    """An alternative's share and what is left without it."""
    match = _SHARE.match(parts[0]) if parts and isinstance(parts[0], str) else None
    return (float(match[1]), [str(parts[0])[match.end() :], *parts[1:]]) if match else (1.0, parts)


def _separated(alternatives: list[list[_Part]]) -> tuple[str, list[list[_Part]]] | None:
    """`words$$` in front, which may hold bars, and the alternatives after it; None if there are none. In `1$$ | $$a|b` the words are ` | `."""
    said = ""
    for number, one in enumerate(alternatives):
        first = one[0] if one else ""
        if not isinstance(first, str):
            return None
        before, marks, after = first.partition("$$")
        if marks:
            return said + before, [[after, *one[1:]], *alternatives[number + 1 :]]
        if len(one) > 1:
            return None
        said += first + "|"
    return None


def lines_of(name: str, folder: Path | None) -> list[str]:
    """What `__name__` stands for: the lines of that file, or of all that fit a name with * or ? in it. Raises: ConfigError."""
    if folder is None:
        raise ConfigError(f"prompt has __{name}__, but there is no folder of wildcards; name one, or write {{a|b}}.")
    path = folder / f"{name}.txt"
    files = [path] if not any(mark in name for mark in "*?") and path.is_file() else []
    if not files:  # by its pattern, else in any folder below
        known = _files(folder)
        fitting = [[file for one, file in known.items() if fnmatch.fnmatchcase(one, pattern)] for pattern in (name, f"**/{name}")]
        files = fitting[0] or fitting[1]
    files = [file for file in files if file.resolve().is_relative_to(folder.resolve())]
    if not files:
        there = list(_files(folder))
        raise ConfigError(f"prompt has __{name}__, and {folder.name} has no {name}.txt; allowed: {', '.join(there[:20]) or 'nothing, it is empty'}.")
    found = [line for file in files for line in _read(file)]
    if not found:
        raise ConfigError(f"{name}.txt of the wildcards has no lines to draw from; write an alternative a line.")
    return found if len(files) == 1 else sorted(set(found))


def _files(folder: Path) -> dict[str, Path]:
    """Every file of wildcards by its name, sorted."""
    found: dict[str, Path] = {}
    for file in folder.rglob("*.txt"):
        if len(found) >= MAX_FILES:
            raise ConfigError(f"{folder.name} has more than {MAX_FILES} files of wildcards; a prompt with * in a name looks at up to that many.")
        found[file.relative_to(folder).with_suffix("").as_posix()] = file
    return dict(sorted(found.items()))


def _read(path: Path) -> list[str]:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path.name} of the wildcards is larger than {MAX_FILE_BYTES} bytes; split it.")
    lines = [line.strip() for line in text_of(raw, f"{path.name} of the wildcards").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
