"""Cards that mean harm: each is refused in words, quickly, and nothing outside is read or written."""

from __future__ import annotations

import io
import random
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import test_fuzz
from tests.doors_cards import card_values, good_members, picture, zipped
from trainer import card_file, presets
from trainer.card_file import bundle, reading
from trainer.card_file.contents import Card
from trainer.cards import keeping
from trainer.errors import ConfigError

GOOD = good_members()[0]
LISTED = [*GOOD.items(), ("digest", f"sha256:{bundle.digest(GOOD)}\n".encode())]


def rezipped(change: Callable[[zipfile.ZipFile], None]) -> bytes:
    """A good card's members in a zip, and what `change` puts in beside them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in LISTED:
            archive.writestr(name, content)
        change(archive)
    return file.getvalue()


def link(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("samples/01.webp")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(entry, "/etc/passwd")


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr(zipfile.ZipInfo("samples/01.webp"), bytes(1 << 26), zipfile.ZIP_DEFLATED)


def settings_of(text: str) -> bytes:
    return bundle.packed({**GOOD, "settings.toml": text.encode()})


def card_of(**changes: Any) -> bytes:
    values = card_values(**changes)
    return bundle.packed({**GOOD, "card.toml": presets.tomli_w.dumps(values).encode()})


def sample_of(content: bytes) -> bytes:
    return bundle.packed({**GOOD, "samples/00.webp": content})


def encoded(size: tuple[int, int], kind: str = "WEBP", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind, **options)
    return file.getvalue()


def wide() -> bytes:
    """A picture that says it has 16,383 pixels a side."""
    raw = bytearray(picture())
    raw[26:30] = b"\xff\x3f\xff\x3f"
    return bytes(raw)


HOSTILE = {
    "empty": (b"", "it is not a zip"),
    "text": (b"hello" * 99, "it is not a zip"),
    "cut short": (zipped(LISTED)[:-30], "does not end as a card does"),
    "a comment": (zipped(LISTED)[:-2] + b"\x02\0hi", "does not end as a card does"),
    "bytes before": (b"PK\x03\x04" + zipped(LISTED), "its directory is not where it says"),
    "nested zip": (zipped([*LISTED, ("more.zip", zipped(LISTED))]), "'more.zip' is no part of a card"),
    "code": (zipped([*LISTED, ("run.py", b"print()")]), "'run.py' is no part of a card"),
    "outside": (zipped([*LISTED, ("../evil.toml", b"")]), "names a place outside"),
    "absolute": (zipped([*LISTED, ("/etc/passwd", b"")]), "names a place outside"),
    "drive": (zipped([*LISTED, ("C:\\evil", b"")]), "names a place outside"),
    "folder": (zipped([*LISTED, ("samples/", b"")]), "is no part of a card"),
    "too many": (zipped([*LISTED, *((f"samples/{at:02}.webp", b"") for at in range(10, 60))]), "has 54 members"),
    "link": (rezipped(link), "is a link or a device"),
    "bomb": (rezipped(bomb), "is packed"),
    "not in its order": (zipped(LISTED[::-1]), "holds bytes that are no part"),
    "no settings": (zipped([LISTED[0], LISTED[-1]]), "it has no settings.toml"),
    "another digest": (zipped([*LISTED[:-1], ("digest", b"sha256:" + b"0" * 64 + b"\n")]), "was changed after"),
    "another content": (zipped([*LISTED[:-1][:1], ("settings.toml", b"a = 1"), *LISTED[2:]]), "was changed after"),
    "not UTF-8": (bundle.packed({**GOOD, "card.toml": b'title = "\xff"'}), "is not UTF-8"),
    "UTF-16": (bundle.packed({**GOOD, "card.toml": "title = 1".encode("utf-16")}), "is not UTF-8"),
    "not TOML": (settings_of("a = "), "is not TOML"),
    "deep": (settings_of("a = " + "[" * 9000), "is not TOML"),
    "deep names": (settings_of("a" + ".a" * 9000 + " = 1"), "more than 24 deep"),
    "no such setting": (settings_of('family = "sd"\nevil = 1'), "evil"),
    "newer": (card_of(schema_version=4), "made by a newer Velatura"),
    "no schema": (card_of(schema_version="2"), "allowed: 1 to 3"),
    "unknown key": (card_of(run="rm"), "run"),
    "no title": (card_of(title="a\nmax_steps = 1"), "it holds several lines"),
    "control": (card_of(note="\x1b[31mred"), "control characters"),
    "a file's address": (card_of(source_url="file:///etc/passwd"), "it is no address"),
    "script": (card_of(source_url="javascript:alert(1)"), "it is no address"),
    "picture by path": (card_of(samples=[{"picture": "/etc/passwd"}]), "picture"),
    "picture missing": (card_of(samples=[{"picture": "samples/01.webp"}]), "allowed: the same"),
    "picture twice": (card_of(samples=[{"picture": "samples/00.webp"}] * 2), "allowed: the same"),
    "huge picture": (sample_of(wide()), "has 16383 x 16383 pixels"),
    "large picture": (sample_of(encoded((600, 20))), "has 600 x 20 pixels"),
    "no picture": (sample_of(b"RIFF" + bytes(60)), "no plain WebP"),
    "png": (sample_of(encoded((32, 32), "PNG")), "no plain WebP"),
    "with metadata": (sample_of(encoded((32, 32), exif=b"Exif\0\0" + bytes(20))), "no plain WebP"),
    "moving": (sample_of(encoded((32, 32), save_all=True, append_images=[Image.new("RGB", (32, 32), "red")])),
               "no plain WebP"),
    "picture cut short": (sample_of(picture()[:-8]), "no plain WebP"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_card_is_refused_in_words(what: str, tmp_path: Path) -> None:
    raw, words = HOSTILE[what]
    (tmp_path / "x.velatura").write_bytes(raw)
    with pytest.raises(ConfigError) as refused:
        card_file.read(tmp_path / "x.velatura")
    assert words in str(refused.value) and str(tmp_path) not in str(refused.value)


def test_a_name_twice_is_refused() -> None:
    raw = zipped([*LISTED, LISTED[0]])
    with pytest.raises(ConfigError, match="stands in it twice"):
        card_file.opened(raw, "x")


def test_a_directory_of_a_million_members_is_not_read() -> None:
    directory = b"PK\x01\x02" + bytes(42)
    raw = b"PK\x03\x04" + bytes(26) + directory * 150_000
    raw += b"PK\x05\x06" + bytes(4) + b"\xff\xff\xff\xff" + (150_000 * 46).to_bytes(4, "little")
    raw += (30).to_bytes(4, "little") + b"\0\0"
    with pytest.raises(ConfigError, match="has 65535 members"):
        card_file.opened(raw, "x")


def test_a_large_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "x.velatura"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ConfigError, match="allowed: up to"):
        card_file.read(path)


def test_a_head_begins_no_setting_and_names_no_other_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path))
    head = f"One\u2028max_steps = 1\n]\nCard: sha256:{'f' * 64}"
    config = presets.load("imprimatura-style", {})
    raw = reading.packed(Card(kind="train", title='"x', head=head), config)
    kept = keeping.keep(raw)
    presets.add("theirs", keeping.preset_text(card_file.opened(raw, "x")))
    assert presets.load("theirs", {}) == config and keeping.card_of("theirs") == kept


def test_a_kept_file_with_another_cards_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path))
    kept = keeping.keep(reading.packed(Card(kind="train", title="a"), presets.load("imprimatura-style", {})))
    other = kept.with_name(f"{'0' * 64}.velatura")
    kept.rename(other)
    with pytest.raises(ConfigError, match="another card's content"):
        keeping.opened("0" * 64)
    with pytest.raises(ConfigError, match="is not here"):
        keeping.opened("../x")


def test_two_hundred_damaged_cards_touch_nothing_but_themselves(tmp_path: Path) -> None:
    """Every file that Python opens or writes meanwhile is the card, or a part of Python and of what is installed."""
    touched: list[str] = []
    room = tmp_path / "room"
    case = test_fuzz.KINDS["shared_cards"](room)
    test_fuzz.judged(case(random.Random("first")))  # imports

    def watch(name: str, given: tuple[Any, ...]) -> None:
        if watching and name in ("open", "os.remove", "os.rename", "os.mkdir", "subprocess.Popen", "socket.connect"):
            touched.append(f"{name} {given[0]}")

    watching = False
    sys.addaudithook(watch)
    for number in range(200):
        calls = case(random.Random(f"shared_cards-{number}"))
        watching = True
        try:
            test_fuzz.judged(calls)
        finally:
            watching = False
    allowed = (str(room), sys.prefix, sys.base_prefix, str(Path(presets.__file__).parents[1]))
    assert [what for what in touched if not what.split(" ", 1)[1].startswith(allowed)] == []
