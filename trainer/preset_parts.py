"""Presets that ship, put together: what a base takes and what a purpose takes is each said once, in `presets/parts`.

A file in `presets/train` names its parts (`parts = ["sdxl", "style"]`) and says what only it has; a later one counts.
Each value says where it comes from, in a comment on its line: `source: ...`. The user's own presets and what is shared
have no parts: they stand alone.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from trainer.card_file.contents import DatasetKind
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError

KINDS: tuple[DatasetKind, ...] = get_args(DatasetKind)  # what pictures a preset may be for
_ROOT = Path(__file__).parents[1] / "presets"
FOLDER, PARTS = _ROOT / "train", _ROOT / "parts"
_PRESET = re.compile(r"[a-z0-9-]{1,64}(@[a-z0-9]{1,16})?")
_NAME = re.compile(r"[a-z0-9]{1,40}")
_TABLE = re.compile(r"\[([a-z_]+)\]")
_VALUE = re.compile(r"([a-z_]+) *= ")
_MARK = "source: "


def is_whole(path: Path) -> bool:
    """False for a file that may name parts: one of those that ship."""
    return path.resolve().parent != FOLDER.resolve()


def whole(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a preset that ships, its parts' among them. Raises: ConfigError for a part that isn't there."""
    merged: dict[str, Any] = {}
    for part in [*_parts(path, values), {key: value for key, value in values.items() if key != "parts"}]:
        for key, value in part.items():
            merged[key] = merged.get(key, {}) | value if isinstance(value, dict) else value
    return merged


def _parts(path: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    return [from_toml(one.read_bytes(), f"part {one.stem}") for one in files_of(path, values)]


def purpose(preset: str) -> DatasetKind:
    """What pictures a preset that ships is for, by the part it is put together of; unknown for any other."""
    if not _PRESET.fullmatch(preset):
        return "unknown"
    path = FOLDER / f"{preset.partition('@')[0]}.toml"
    parts = from_toml(path.read_bytes(), preset).get("parts", []) if path.is_file() else []
    return next((kind for kind in KINDS if kind in parts), "unknown")


def files_of(path: Path, values: dict[str, Any]) -> list[Path]:
    """The files of the parts that a preset's values name, in their order. Raises: ConfigError."""
    names, found = values.get("parts", []), []
    for name in names if isinstance(names, list) else [names]:
        part = PARTS / f"{name}.toml"
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not part.is_file():
            allowed = ", ".join(sorted(one.stem for one in PARTS.glob("*.toml")))
            raise ConfigError(f"parts of {path.stem} has {str(name)[:80]!r}; allowed: {allowed}.")
        found.append(part)
    return found


def sources(path: Path) -> dict[str, str]:
    """Where each value of a preset that ships comes from, by its dotted name; "" for a preset that doesn't say."""
    values = from_toml(path.read_bytes(), f"preset {path.stem}")
    found: dict[str, str] = {}
    for one in [*files_of(path, values), path]:
        found |= _said(one, one.stat().st_mtime_ns)
    return found


@lru_cache(maxsize=256)
def _said(path: Path, _changed_ns: int) -> dict[str, str]:
    """The sources in one file: a value a line, its table above it."""
    found, table = dict[str, str](), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if head := _TABLE.match(line):
            table = f"{head[1]}."
        elif value := _VALUE.match(line):
            found[f"{table}{value[1]}"] = line.partition(_MARK)[2].strip()
    return found
