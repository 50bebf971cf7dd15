"""API keys: what each may do, kept in a file as digests of the keys alone.

A key is 256 random bits, so a plain sha256 of it can't be guessed back, and no slow hash is needed. A key that comes is
compared with every digest in constant time. The file is read again when it has changed, so that a key can be added or
taken away while the server runs.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import Field

from trainer import files
from trainer.config import parse
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError, UserError
from trainer.schema import Settings

ANONYMOUS = "local"  # who asks a server that has no keys
_PREFIX = "vel-"
_MAX_FILE_BYTES = 4 << 20
_MAX_KEY_CHARS = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Key(Settings):
    """One key: its name, its digest, and what it may do."""

    name: Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0  # its share of the server where others wait too
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 600
    pictures_per_day: Annotated[int, Field(ge=0, le=1_000_000_000)] = 100_000
    upload_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    metrics: bool = False  # may read /metrics, which tells of all keys

    @property
    def owner(self) -> str:
        """Whose its uploads are, as the name of a folder: another key of the same name is another owner."""
        return digest(self.name + self.sha256)[:24]


class _File(Settings):
    """The file of keys."""

    version: Literal[1] = 1
    key: Annotated[tuple[Key, ...], Field(max_length=100_000)] = ()


LOCAL = Key(name=ANONYMOUS, requests_per_minute=1_000_000, pictures_per_day=1_000_000_000, metrics=True)


def digest(key: str) -> str:
    """The sha256 of a key, as the file has it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read(path: Path) -> list[Key]:
    """The keys in a file; none if there is no file. Raises: ConfigError."""
    try:
        if not path.exists():
            return []
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the keys in {str(path)!r} can't be read: {error.strerror}.") from None
    if len(raw) > _MAX_FILE_BYTES:
        raise ConfigError(f"the keys' file {str(path)!r} has more than {_MAX_FILE_BYTES} bytes.")
    keys = list(parse(_File, from_toml(raw, str(path)), str(path)).key)
    for what, values in (("name", [key.name for key in keys]), ("sha256", [key.sha256 for key in keys])):
        if twins := sorted({value for value in values if values.count(value) > 1}):
            raise ConfigError(f"{str(path)!r} has the {what} {twins[0]!r} twice; allowed: once.")
    if not all(key.sha256 for key in keys):
        raise ConfigError(f"{str(path)!r} has a key without sha256; make keys with `velatura serve keys add NAME`.")
    return keys


def add(path: Path, key: Key) -> str:
    """A new key's text, which is nowhere else: the file has its digest. Raises: ConfigError."""
    if not _NAME.fullmatch(key.name):
        raise ConfigError(
            f"the key's name is {key.name[:80]!r}; allowed: up to 64 letters, digits, '_', '.' and '-', the first a "
            f"letter or digit."
        )
    keys = read(path)
    if key.name in (ANONYMOUS, *(other.name for other in keys)):
        raise ConfigError(f"a key called {key.name!r} is there already; remove it first, or choose another name.")
    text = _PREFIX + secrets.token_urlsafe(32)
    write(path, [*keys, key.model_copy(update={"sha256": digest(text)})])
    return text


def remove(path: Path, name: str) -> None:
    """The key of that name is valid no more. Raises: ConfigError if there is none."""
    keys = read(path)
    left = [key for key in keys if key.name != name]
    if len(left) == len(keys):
        raise ConfigError(
            f"there is no key called {name[:80]!r} in {str(path)!r}; `velatura serve keys list` names them."
        )
    write(path, left)


def write(path: Path, keys: list[Key]) -> None:
    """The file with these keys, for its owner alone. Raises: ConfigError."""
    text = tomli_w.dumps(_File(key=tuple(keys)).model_dump())
    try:
        with files.replacing(path) as unfinished:
            unfinished.touch(mode=0o600)
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the keys can't be written to {str(path)!r}: {error.strerror}.") from None


class KeyRing:
    """The keys of a running server. For any thread."""

    def __init__(self, path: Path | None) -> None:
        """Without a path everybody is `LOCAL`. Raises: ConfigError for a file that can't be read or has no key."""
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._keys: list[Key] = []
        self._lock = threading.Lock()
        self.problem = ""  # why a changed file was not taken
        if path is not None:
            self._keys, self._stamp = read(path), _stamp(path)
            if not self._keys:
                raise ConfigError(
                    f"--keys is {str(path)!r}, which has no key; make one with `velatura serve keys add NAME`."
                )

    @property
    def all(self) -> list[Key]:
        """Everybody's."""
        return [LOCAL] if self.path is None else self._current()

    def of(self, authorization: str) -> Key | None:
        """Whose key an Authorization header has; None if it has none that is known."""
        if self.path is None:
            return LOCAL
        kind, _, text = authorization.strip().partition(" ")
        if kind.lower() != "bearer" or not 0 < len(text.strip()) <= _MAX_KEY_CHARS:
            return None
        wanted, whose = digest(text.strip()), None
        # All of them, so that the time tells nothing.
        for key in self._current():
            if hmac.compare_digest(key.sha256, wanted):
                whose = key
        return whose

    def _current(self) -> list[Key]:
        """The keys as the file has them now; a file that is damaged meanwhile changes nothing."""
        assert self.path is not None
        with self._lock:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._keys, self.problem = read(self.path), ""
                except UserError as error:
                    self.problem = str(error)
            return self._keys


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
