"""What programs send, taken as hostile: an argument is what the endpoint's signature says, and a file was uploaded."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from app import leftovers
from app.context import Context
from app.notices import LONGEST_TEXT
from app.texts import say
from trainer.errors import ConfigError, DataError
from trainer.printing import plain

_R = TypeVar("_R")
_MOST_FILES = 2000
_LONGEST_SHOWN = 80

# What endpoints take. The bounds are those of what the pages send, or of what a table can hold.
Name = Annotated[str, Field(max_length=400)]
Names = Annotated[list[Name], Field(max_length=20_000)]
Number = Annotated[int, Field(ge=0, le=2**53)]
Settings = dict[str, Any]
File = str | dict[str, Any]  # as `gradio_client.handle_file` makes it, or the path that an upload answered
Files = Annotated[list[File], Field(max_length=_MOST_FILES)]


def typed(endpoint: Callable[..., _R]) -> Callable[..., _R]:
    """The same endpoint, whose arguments are what its signature says. Raises: ConfigError naming one that isn't."""
    hints = get_type_hints(endpoint, include_extras=True)
    signature = inspect.signature(endpoint)
    wanted = {name: TypeAdapter(hints[name]) for name in signature.parameters}

    @functools.wraps(endpoint)
    def asked(*args: Any, **kwargs: Any) -> _R:
        # What was given is checked and passed on as it came: nothing is converted on the way.
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            try:
                wanted[name].validate_python(value, strict=True)  # "1" is no number, and 1 no truth value
            except ValidationError as error:
                raise ConfigError(_complaint(name, value, error)) from None
            if (longest := _longest(value)) > LONGEST_TEXT:
                raise ConfigError(say("problems.too_long", what=name, num=longest, most=LONGEST_TEXT))
        return endpoint(**given)

    return asked


def _complaint(name: str, value: Any, error: ValidationError) -> str:
    """The first thing that is wrong with an argument."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join([name, *(str(part) for part in first["loc"] if isinstance(part, int))])
    reason = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
    return say("api.argument", argument=place, found=plain(repr(value), _LONGEST_SHOWN), reason=plain(reason, 200))


def _longest(value: Any) -> int:
    """The letters of the longest text in a value, however deep it lies."""
    # With a list of what is left to look at, not recursion: a hostile value may be nested very deep.
    longest, waiting = 0, [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, str):
            longest = max(longest, len(inner))
        elif isinstance(inner, dict):
            waiting += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple):
            waiting += inner
    return longest


@contextmanager
def uploads(context: Context, files: Sequence[File]) -> Iterator[list[Path]]:
    """The files that were uploaded for this call; they are gone afterwards. Raises: DataError for any other file."""
    paths = [_uploaded(context, file) for file in files]
    try:
        yield paths
    finally:
        leftovers.taken(context, paths)


def _uploaded(context: Context, file: File) -> Path:
    """The file, which lies in the folder that uploads come into. Raises: DataError for any other."""
    place = file.get("path") if isinstance(file, dict) else file
    try:
        # Links and `..` are followed first, so that none leads out of the folder.
        path = Path(place if isinstance(place, str) else "").resolve()
        if path.is_relative_to(context.cache.resolve()) and path.is_file():
            return path
    except (OSError, ValueError, RuntimeError):  # a NUL, too long, a link to itself
        pass
    raise DataError(say("api.no_upload", file=plain(place, _LONGEST_SHOWN)))


def chosen(names: Sequence[str], offered: Sequence[str] | dict[str, Any], what: str) -> list[str]:
    """The names, each once, all of which are offered. Raises: DataError naming those that aren't."""
    unknown = [name for name in names if name not in offered]
    if unknown:
        shown = ", ".join(plain(name, _LONGEST_SHOWN) for name in unknown[:5])
        raise DataError(say("api.not_here", what=what, names=shown, num=len(unknown)))
    return list(dict.fromkeys(names))
