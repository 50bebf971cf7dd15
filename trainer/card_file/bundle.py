"""A card's file: a zip of named members, none of them packed, that is the same byte for byte for the same content.

Nothing is unpacked, so nothing can grow: a file of 8 MiB holds 8 MiB at most. What is read is put together again and
compared with the file, so that no byte of it is anything but a member of a card.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from trainer.card_file.contents import MOST_SAMPLES
from trainer.errors import ConfigError
from trainer.printing import plain

SUFFIX = ".velatura"
IN_RUN = "card.velatura"  # the card that a run was started from, in its folder
CARD, SETTINGS, DIGEST = "card.toml", "settings.toml", "digest"
MAX_BYTES, MAX_TEXT_BYTES, MAX_PICTURE_BYTES = 8 << 20, 256 << 10, 256 << 10
_MOST_MEMBERS = MOST_SAMPLES + 3
_PICTURE = re.compile(r"samples/[0-9]{2}\.webp")
_BEGINS, _END = b"PK\x03\x04", struct.Struct("<4s4H2LH")
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, LookupError, OSError, RuntimeError, EOFError)


def is_card(path: Path) -> bool:
    """Whether a file is meant as a card: by its first member, or by its ending."""
    try:
        with path.open("rb") as file:
            head = file.read(30 + len(CARD))
    except OSError:
        return False
    return head.startswith(_BEGINS) and (head.endswith(CARD.encode()) or path.suffix.lower() == SUFFIX)


def digest(members: Mapping[str, bytes]) -> str:
    """sha256 of the content: of each member but the digest its name, its length and its bytes, in order of names."""
    state = hashlib.sha256()
    for name in sorted(members):
        if name != DIGEST:
            state.update(f"{name}\n{len(members[name])}\n".encode())
            state.update(members[name])
    return state.hexdigest()


# Writing.


def packed(members: Mapping[str, bytes]) -> bytes:
    """The file of these members and their digest. Raises: ConfigError for a member that is too large."""
    for name, content in members.items():
        most = MAX_PICTURE_BYTES if _PICTURE.fullmatch(name) else MAX_TEXT_BYTES
        if len(content) > most:
            raise ConfigError(f"{name} of the card would have {len(content):,} bytes; allowed: up to {most:,}.")
    raw = _zipped({**members, DIGEST: f"sha256:{digest(members)}\n".encode()})
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"the card would have {len(raw):,} bytes; allowed: up to {MAX_BYTES:,}. Leave samples out.")
    return raw


def _zipped(members: Mapping[str, bytes]) -> bytes:
    """The zip of these members in their one order, with nothing in it of when or where it was made."""
    first = [CARD, SETTINGS]
    order = [*first, *sorted(members.keys() - {*first, DIGEST}), DIGEST]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in order:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, members[name])
    return file.getvalue()


# Reading.


def unpacked(raw: bytes, where: str) -> dict[str, bytes]:
    """The members of a card's file, its digest checked and left out. Raises: ConfigError in words."""
    _check_directory(raw, where)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            for number, entry in enumerate(entries):
                if reason := _refusal(entry, [other.filename for other in entries[:number]]):
                    raise ConfigError(f"{where} is refused: {plain(entry.filename, 80)!r} {reason}.")
            members = {entry.filename: archive.read(entry) for entry in entries}
    except _DAMAGED as error:
        raise ConfigError(f"{where} is damaged: {plain(str(error) or type(error).__name__, 120)}.") from None

    # All that must be there, and nothing else.
    if missing := [name for name in (CARD, SETTINGS, DIGEST) if name not in members]:
        raise ConfigError(f"{where} is no card: it has no {' and no '.join(missing)}.")
    told = members[DIGEST].decode("ascii", "replace").strip()
    if told != f"sha256:{digest(members)}":
        raise ConfigError(f"{where} was changed after it was made: its content is not what its digest says.")
    if _zipped(members) != raw:
        raise ConfigError(f"{where} is refused: it holds bytes that are no part of a card.")
    del members[DIGEST]
    return members


def _check_directory(raw: bytes, where: str) -> None:
    """Raises: ConfigError unless the file ends with a plain zip's directory of a few members.

    That is looked at before anybody reads the directory, which may name a million members or lie anywhere.
    """
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{where} has {len(raw):,} bytes; allowed: up to {MAX_BYTES:,}.")
    if not raw.startswith(_BEGINS) or len(raw) < _END.size:
        raise ConfigError(f"{where} is no card: it is not a zip.")
    mark, *numbers, size, start, comment = _END.unpack(raw[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise ConfigError(f"{where} is damaged: it does not end as a card does.")
    if numbers[3] > _MOST_MEMBERS or size > _MOST_MEMBERS * 100:
        raise ConfigError(f"{where} has {numbers[3]} members; allowed: up to {_MOST_MEMBERS}.")
    if start + size != len(raw) - _END.size:
        raise ConfigError(f"{where} is damaged: its directory is not where it says.")


def _refusal(entry: zipfile.ZipInfo, before: list[str]) -> str:
    """Why a member is not read, as the end of a sentence; "" if it may be."""
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    if name in before:
        return "stands in it twice"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device, not a file"
    if name.startswith(("/", "\\")) or ".." in re.split(r"[\\/]", name) or ":" in name:
        return "names a place outside the card"
    if name not in (CARD, SETTINGS, DIGEST) and not _PICTURE.fullmatch(name):
        return f"is no part of a card; allowed: {CARD}, {SETTINGS}, {DIGEST}, samples/00.webp to samples/99.webp"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return "is packed; a card's members are stored as they are"
    most = MAX_PICTURE_BYTES if _PICTURE.fullmatch(name) else MAX_TEXT_BYTES
    return f"has {entry.file_size:,} bytes; allowed: up to {most:,}" if entry.file_size > most else ""
