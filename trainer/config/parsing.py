"""Text or values in, a checked config out; a config's digest; and the form in which settings travel."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from trainer import encodings
from trainer.config.refusals import explain, shown
from trainer.config.train import TrainConfig
from trainer.errors import ConfigError
from trainer.printing import printable
from trainer.schema import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

AnyConfig = TypeVar("AnyConfig", bound=Settings)
MAX_DEPTH = 24  # tables within tables
_REASON_CHARS = 200
# Settings that came later: they count where they are set, so that a run of an earlier version can go on.
_LATER = (("start", "source"), ("start", "optimizer"), ("optimizer", "extended"))


def parse(model: type[AnyConfig], values: Any, where: str) -> AnyConfig:
    """The config of plain values. Raises: ConfigError with the first five problems, each naming its field."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} holds {shown(values)}; allowed: a table of settings.")
    _refuse_keys(values, where)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, model, where) from None


def _refuse_keys(values: Any, where: str) -> None:
    """Raises: ConfigError for a key that is no text, and for tables that lie too deep."""
    # Not by recursion: values from outside may be nested deeper than Python can follow.
    open_tables = [(values, 0)]
    while open_tables:
        here, depth = open_tables.pop()
        if depth > MAX_DEPTH:
            raise ConfigError(f"{where} has tables within tables, more than {MAX_DEPTH} deep; no setting lies there.")
        for key in here if isinstance(here, dict) else ():
            if not isinstance(key, str) or any("\ud800" <= letter <= "\udfff" for letter in key):
                raise ConfigError(
                    f"{where} has a setting called {shown(key)}, which is no text; allowed: the name of a setting."
                )
        values_inside = here.values() if isinstance(here, dict) else here
        open_tables += [(value, depth + 1) for value in values_inside if isinstance(value, dict | list | tuple)]


def text_of(raw: bytes, where: str) -> str:
    """The text of a file as editors save it: UTF-8 with a BOM or without, or UTF-16 or UTF-32 with a BOM.

    Raises: ConfigError.
    """
    try:
        return encodings.text(raw)
    except ValueError as error:
        raise ConfigError(f"{where} is no text that can be read: it {error}; save it as UTF-8.") from None


def from_toml(raw: bytes | str, where: str) -> dict[str, Any]:
    """The values of a TOML file. Raises: ConfigError saying where it is none."""
    text = text_of(raw, where) if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
    try:
        values: dict[str, Any] = tomllib.loads(text)
        return values
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, and a number of too many digits
        raise ConfigError(f"{where} is not TOML: {_reason(error)}") from None


def from_json(raw: bytes | str, where: str) -> Any:
    """The value of a JSON file. Raises: ConfigError saying where it is none."""
    text = text_of(raw, where) if isinstance(raw, bytes) else raw.removeprefix("\ufeff")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return printable(str(error)[:_REASON_CHARS])


def digest(config: Settings) -> str:
    """sha256 of the settings as canonical JSON: equal settings, equal digest."""
    values = config.model_dump(mode="json")
    # Left out where they aren't set, so that a run of an earlier version keeps its digest.
    for section, key in _LATER:
        group = values.get(section)
        if isinstance(group, dict) and not group.get(key):
            group.pop(key, None)
            if not group:
                del values[section]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The settings as they travel in a file: folders by their last name only, as paths are nobody else's business."""
    values = config.model_dump(mode="json")
    # Folders and files by their last names.
    for key in ("folder", "heldout", "regularisation", "mask_folder"):
        values["data"][key] = Path(values["data"][key]).name
    values["against"]["adapters"] = [Path(line).name for line in values["against"]["adapters"]]
    values["start"]["source"] = short_name(config.start.source)
    # A folder of this machine; a hub id has a slash too and stays whole.
    if values["base"] not in ("", "imprimatura") and Path(values["base"]).is_dir():
        values["base"] = Path(values["base"]).name
    return values


def short_name(source: str) -> str:
    """What a run went on from without its place: a LoRA file's name, or RUN/step-000050 of a checkpoint."""
    path = Path(source)
    if not source or path.suffix == ".safetensors":
        return path.name

    # A checkpoint lies in RUN/checkpoints/step-000050.
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return f"{run.name}/{path.name}" if path.name.startswith("step-") else path.name
