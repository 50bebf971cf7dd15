"""Base models under names of one's own: `models.toml` in the user's data folder.

Beside it lie the folders that single files were laid out as. The data folder is `VELATURA_HOME`, else
`$XDG_DATA_HOME/velatura`, else `~/.local/share/velatura`: names hold wherever a command is started, unlike `outputs/`,
which belongs to the folder one works in. A name stands for a path; the file's sha256 is kept with its size and time of
change, so that it is read whole again only after it was changed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock

from trainer import files
from trainer.errors import ConfigError, ModelError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """A registered base."""

    name: str
    path: str
    family: str
    sha256: str = ""  # of a file; a folder has none
    size_bytes: int = 0
    changed_ns: int = 0
    added: str = ""
    like: str = ""
    prediction: str = ""
    parts: dict[str, str] = field(default_factory=dict)


# Where things lie.


def home() -> Path:
    """The user's data folder."""
    if own := os.environ.get("VELATURA_HOME"):
        return Path(own)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "velatura"


def shelf() -> Path:
    """Where single files lie as folders."""
    return home() / "models"


# The file of entries.


def entries() -> dict[str, Entry]:
    """Every registered base by name. Raises: ConfigError if the file was damaged."""
    path = home() / "models.toml"
    if not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))["models"]
        return {name: _entry(name, table) for name, table in tables.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} can't be read: {str(error)[:200]}; mend it, or delete it and add the models again."
        ) from None


def _entry(name: str, table: dict[str, Any]) -> Entry:
    """The entry that a table holds. Raises: TypeError for what an entry hasn't, or has as another kind of value."""
    entry = Entry(name=name, **table)
    texts = [entry.path, entry.family, entry.sha256, entry.added, entry.like, entry.prediction, *entry.parts.values()]
    are_texts = all(isinstance(text, str) and "\0" not in text for text in texts)
    if not are_texts or not type(entry.size_bytes) is type(entry.changed_ns) is int:
        raise TypeError(f"{name} has a value of another kind than was written")
    return entry


def save(entry: Entry) -> None:
    """Put an entry in, in place of one of that name. Raises: ConfigError."""
    if not _NAME.fullmatch(entry.name) or entry.name == "imprimatura":
        raise ConfigError(
            f"--name is {entry.name!r}; allowed: letters, digits, dots, dashes and underscores, 64 at most, and not "
            f"imprimatura."
        )
    home().mkdir(parents=True, exist_ok=True)
    with FileLock(str(home() / "models.toml.lock")):
        _write(entries() | {entry.name: entry})


def _write(models: dict[str, Entry]) -> None:
    """Write all entries; what is empty is left out."""
    tables = {
        name: {key: value for key, value in vars(entry).items() if key != "name" and value not in ("", 0, {})}
        for name, entry in models.items()
    }
    files.write(home() / "models.toml", tomli_w.dumps({"models": tables}).encode())


# Entries and files.


def of_path(path: Path) -> Entry | None:
    """The entry of a file, if it is registered."""
    wanted = str(path.resolve())
    return next((entry for entry in entries().values() if entry.path == wanted), None)


def digest(path: Path, sha256: Callable[[Path], str]) -> str:
    """sha256 of a file: as registered if it hasn't changed since, else read."""
    entry, state = of_path(path), path.stat()
    if entry and (entry.size_bytes, entry.changed_ns) == (state.st_size, state.st_mtime_ns):
        return entry.sha256
    return sha256(path)


def there(entry: Entry, sha256: Callable[[Path], str]) -> Path:
    """Where a registered base is. Raises: ModelError if it is gone."""
    path = Path(entry.path)
    if os.path.exists(path):  # pathlib's own raises for a name that is too long
        return path

    # A file that was renamed within its folder is found by its size, and then by its hash, which takes a while.
    if entry.sha256 and os.path.isdir(path.parent):
        for other in sorted(path.parent.glob("*.safetensors")):
            if other.stat().st_size == entry.size_bytes and sha256(other) == entry.sha256:
                save(Entry(**{**vars(entry), "path": str(other.resolve()), "changed_ns": other.stat().st_mtime_ns}))
                return other
    raise ModelError(
        f"base {entry.name[:80]!r} was {entry.path[:400]}, which is gone; say where it is now: velatura models add "
        f"NEWPATH --name {entry.name[:80]}."
    )


def new(name: str, path: Path, family: str, **more: Any) -> Entry:
    """An entry made now."""
    state, is_file = path.stat(), path.is_file()
    return Entry(
        name,
        str(path.resolve()),
        family,
        added=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        size_bytes=state.st_size if is_file else 0,
        changed_ns=state.st_mtime_ns if is_file else 0,
        **more,
    )
