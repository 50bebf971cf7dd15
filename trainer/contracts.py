"""What a plug-in says of itself, read from its module into one frozen value of its contract.

A plug-in is a file with plain names (`title = ...`, `def load(...)`), its contract a dataclass with a field for each of
them. A name that the contract hasn't, one that is missing and a value of another kind are mistakes of whoever wrote the
file. They are refused when it is imported, all at once: read by `getattr` with a default, a misspelt `negate = False`
would be silence.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError


class Contract(Protocol):
    """A frozen dataclass whose fields are the names a plug-in may have."""

    @property
    def name(self) -> str: ...


Kind = TypeVar("Kind", bound=Contract)


def gather(kind: type[Kind], package: str, folders: Iterable[str]) -> dict[str, Kind]:
    """Every plug-in of a package by its name, in the order of the names. Raises: TypeError as `read` does."""
    files = (f"{package}.{info.name}" for info in pkgutil.iter_modules(folders))
    plugins = [read(kind, importlib.import_module(file)) for file in files if file != kind.__module__]
    return {plugin.name: plugin for plugin in sorted(plugins, key=lambda plugin: plugin.name)}


def read(kind: type[Kind], module: ModuleType) -> Kind:
    """What a module says, as a value of its contract.

    Raises: TypeError with everything that is unknown, missing or of another kind, and the file.
    """
    # What the contract wants, and what the module has of it.
    hints = _hints(kind)
    required = {
        field.name
        for field in fields(typing.cast(Any, kind))
        if field.default is MISSING and field.default_factory is MISSING
    }
    values = {name: value for name, value in vars(module).items() if name in hints}

    # Every mistake at once.
    problems = [
        f"{name} is unknown; the nearest that is allowed: {_nearest(name, hints)}"
        for name in _public(module)
        if name not in hints
    ]
    problems += [f"{name} is missing" for name in sorted(required - set(values))]
    problems += [
        f"{name} is {value!r:.80}: {misfit}"
        for name, value in values.items()
        if (misfit := _misfit(*hints[name], value))
    ]
    if problems:
        raise TypeError(
            f"{module.__file__} is no {kind.__name__}: {'; '.join(problems)}. What each is: "
            f"{kind.__module__}.{kind.__name__}."
        )

    # Tables are shared by all who read the plug-in, and can't be changed.
    frozen = {name: MappingProxyType(value) if isinstance(value, dict) else value for name, value in values.items()}
    return kind(**frozen)


@cache
def _hints(kind: type[Contract]) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    """The kind of each name, and what tells whether a value is of it, which takes a while to make."""
    return {name: (hint, TypeAdapter(hint)) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}


def _public(module: ModuleType) -> list[str]:
    """The names that a module gives to values and functions of its own; its imports and classes are its own affair."""
    # Read from the source, since an imported module doesn't tell what was made in it.
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    return [name for name in _bound(ast.parse(source).body) if not name.startswith("_")]


def _bound(statements: list[ast.stmt]) -> Iterator[str]:
    """The names that these statements of a module define or assign."""
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from (
                node.id
                for target in targets
                for node in ast.walk(target)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
        elif isinstance(statement, ast.If):
            yield from _bound([*statement.body, *statement.orelse])


def _nearest(name: str, allowed: Iterable[str]) -> str:
    return difflib.get_close_matches(name, allowed, 1, 0.0)[0]


def _misfit(hint: Any, adapter: TypeAdapter[Any], value: Any) -> str:
    """In what a value isn't of the contract's kind; nothing where it is."""
    # Its type, as pydantic judges it.
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])

    # Of a function pydantic knows only that it can be called; it must also take the arguments it will be given.
    wanted = _parameters(hint)
    if wanted is None or value is None:
        return ""
    try:
        inspect.signature(value).bind(*wanted)
    except TypeError:
        return f"it must take {len(wanted)} arguments; found: {inspect.signature(value)}"
    return ""


def _parameters(hint: Any) -> list[Any] | None:
    """The kinds of a function's arguments by its hint; None where that is no function's, or says nothing of them."""
    # The hint itself, or what it names beside None.
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Callable and isinstance(parameters := typing.get_args(kind)[0], list):
            return parameters
    return None
