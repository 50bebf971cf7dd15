"""A file from outside -> its values, whatever it is called: a LoRA's header, JSON, command lines, TOML or YAML.

Only the file that was passed is opened, and a file that it names where one of that name lies in the same folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer import encodings, lora_file
from trainer.config.parsing import from_json, from_toml
from trainer.errors import ConfigError
from trainer.other_trainers import command_lines, yaml_text

MAX_BYTES = 1 << 20
MAX_KEYS, MAX_DEPTH = 4000, 12
_NAME = re.compile(r"[^\\/:\x00-\x1f]{1,200}\Z")


@dataclass(frozen=True)
class Document:
    """What a file holds."""

    path: Path
    kind: Literal["header", "json", "command", "toml", "yaml"]
    values: Any  # a table or a list; of a command, its options by name
    command: str = ""  # the script that a command starts
    text: str = field(default="", repr=False)


def read(path: Path) -> Document:
    """The document in a file. Raises: ConfigError if it can't be read or is none of these."""
    if not os.path.isfile(path):
        raise ConfigError(f"recipe {str(path)!r} does not exist, or is no file.")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"recipe {path} can't be read: {error.strerror}.") from None
    # A safetensors file: its header's length as 8 bytes, little-endian, then the header, which is JSON.
    if raw[8:9] == b"{" and int.from_bytes(raw[:8], "little") < path.stat().st_size:
        return Document(path, "header", _header(path))
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"recipe {path} has more than {MAX_BYTES} bytes; no recipe is so large.")
    return _parsed(path, raw)


def _parsed(path: Path, raw: bytes) -> Document:
    """The same of a text file's bytes."""
    try:
        text = encodings.text(raw)
    except ValueError as error:
        raise ConfigError(f"recipe {path} is no text that can be read: it {error}.") from None
    # A bracket may also open a table of TOML, so a list that is no JSON is no fault yet.
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start in ("{", "["):
        try:
            return Document(path, "json", from_json(text, f"recipe {path}"), text=text)
        except ConfigError:
            if start == "{":
                raise

    # Commands before TOML and YAML: almost any text is YAML.
    if command := command_lines.first(text):
        options = command_lines.options(command)
        if not options:
            raise ConfigError(
                f"recipe {path} starts {command.script} and gives it no option; give the whole command, with a "
                f"backslash at the end of each line but the last."
            )
        return Document(path, "command", options, command.script, text)
    return _table(path, text)


def _table(path: Path, text: str) -> Document:
    """TOML, else YAML; where it is neither, the TOML's fault is told if it looks like TOML."""
    try:
        return Document(path, "toml", from_toml(text, f"recipe {path}"), text=text)
    except ConfigError as error:
        try:
            values = yaml_text.values(text)
        except ValueError as yaml_error:
            if re.search(r"^\s*[\w.\"-]+\s*=", text, re.MULTILINE):
                raise error from None
            raise ConfigError(f"recipe {path} can't be read: {yaml_error}.") from None
        if not isinstance(values, dict | list):
            raise ConfigError(f"recipe {path} holds no settings; it is none of the formats that are known.") from None
        return Document(path, "yaml", values, text=text)


def _header(path: Path) -> dict[str, str]:
    return dict(lora_file.read_header(path).metadata)


def beside(document: Document, name: str) -> Document | None:
    """The file of a name, without its folder, beside a document; None if there is none or it can't be read."""
    # The last part of the name alone, and no link: a recipe mustn't lead out of its folder.
    last = name.replace("\\", "/").rpartition("/")[2]
    path = document.path.parent / last
    if not _NAME.match(last) or last in (".", "..") or path == document.path:
        return None
    if not os.path.isfile(path) or os.path.islink(path):
        return None
    try:
        return read(path)
    except ConfigError:
        return None


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists of tables get their places: `datasets[0].batch_size`.

    Raises: ConfigError for more or deeper keys than any recipe has.
    """
    flat: dict[str, Any] = {}
    open_tables = [(prefix, values, 0)]
    while open_tables:
        name, value, depth = open_tables.pop()
        if depth > MAX_DEPTH or len(flat) + len(open_tables) > MAX_KEYS:
            raise ConfigError(f"the recipe has more than {MAX_KEYS} keys, or keys more than {MAX_DEPTH} deep.")
        # Reversed, as the last is taken first: keys keep the order of the file.
        if isinstance(value, dict) and value:
            items = [(f"{name}.{key}" if name else str(key), inner, depth + 1) for key, inner in value.items()]
            open_tables += reversed(items)
        elif isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            open_tables += reversed([(f"{name}[{place}]", entry, depth + 1) for place, entry in enumerate(value)])
        elif name:  # an empty document has no keys
            flat[name] = value
    return flat
