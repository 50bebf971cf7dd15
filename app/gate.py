"""The one gate for what a browser names: every path-valued setting becomes a file that this server offers, or is refused.

Which settings those are is said once, in their `Field` (`schema.setting(path=...)`); here is what each kind is looked up among. A name is taken
apart as the one who opens it takes it apart, then compared whole with what there is: nothing is ever joined, expanded or looked for on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from app.context import Context
from trainer.config import AdapterChoice, Settings
from trainer.errors import ConfigError, UserError
from trainer.printing import some
from trainer.schema import path_kind

AnyConfig = TypeVar("AnyConfig", bound=Settings)


def checked(context: Context, config: AnyConfig) -> AnyConfig:
    """The same settings with what they name found here. Raises: ConfigError, AdapterError with everything that this server does not offer."""
    problems: list[UserError] = []
    found = _checked(context, config, "", problems)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(f"{len(problems)} settings name what is not here: {some(list(map(str, problems)), '; ')}")
    return found


def _checked(context: Context, config: AnyConfig, prefix: str, problems: list[UserError]) -> AnyConfig:
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value, kind = getattr(config, name), path_kind(field)
        try:
            if not kind:
                changes[name] = _inside(context, value, f"{prefix}{name}", problems)
            elif kind != "lora" and value is not None:
                changes[name] = _KINDS[kind](context, f"{prefix}{name}", value)
        except UserError as error:
            problems.append(error)
    if isinstance(config, AdapterChoice):
        try:
            changes |= _lora(context, config)
        except UserError as error:
            problems.append(error)
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}  # what was left out stays so
    return config.model_copy(update=changes) if changes else config


def _inside(context: Context, value: Any, label: str, problems: list[UserError]) -> Any:
    """Groups of settings, and lists of them, looked through too."""
    if isinstance(value, Settings):
        return _checked(context, value, f"{label}.", problems)
    if isinstance(value, tuple) and any(isinstance(one, Settings | tuple) for one in value):
        return tuple(_inside(context, one, f"{label}.{number}", problems) for number, one in enumerate(value))
    return value


def dataset(context: Context, label: str, value: str) -> str:
    """The folder of a dataset of this server, by its name. Raises: ConfigError."""
    if not value:
        return value
    names = context.dataset_names()
    found = [name for name in names if value in (name, str(context.datasets / name))]
    if not found:
        raise ConfigError(f"{label} is {value[:80]!r}, which is no dataset of this server; allowed: {some(names) or 'none yet'}.")
    return str(context.datasets / found[0])


def _loras(context: Context, label: str, lines: tuple[str, ...]) -> tuple[str, ...]:
    """Lines NAME:WEIGHT as FILE:WEIGHT, taken apart as `against_stack` takes them apart."""
    from trainer import against_stack  # loads torch

    found = []
    for line in lines:
        name, weight = against_stack.split(line)
        found.append(f"{named(context, name.strip(), label).path}:{weight}")
    return tuple(found)


def _mask(context: Context, label: str, value: str) -> str:
    """A region that opens no file: everywhere, a box, or a mask that the text itself holds."""
    text = value.strip()
    if text and not text.startswith(("box ", "mask data:")):
        raise ConfigError(f"{label} is {text[:80]!r}; allowed on the page: 'box LEFT TOP RIGHT BOTTOM', no file of the server's.")
    return text


def _lora(context: Context, one: AdapterChoice) -> dict[str, Any]:
    info = context.lora(one.sha256) if one.sha256 else named(context, one.file, "LoRA")
    return {"file": str(info.path), "name": str(info.name), "sha256": info.sha256}


def named(context: Context, wanted: str, label: str) -> Any:
    """The LoRA of the library that is meant, by name, hash or as it lies there. Raises: ConfigError."""
    plain = wanted.removesuffix(".safetensors")
    found = [info for sha256, info in context.find_loras().items() if plain in (info.name, sha256) or wanted == str(info.path)]
    if len(found) != 1:
        names = sorted({str(info.name) for info in context.known_loras().values()})
        problem = "no LoRA of the library has that name" if not found else f"{len(found)} LoRAs have that name; give the hash of one"
        raise ConfigError(f"{label} is {wanted[:80]!r}: {problem}; allowed: {some(names) or 'none yet'}.")
    return found[0]


def _base(context: Context, label: str, value: str) -> str:
    return context.base(value)


_KINDS: dict[str, Callable[[Context, str, Any], Any]] = {"dataset": dataset, "loras": _loras, "base": _base, "mask": _mask}
