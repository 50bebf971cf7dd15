"""Find, load, override and save presets: TOML files of settings, never code.

A preset is named (`imprimatura-style`), or is a path to a TOML file, a run's `config.toml`, or a LoRA file of ours,
whose header carries its recipe.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w

from trainer import files, methods
from trainer.config import TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.config.refusals import shown
from trainer.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "presets" / "train"
MAX_PRESET_BYTES = 1 << 20


def names() -> list[str]:
    """Names of the presets that ship, sorted, those for the base that ships first: they run as they are."""
    return sorted((path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (not name.startswith("imprimatura"), name))


def title(name: str) -> str:
    """The preset's title for people."""
    return str(read_toml(FOLDER / f"{name}.toml").get("title", name))


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file. Raises: ConfigError if it is missing, too large or not TOML."""
    if not os.path.isfile(path):
        raise ConfigError(f"preset {str(path)!r} does not exist.")
    try:
        size = path.stat().st_size
        if size > MAX_PRESET_BYTES:
            raise ConfigError(f"preset {path} has {size} bytes; allowed: up to {MAX_PRESET_BYTES}.")
        return from_toml(path.read_bytes(), f"preset {path}")
    except OSError as error:
        raise ConfigError(f"preset {path} can't be read: {error.strerror}.") from None


def values(preset: str) -> dict[str, Any]:
    """The values a preset sets, by name or path, without its title. Raises: ConfigError naming what there is."""
    if preset in names():
        found = read_toml(FOLDER / f"{preset}.toml")
    elif preset.endswith(".safetensors"):
        found = _recipe_of(Path(preset))
    elif preset.endswith(".toml") or os.path.isfile(preset):
        found = read_toml(Path(preset))
    else:
        close = difflib.get_close_matches(preset, names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"preset {preset!r} is unknown.{hint} Allowed: {', '.join(names())}, or a path to a .toml or to a LoRA of ours.")
    found.pop("title", None)
    return found


def load(preset: str, overrides: dict[str, Any]) -> TrainConfig:
    """The config of a preset with overrides, which may be dotted (`adapter.rank`). Raises: ConfigError."""
    merged = values(preset)
    if preset.endswith(".safetensors"):
        _ask_for_places(merged, overrides, preset)
    _switch_method(merged, overrides.get("adapter.method"))
    for key, value in overrides.items():
        _put(merged, key, value)
    return parse(TrainConfig, merged, f"preset {preset}" + (" with --set" if overrides else ""))


def _ask_for_places(merged: dict[str, Any], overrides: dict[str, Any], preset: str) -> None:
    """Take the places out of a recipe, which travels without them. Raises: ConfigError naming those that must be given anew."""
    data, stack = (found if isinstance(found, dict) else {} for found in (merged.get("data"), merged.get("against")))  # others are refused later
    base = merged.get("base", "")
    places = {"data.regularisation": data.get("regularisation"), "data.mask_folder": data.get("mask_folder"), "against.adapters": stack.get("adapters")}
    if base != "imprimatura" and "/" not in str(base):  # a hub id has an owner
        places["base"] = base
    if missing := [f"{key} (it was {value!r})" for key, value in places.items() if value and key not in overrides]:
        raise ConfigError(f"{preset} was trained with what lies in places of its own; give with --set: {', '.join(missing)}.")
    if data:
        merged["data"] = {key: value for key, value in data.items() if key not in ("folder", "heldout")}


def _switch_method(merged: dict[str, Any], method: Any) -> None:
    """Leave out what a preset says of its own method where another is asked for: it was never meant for that one."""
    adapter, registry = merged.get("adapter"), methods.registry()
    if isinstance(method, str) and method in registry and isinstance(adapter, dict) and adapter.get("method") != method:
        fields = registry[method].Config.model_fields
        allowed = {key: get_args(field.annotation) if get_origin(field.annotation) is Literal else () for key, field in fields.items()}
        merged["adapter"] = {key: value for key, value in adapter.items() if key in fields and (not allowed[key] or value in allowed[key])}


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["adapter.rank=8"]` -> `{"adapter.rank": 8}`; a value is TOML if it reads as such, else text."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair[:80]!r} can't be read; write it as key=value, such as adapter.rank=16.")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            overrides[key.strip()] = text.strip()
    return overrides


def save(config: TrainConfig, path: Path) -> None:
    """The config as TOML, whole or not at all."""
    files.write(path, tomli_w.dumps(config.model_dump(mode="json")).encode())


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"{dotted[:80]} can't be set: {part[:80]} is {shown(branch)}, which has no settings below it.")
        tree = branch
    tree[last] = value


def _recipe_of(path: Path) -> dict[str, Any]:
    from trainer import lora_file

    recipe = lora_file.recipe_of(lora_file.read_header(path).metadata)
    if recipe is None:
        raise ConfigError(f"{path} carries no Velatura recipe; it was made by another tool or its header was stripped.")
    return dict(recipe["config"])
