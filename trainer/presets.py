"""Find, load, override and save presets: TOML files of settings, never code.

A preset is named (`imprimatura-style`, or with a tier `sdxl-style@12gb`), or is a path to a TOML file, a run's
`config.toml`, a card, or a LoRA file of ours, whose header carries its recipe. Those that ship lie in `presets/train`,
the user's own in `presets` of the data folder (`model_registry.home`).
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tomli_w

from trainer import card_file, files, methods, model_registry, preset_parts, preset_tiers, unique_names
from trainer.config import TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.config.refusals import shown
from trainer.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, by its name on 3.10
    import tomli as tomllib

FOLDER = preset_parts.FOLDER
MAX_PRESET_BYTES = 1 << 20
_TITLE = re.compile(r"^title[ \t]*=.*(?:\n|\Z)", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


# Where presets lie.


def names() -> list[str]:
    """Names of the presets: those that ship, then the user's own that can be read, each sorted.

    The first are for the base that ships: they run as they are.
    """
    shipped = sorted(
        (path.stem for path in FOLDER.glob("*.toml")), key=lambda name: (not name.startswith("imprimatura"), name)
    )
    return shipped + [name for name, problem in own().items() if not problem]


def own() -> dict[str, str]:
    """The user's own presets, sorted, each with why it can't be used: "" if it can."""
    found: dict[str, str] = {}
    for path in sorted(own_folder().glob("*.toml")):
        if (FOLDER / path.name).is_file() or not _NAME.fullmatch(path.stem):
            continue
        with suppress(FileNotFoundError):  # taken away meanwhile
            status = path.stat()
            found[path.stem] = _problem(path, status.st_mtime_ns, status.st_size)
    return found


def own_folder() -> Path:
    """Where the user's own presets lie."""
    return model_registry.home() / "presets"


def has(name: str) -> bool:
    """Whether a name is a preset's, or a tier's of a preset."""
    plain, tier = preset_tiers.split(name)
    return plain in names() and (preset_tiers.MARK not in name or tier in (*preset_tiers.of(name), preset_tiers.AUTO))


def path_of(name: str) -> Path:
    """The file of a preset by its name, with a tier or without, whether it is there or not."""
    plain, _ = preset_tiers.split(name)
    shipped = FOLDER / f"{plain}.toml"
    return shipped if shipped.is_file() else own_folder() / f"{plain}.toml"


def title(name: str) -> str:
    """The preset's title for people."""
    said = str(read_toml(path_of(name)).get("title", name))
    tier = preset_tiers.chosen(name)
    return f"{said} · {tier.title}" if tier else said


def add(name: str, text: str) -> Path:
    """The TOML text as a preset of the user's own; where the name is taken it gets a number. Its file.

    Raises: ConfigError if the name can't be one, or the text isn't a preset.
    """
    wanted = _wanted(name)
    settings = from_toml(text.encode(), f"preset {name}")
    settings.pop("title", None)
    parse(TrainConfig, settings, f"preset {name}")
    with unique_names.temporary(own_folder(), ".tmp") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
        return unique_names.put(unfinished, wanted)


def free_name(name: str) -> str:
    """The name that `add` gives a preset if it is called now. Raises: ConfigError if it can't be a name."""
    return next(path.stem for path in _wanted(name) if not os.path.lexists(path))


def _wanted(name: str) -> Iterator[Path]:
    """The files that a preset may have, by its name and then with numbers, but for names of those that ship.

    Raises: ConfigError if the name can't be one.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name is {name[:80]!r}; allowed: a small letter or a digit, then up to 63 of a-z, 0-9, dots, - and _."
        )
    taken = {path.stem for path in FOLDER.glob("*.toml")}
    return (path for path in unique_names.numbered(own_folder(), name, ".toml") if path.stem not in taken)


def retitle(name: str, title: str) -> None:
    """Give a preset of the user's own another title; its comments and settings stay. Raises: ConfigError."""
    path = own_folder() / f"{name}.toml"
    before = read_toml(path)
    text, line = path.read_text(encoding="utf-8"), tomli_w.dumps({"title": title})
    top, table, rest = re.match(r"(?s)(.*?)((?:^\[)|\Z)(.*)", text, re.MULTILINE).groups()  # type: ignore[union-attr]
    top = _TITLE.sub(lambda _: line, top, count=1) if _TITLE.search(top) else f"{top.rstrip()}\n{line}"
    if from_toml((top + table + rest).encode(), f"preset {name}") != before | {"title": title}:
        raise ConfigError(f"the title in {path.name} can't be changed here; write it into the file.")
    files.write(path, (top + table + rest).encode())


@lru_cache(maxsize=1024)
def _problem(path: Path, changed_ns: int, size_bytes: int) -> str:
    """Why a preset's file can't be used, "" if it can; the file is asked for anew when it was changed."""
    try:
        settings = read_toml(path)
        settings.pop("title", None)
        parse(TrainConfig, settings, f"preset {path.stem}")
    except ConfigError as error:
        return str(error)
    return ""


# Reading presets.


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
    plain, _ = preset_tiers.split(preset)
    if plain in names():
        settings, tier = _in_file(path_of(plain)), preset_tiers.chosen(preset)
        settings = preset_tiers.changed(settings, tier) if tier else settings
    elif preset.endswith(".safetensors"):
        settings = _recipe_of(Path(preset))
    elif _is_card(preset):
        settings = card_file.read(Path(preset)).train.model_dump(mode="json")
    elif preset.endswith(".toml") or os.path.isfile(preset):
        settings = _in_file(Path(preset))
    else:
        close = difflib.get_close_matches(preset, names(), n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"preset {preset!r} is unknown.{hint} Allowed: {', '.join(names())}, or a path to a .toml or to a LoRA of "
            f"ours."
        )
    settings.pop("title", None)
    return settings


def _in_file(path: Path) -> dict[str, Any]:
    settings = read_toml(path)
    return settings if preset_parts.is_whole(path) else preset_parts.whole(path, settings)


# Overriding them.


def load(preset: str, overrides: dict[str, Any]) -> TrainConfig:
    """The config of a preset with overrides, which may be dotted (`adapter.rank`). Raises: ConfigError."""
    # The preset, its places if it is a LoRA's recipe, and then every override in turn.
    merged = values(preset)
    if preset.endswith(".safetensors") or _is_card(preset):
        _ask_for_places(merged, overrides, preset)
    _switch_method(merged, overrides.get("adapter.method"))
    for key, value in overrides.items():
        _put(merged, key, value)
    return parse(TrainConfig, merged, f"preset {preset}" + (" with --set" if overrides else ""))


def changed(config: TrainConfig, overrides: dict[str, Any]) -> TrainConfig:
    """The settings, those under dotted names changed. Raises: ConfigError."""
    values = config.model_dump(mode="json")
    for key, value in overrides.items():
        _put(values, key, value)
    return parse(TrainConfig, values, "the settings")


def _is_card(preset: str) -> bool:
    """Whether a preset is a card's file, and none of that name is kept."""
    return preset.endswith(card_file.SUFFIX) or os.path.isfile(preset) and card_file.is_card(Path(preset))


def _ask_for_places(merged: dict[str, Any], overrides: dict[str, Any], preset: str) -> None:
    """Take the places out of a recipe, which travels without them.

    Raises: ConfigError naming those that must be given anew.
    """
    # Sections that are no tables are refused later, when all is parsed.
    sections = (merged.get("data"), merged.get("against"), merged.get("start"))
    data, stack, start = (section if isinstance(section, dict) else {} for section in sections)
    base = merged.get("base", "")
    places = {
        "data.regularisation": data.get("regularisation"),
        "data.mask_folder": data.get("mask_folder"),
        "against.adapters": stack.get("adapters"),
        "start.source": start.get("source"),
    }
    if base != "imprimatura" and "/" not in str(base):  # a hub id has an owner
        places["base"] = base

    # The dataset's own folder is asked for anyway; these would be forgotten.
    if missing := [f"{key} (it was {value!r})" for key, value in places.items() if value and key not in overrides]:
        raise ConfigError(
            f"{preset} was trained with what lies in places of its own; give with --set: {', '.join(missing)}."
        )
    if data:
        merged["data"] = {key: value for key, value in data.items() if key not in ("folder", "heldout")}


def _switch_method(merged: dict[str, Any], method: Any) -> None:
    """Leave out what a preset says of its own method where another is asked for: it was never meant for the other."""
    adapter, registry = merged.get("adapter"), methods.registry()
    if not isinstance(method, str) or method not in registry or not isinstance(adapter, dict):
        return  # refused when all is parsed
    if adapter.get("method") == method:
        return
    # What the other method has too stays, such as the rank, unless its value is a word that this method doesn't know.
    fields = registry[method].Config.model_fields
    allowed = {
        key: get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for key, field in fields.items()
    }
    merged["adapter"] = {
        key: value for key, value in adapter.items() if key in fields and (not allowed[key] or value in allowed[key])
    }


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`["adapter.rank=8"]` -> `{"adapter.rank": 8}`; a value is TOML if it reads as such, else text."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {pair[:80]!r} can't be read; write it as key=value, such as adapter.rank=16.")
        try:
            overrides[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):  # text without quotes, which a shell takes away
            overrides[key.strip()] = text.strip()
    return overrides


# Saving.


def save(config: TrainConfig, path: Path) -> None:
    """The config as TOML, whole or not at all."""
    files.write(path, tomli_w.dumps(config.model_dump(mode="json")).encode())


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a dotted key in nested tables. Raises: ConfigError."""
    # Tables that the preset lacks are made on the way.
    *parents, last = dotted.split(".")
    for part in parents:
        branch = tree.setdefault(part, {})
        if not isinstance(branch, dict):
            raise ConfigError(
                f"{dotted[:80]} can't be set: {part[:80]} is {shown(branch)}, which has no settings below it."
            )
        tree = branch
    tree[last] = value


def _recipe_of(path: Path) -> dict[str, Any]:
    """The settings that a LoRA of ours was trained with. Raises: ConfigError, AdapterError."""
    from trainer import lora_file

    recipe = lora_file.recipe_of(lora_file.read_header(path).metadata)
    if recipe is None:
        raise ConfigError(f"{path} carries no Velatura recipe; it was made by another tool or its header was stripped.")
    return dict(recipe["config"])
