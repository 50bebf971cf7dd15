"""A card's file <-> what it says, checked whole: its container, its digest, its tables, its settings, its pictures."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from trainer import damaged_pictures
from trainer.card_file import bundle
from trainer.card_file.bundle import CARD, SETTINGS
from trainer.card_file.contents import Card
from trainer.card_file.migrating import migrated
from trainer.config import BatchConfig, StackConfig, TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError
from trainer.lazy import Image
from trainer.printing import plain

MAX_SIDE_PX = 512
Config = TrainConfig | StackConfig | BatchConfig
_KINDS: dict[str, type[Config]] = {"train": TrainConfig, "stack": StackConfig, "batch": BatchConfig}


@dataclass(frozen=True)
class Opened:
    """A card, its settings and its pictures, in the order of its samples."""

    card: Card
    settings: Config
    pictures: tuple[bytes, ...]
    digest: str  # sha256 of the content

    @property
    def train(self) -> TrainConfig:
        """The settings of a training. Raises: ConfigError for a card of another kind."""
        if not isinstance(self.settings, TrainConfig):
            raise ConfigError(f"the card {plain(self.card.title, 80)!r} is of a {self.card.kind}, not of a training.")
        return self.settings


# Writing.


def packed(card: Card, settings: Config, pictures: tuple[bytes, ...] = ()) -> bytes:
    """The card's file, which can be read. Raises: ConfigError for what is too large or doesn't hold together."""
    members = {
        CARD: _toml(card.model_dump(mode="json", exclude_none=True)),
        SETTINGS: _toml(settings.model_dump(mode="json", exclude_none=True)),
        **{sample.picture: picture for sample, picture in zip(card.samples, pictures, strict=True)},
    }
    raw = bundle.packed(members)
    opened(raw, "the card")  # whoever reads it is no kinder
    return raw


def _toml(values: dict[str, Any]) -> bytes:
    return tomli_w.dumps(_without_none(values)).encode()


def _without_none(value: Any) -> Any:
    """The same without what is None, which TOML can't say."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value


def webp(image: Any) -> bytes:
    """A picture as a card holds it: a plain lossy WebP of at most 512 px a side, with nothing beside its pixels."""
    small = image.convert("RGB")
    small.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=82, method=4)
    return file.getvalue()


# Reading.


def read(path: Path) -> Opened:
    """The card in a file. Raises: ConfigError saying what is wrong with it."""
    where = plain(path.name, 80)
    try:
        if not os.path.isfile(path):
            raise ConfigError(f"card {str(path)[:400]!r} does not exist.")
        size = path.stat().st_size
        if size > bundle.MAX_BYTES:
            raise ConfigError(f"{where} has {size:,} bytes; allowed: up to {bundle.MAX_BYTES:,}.")
        return opened(path.read_bytes(), where)
    except OSError as error:
        raise ConfigError(f"{where} can't be read: {error.strerror}.") from None


def opened(raw: bytes, where: str) -> Opened:
    """The card that these bytes are. Raises: ConfigError."""
    members = bundle.unpacked(raw, where)
    card = parse(Card, migrated(_table(members[CARD], f"{where}, {CARD}"), where), f"{where}, {CARD}")
    settings = parse(_KINDS[card.kind], _table(members[SETTINGS], f"{where}, {SETTINGS}"), f"{where}, {SETTINGS}")

    # A picture for each sample, and no other.
    named = [sample.picture for sample in card.samples]
    there = sorted(members.keys() - {CARD, SETTINGS})
    if sorted(named) != there:
        raise ConfigError(f"{where} names {len(named)} pictures and holds {len(there)}, or others; allowed: the same.")
    for name in named:
        if reason := _no_picture(members[name]):
            raise ConfigError(f"{where}: {name} {reason}.")
    return Opened(card, settings, tuple(members[name] for name in named), bundle.digest(members))


def _table(raw: bytes, where: str) -> dict[str, Any]:
    """The values of a member. Raises: ConfigError, also for text that isn't UTF-8."""
    try:
        return from_toml(raw.decode("utf-8"), where)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 (byte {error.start}).") from None


def _no_picture(raw: bytes) -> str:
    """Why these bytes are no picture of a card, as the end of a sentence; "" if they are one.

    Its size is read from the bytes themselves, before any decoder makes room for it.
    """
    is_plain = raw[:4] == b"RIFF" and raw[8:16] == b"WEBPVP8 " and raw[23:26] == b"\x9d\x01\x2a"
    if not is_plain or int.from_bytes(raw[4:8], "little") != len(raw) - 8:
        return "is no plain WebP picture"
    length = int.from_bytes(raw[16:20], "little")
    if length + length % 2 != len(raw) - 20:
        return "is no plain WebP picture"
    width, height = (int.from_bytes(raw[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if max(width, height) > MAX_SIDE_PX:
        return f"has {width} x {height} pixels; allowed: up to {MAX_SIDE_PX} a side"
    try:
        Image.open(io.BytesIO(raw), formats=["WEBP"]).load()
    except damaged_pictures.errors() as error:
        return f"is no picture that opens: {plain(error, 100)}"
    return ""
