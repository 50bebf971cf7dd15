"""The one gate for what a browser names: a path-valued setting becomes a file that this server offers, or is refused.

Which settings those are is said once, in their `Field` (`schema.setting(path=...)`); here is what each kind is looked
up among. A name is taken apart as whoever opens it takes it apart, then compared whole with what there is: nothing
is ever joined, expanded or looked for on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from app import masks, start_choices
from app.context import Context
from app.texts import say
from trainer import runs
from trainer.config import AdapterChoice, Settings
from trainer.errors import ConfigError, UserError
from trainer.printing import some
from trainer.schema import path_kind

AnyConfig = TypeVar("AnyConfig", bound=Settings)


def checked(context: Context, config: AnyConfig) -> AnyConfig:
    """The same settings with what they name found here.

    Raises: ConfigError, AdapterError with everything that this server does not offer.
    """
    problems: list[UserError] = []
    checked_config = _checked(context, config, "", problems)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(say("problems.many_gone", num=len(problems), problems=some(list(map(str, problems)), "; ")))
    return checked_config


def _checked(context: Context, config: AnyConfig, prefix: str, problems: list[UserError]) -> AnyConfig:
    """The same settings; what is not here goes to `problems`."""
    changes: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value, kind = getattr(config, name), path_kind(field)
        # All problems are gathered, to be reported at once.
        try:
            if not kind:
                changes[name] = _inside(context, value, f"{prefix}{name}", problems)
            elif kind != "lora" and value is not None:
                changes[name] = _KINDS[kind](context, f"{prefix}{name}", value)
        except UserError as error:
            problems.append(error)
    # A LoRA is given by three settings together.
    if isinstance(config, AdapterChoice):
        try:
            changes |= _lora(context, config)
        except UserError as error:
            problems.append(error)
    # Only what is different is set, so that a setting that was left out stays so.
    changes = {name: value for name, value in changes.items() if value != getattr(config, name)}
    return config.model_copy(update=changes) if changes else config


def _inside(context: Context, value: Any, label: str, problems: list[UserError]) -> Any:
    """Groups of settings, and lists of them, looked through too."""
    if isinstance(value, Settings):
        return _checked(context, value, f"{label}.", problems)
    if isinstance(value, tuple) and any(isinstance(inner, Settings | tuple) for inner in value):
        return tuple(_inside(context, inner, f"{label}.{number}", problems) for number, inner in enumerate(value))
    return value


def dataset(context: Context, label: str, value: str) -> str:
    """The folder of a dataset of this server, by its name. Raises: ConfigError."""
    if not value:
        return value
    names = context.dataset_names()
    matches = [name for name in names if value in (name, str(context.datasets / name))]
    if not matches:
        raise ConfigError(
            say("problems.no_dataset", label=label, value=value[:80], allowed=some(names) or say("word.none_yet"))
        )
    return str(context.datasets / matches[0])


def _loras(context: Context, label: str, lines: tuple[str, ...]) -> tuple[str, ...]:
    """Lines NAME:WEIGHT as FILE:WEIGHT, taken apart as `against_stack` takes them apart."""
    if not lines:
        return ()
    from trainer import against_stack  # loads torch

    files = []
    for line in lines:
        name, weight = against_stack.split(line)
        files.append(f"{named(context, name.strip(), label).path}:{weight}")
    return tuple(files)


def _mask(context: Context, label: str, value: str) -> str:
    """A region: everywhere, a box, a mask that the text itself holds, or a mask picture that was brought here."""
    text = value.strip()
    if not text or text.startswith(("box ", "mask data:")):
        return text
    name = text.removeprefix("mask ").strip()
    here = [mask for mask in masks.names(context) if name in (mask, str(context.masks / mask))]
    if not text.startswith("mask ") or not here:
        raise ConfigError(say("region.allowed", label=label, text=text[:80]))
    return f"mask {context.masks / here[0]}"


def _lora(context: Context, choice: AdapterChoice) -> dict[str, Any]:
    """What a chosen LoRA's settings become: its file here, by hash if one is given, else by name."""
    info = context.lora(choice.sha256) if choice.sha256 else named(context, choice.file, say("word.lora"))
    return {"file": str(info.path), "name": str(info.name), "sha256": info.sha256}


def named(context: Context, wanted: str, label: str) -> Any:
    """The LoRA of the library that is meant, by name, hash or as it lies there. Raises: ConfigError."""
    # A hash is of one LoRA; a name may be of several, and then none is guessed.
    plain = wanted.removesuffix(".safetensors")
    matches = [
        info
        for sha256, info in context.find_loras().items()
        if plain in (info.name, sha256) or wanted == str(info.path)
    ]
    if len(matches) != 1:
        names = sorted({str(info.name) for info in context.known_loras().values()})
        problem = say("stack.no_lora_named") if not matches else say("stack.many_named", num=len(matches))
        allowed = some(names) or say("word.none_yet")
        raise ConfigError(say("problems.no_lora", label=label, value=wanted[:80], problem=problem, allowed=allowed))
    return matches[0]


def _base(context: Context, label: str, value: str) -> str:
    return context.base(value)


def _run(context: Context, label: str, value: str) -> str:
    """A run of this server, by its name."""
    names = [run.name for run in runs.every(context.runs)]
    matches = [name for name in names if value in (name, str(context.runs / name))]
    if not matches:
        raise ConfigError(
            say("problems.no_run", label=label, value=value[:80], allowed=some(names) or say("word.none_yet"))
        )
    return str(context.runs / matches[0])


def _start(context: Context, label: str, value: str) -> str:
    """What a training goes on from: a run's checkpoint, as RUN/step-000050, or a LoRA of the library."""
    if not value:
        return value
    here = start_choices.checkpoints(context)
    matches = [path for key, path in here.items() if value in (key, str(path))]
    return str(matches[0] if matches else named(context, value, label).path)


_KINDS: dict[str, Callable[[Context, str, Any], Any]] = {
    "dataset": dataset,
    "loras": _loras,
    "base": _base,
    "mask": _mask,
    "run": _run,
    "start": _start,
}
