"""The base of every settings model, and how a field says its label, help and bounds once for the CLI, UI and docs."""

from __future__ import annotations

import difflib
from typing import Any, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from trainer.errors import ConfigError

_NONE = FieldInfo(annotation=None)


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def setting(default: Any, label: str, help: str, *, advanced: bool = False, **bounds: Any) -> Any:
    """A pydantic field with its label and help; `advanced` ones are folded away in the UI.

    `bounds` are pydantic's own (`ge`, `le`, `gt`, `max_length`, `multiple_of`), forwarded whole.
    """
    return Field(default, title=label, description=help, json_schema_extra={"advanced": advanced}, **bounds)


def explain(error: pydantic.ValidationError, model: type[BaseModel], where: str) -> ConfigError:
    """The same problems in words: field, what was found, what is allowed; all of them in one message."""
    lines = [f"  {_explain_one(dict(problem), model)}" for problem in error.errors(include_url=False)]
    return ConfigError(f"{len(lines)} setting{'s' if len(lines) > 1 else ''} in {where} can't be used:\n" + "\n".join(lines))


def _explain_one(problem: dict[str, Any], model: type[BaseModel]) -> str:
    if problem["type"] == "value_error":  # our own validators write whole sentences
        return str(problem["msg"]).removeprefix("Value error, ")
    keys, parent = _walk(problem["loc"], model)
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        prefix = "".join(f"{key}." for key in keys[:-1])
        close = difflib.get_close_matches(keys[-1], parent, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else "."
        return f"{name} (found {problem['input']!r}) is not a setting{hint} Allowed: {', '.join(prefix + key for key in parent)}."
    if problem["type"] == "missing":
        return f"{name} is not set; it must be."
    message = str(problem["msg"]).removeprefix("Input should be ")
    return f"{name} is {problem['input']!r}; allowed: {message}."


def _walk(path: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], list[str]]:
    """Keys as a preset spells them, and those allowed beside the last one.

    pydantic puts the tag of a discriminated union into the path, which is no key of a preset.
    """
    keys: list[str] = []
    here: Any = model
    for part in map(str, path):
        tagged = [kind for kind in get_args(here) if part in get_args(getattr(kind, "model_fields", {}).get("method", _NONE).annotation)]
        if tagged:
            here = tagged[0]
            continue
        keys.append(part)
        parent, here = here, here.model_fields[part].annotation if part in getattr(here, "model_fields", {}) else None
    return keys, list(getattr(parent, "model_fields", {}))
