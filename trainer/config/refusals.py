"""pydantic's problems -> the same in an artist's words: which setting, what was found, what is allowed; five of many.

No word of pydantic's own gets out: each kind of problem has its words here, and a kind that has none says that much.
What was found is shown short and printable, since a file from outside holds anything.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, get_args

import pydantic
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.errors import ConfigError
from trainer.printing import listed, printable

_FOUND_CHARS, _SENTENCE_CHARS = 80, 1500
_NONE = FieldInfo(annotation=None)
_BRANCHES = {"str", "int", "float", "bool"}  # of a union, as pydantic spells them in a path
_PATTERNS = {
    r"^(\S(.*\S)?)?$": "text on one line without blanks around it",
    r"^#[0-9a-fA-F]{6}$": "a colour as #rrggbb, such as #ffffff",
    r"^[A-Za-z0-9_]*$": "letters, digits and _",
    r"^[A-Za-z0-9_-]*$": "letters, digits, _ and -",
    r"^([0-9a-f]{64})?$": "64 digits from 0 to f, or nothing",
}
_Words = Callable[[dict[str, Any]], str]
_NUMBER: _Words = lambda _: "a number"  # noqa: E731
_WHOLE: _Words = lambda _: "a whole number"  # noqa: E731
_ALLOWED: dict[str, _Words] = {
    "greater_than": lambda ctx: f"more than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"{ctx['ge']:g} or more",
    "less_than": lambda ctx: f"less than {ctx['lt']:g}",
    "less_than_equal": lambda ctx: f"{ctx['le']} or less",
    "multiple_of": lambda ctx: f"a multiple of {ctx['multiple_of']:g}",
    "finite_number": _NUMBER, "float_type": _NUMBER, "float_parsing": _NUMBER,
    "int_type": _WHOLE, "int_parsing": _WHOLE, "int_from_float": _WHOLE, "int_parsing_size": _WHOLE,
    "bool_type": lambda _: "true or false", "bool_parsing": lambda _: "true or false",
    "string_type": lambda _: "text", "string_unicode": lambda _: "text without halves of characters",
    "string_too_long": lambda ctx: f"up to {ctx['max_length']} characters",
    "string_too_short": lambda ctx: f"at least {ctx['min_length']} character{'' if ctx['min_length'] == 1 else 's'}",
    "string_pattern_mismatch": lambda ctx: _PATTERNS.get(ctx["pattern"], "text of another form"),
    "too_long": lambda ctx: f"up to {ctx['max_length']} entries",
    "too_short": lambda ctx: f"at least {ctx['min_length']}",
    "literal_error": lambda ctx: str(ctx["expected"]), "enum": lambda ctx: str(ctx["expected"]),
    "tuple_type": lambda _: "a list", "list_type": lambda _: "a list", "iterable_type": lambda _: "a list",
    "dict_type": lambda _: "a table of settings", "model_type": lambda _: "a table of settings",
    "model_attributes_type": lambda _: "a table of settings",
    "mapping_type": lambda _: "a table of settings", "none_required": lambda _: "nothing",
    "invalid_key": lambda _: "the name of a setting",
    "union_tag_invalid": lambda ctx: str(ctx["expected_tags"]).replace("'", ""),
}  # fmt: skip


def explain(error: pydantic.ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """The same problems in words: field, what was found, what is allowed; the first five of them in one message."""
    lines = sentences(error, model)
    count = f"{len(lines)} setting{'s' if len(lines) > 1 else ''} in {where} can't be used:"
    return ConfigError(f"{count}\n{listed(lines, '  ')}")


def sentences(error: pydantic.ValidationError, model: type[BaseModel]) -> list[str]:
    """A sentence for each problem, which begins with its setting."""
    lines = []
    for problem in error.errors(include_url=False):
        lines += _explained(dict(problem), model).split("\n  ")  # a validator of a whole model says several at once
    return _without_repetition(_merged(lines))


def shown(value: object) -> str:
    """A value as a message may hold it: printable, on one line and short."""
    text = printable(_spelled(value)[: _FOUND_CHARS + 1])
    return text if len(text) <= _FOUND_CHARS else f"{text[:_FOUND_CHARS]}..."


def _spelled(value: object) -> str:
    """The value's spelling, or the start of it: `repr` of a large or deep value would take long, or fail."""
    if isinstance(value, str | bytes):
        return repr(value[: _FOUND_CHARS + 1])
    if isinstance(value, dict):
        return f"a table of {len(value)} settings" if value else "an empty table"
    if isinstance(value, list | tuple):
        nested = any(isinstance(entry, dict | list | tuple) for entry in value)
        return f"a list of {len(value)}" if len(value) > 3 or nested else repr([*value])
    # Python refuses to spell a number of thousands of digits.
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return "nothing" if value is None else "true" if value is True else "false" if value is False else str(value)


def _explained(problem: dict[str, Any], model: type[BaseModel]) -> str:
    if problem["type"] == "value_error":  # our own validators write whole sentences
        return str(problem["msg"]).removeprefix("Value error, ")[:_SENTENCE_CHARS]

    # Which setting, and what was found there.
    keys, parent = _walk(problem["loc"], model)
    name = ".".join(shown(key)[1:-1] if isinstance(key, str) else str(key) for key in keys) or "it"
    value, kind = shown(problem["input"]), problem["type"]
    if kind == "union_tag_invalid" and isinstance(problem["input"], dict):
        name, value = f"{name}.method", shown(problem["input"].get("method"))

    # What is wrong with it, and what is allowed.
    if kind == "missing":
        return f"{name} is not set; it must be."
    if kind == "union_tag_not_found":
        return f"{name} is {value}; allowed: a table with a method, such as method = 'lora'."
    if kind == "extra_forbidden":
        prefix = "".join(f"{key}." for key in keys[:-1])
        # Cut, as likeness of long texts is slow to find.
        close = difflib.get_close_matches(str(keys[-1])[:100], parent, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else "."
        return f"{name} (found {value}) is not a setting{hint} Allowed: {', '.join(prefix + key for key in parent)}."
    allowed = _ALLOWED[kind](problem.get("ctx", {})) if kind in _ALLOWED else "another kind of value"
    if kind in ("too_long", "too_short"):
        value = f"a list of {problem['ctx'].get('actual_length', 'more')}"
    return f"{name} is {value}; allowed: {allowed}."


def _merged(lines: list[str]) -> list[str]:
    """Each line once; what is wrong with every branch of a union is one line with all that is allowed."""
    allowed: dict[str, list[str]] = {}
    for line in lines:
        head, allows, what = line.partition("; allowed: ")
        allowed.setdefault(head, []).extend([what.removesuffix(".")] if allows else [])
    return [
        f"{head}; allowed: {' or '.join(dict.fromkeys(whats))}." if whats else head for head, whats in allowed.items()
    ]


def _without_repetition(lines: list[str]) -> list[str]:
    """The lines, of which only the first that names all settings of a table does so."""
    result, named = [], set()
    for line in lines:
        head, mark, allowed = line.partition(" Allowed: ")
        result.append(head if mark and allowed in named else line)
        named.add(allowed)
    return result


def _walk(path: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Keys as a preset spells them, and those allowed beside the last key.

    pydantic's path has more than these: the tag of a discriminated union, and the branch of a plain union.
    """
    keys: list[str] = []
    here: Any = model
    parent: Any = model
    for place, part in enumerate(map(str, path)):
        # The tag of a union: its model, such as the Config of lora, is where the path goes on.
        tagged = [
            kind
            for kind in get_args(here)
            if part in get_args(getattr(kind, "model_fields", {}).get("method", _NONE).annotation)
        ]
        if tagged:
            here = tagged[0]
            continue

        # The branch of a plain union, at the end of the path, and the mark of a bad key.
        fields = getattr(here, "model_fields", {})
        is_branch = part in _BRANCHES or part.startswith(("constrained-", "function-"))
        if (place and place == len(path) - 1 and not fields and is_branch) or part == "[key]":
            continue

        # A key.
        keys.append(part)
        parent, here = here, fields[part].annotation if part in fields else None
    return keys, list(getattr(parent, "model_fields", {}))
