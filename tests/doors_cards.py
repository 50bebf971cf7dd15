"""The door of cards, the files that others share; see `tests.doors`."""

from __future__ import annotations

import io
import random
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests import fuzzing
from tests.doors_setup import Call, Case
from trainer import card_file, presets
from trainer.card_file import bundle, contents, reading
from trainer.card_file.contents import Card
from trainer.cards import comparing, describing, keeping
from trainer.config import StackConfig, TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.errors import ConfigError

NAMES = [
    "card.toml", "settings.toml", "digest", "samples/00.webp", "samples/01.webp", "samples/a.webp", "../card.toml",
    "/etc/passwd", "C:\\x", "card.toml/", "samples/../card.toml", "inside.zip", "a.py", "", "\u202e", "CARD.TOML",
]  # fmt: skip
EVIDENCE: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "num_steps": 12, "step_s": 0.5, "total_s": 9.5, "peak_memory_bytes": 10**9,
    "dataset": {"num_pictures": 9, "shorter_side_px": [64, 96, 128], "captions": "tags", "has_trigger": 0.5},
    "heldout": [{"step": 6, "loss": 0.3, "gain": 0.1}, {"step": 12, "loss": 0.2, "gain": 0.2}],
    "recommended": {"step": 12, "reason": "it is the best"},
}  # fmt: skip


def picture(colour: str = "red", size: tuple[int, int] = (32, 24)) -> bytes:
    """A sample's bytes."""
    return reading.webp(Image.new("RGB", size, colour))


def card_values(**changes: Any) -> dict[str, Any]:
    """What `card.toml` of a good card says."""
    return {
        "schema_version": contents.SCHEMA, "kind": "train", "title": "A cat", "author": "me", "licence": "CC0-1.0",
        "base": {"name": "imprimatura", "sha256": "a" * 64}, "evidence": EVIDENCE, "loras": [{"sha256": "b" * 64}],
        "samples": [{"picture": "samples/00.webp", "prompt": "a cat", "seed": 1, "step": 12}], **changes,
    }  # fmt: skip


def good_members() -> list[dict[str, bytes]]:
    """The members of a card of a training, of today's schema and of those before, and of a card of a stack."""
    train = reading.packed(Card(**card_values()), presets.load("imprimatura-style", {}), (picture(),))
    stack = reading.packed(Card(kind="stack", title="A stack"), StackConfig(prompt="a cat"))
    members = [bundle.unpacked(raw, "x") for raw in (train, stack)]
    older = members[0]["card.toml"].replace(b"schema_version = 3", b"schema_version = 2")
    older = older.replace(b'kind = "unknown"\nmasks = "none"', b'kind = "pictures with masks"')
    oldest = older.replace(b"schema_version = 2", b"schema_version = 1")
    oldest = oldest.replace(b"peak_memory_bytes = 1000000000", b"peak_memory_gib = 0.93")
    return [*members, *({**members[0], "card.toml": table} for table in (older, oldest))]


def zipped(members: list[tuple[str, bytes]], chance: random.Random | None = None) -> bytes:
    """A zip of these members as another tool would make it."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            if chance and chance.random() < 0.1:
                entry.external_attr = chance.choice([stat.S_IFLNK << 16, stat.S_IFDIR << 16, 0, 0xFFFFFFFF])
                entry.compress_type = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
            archive.writestr(entry, content)
    return file.getvalue()


def shared_cards(room: Path) -> Case:
    """A card: read whole, described, compared, kept, and written as a preset; nothing outside the room is touched."""
    room.mkdir(exist_ok=True)
    good = good_members()
    keys = [*Card.model_fields, *contents.Evidence.model_fields, *TrainConfig.model_fields]

    def case(chance: random.Random) -> list[Call]:
        path = room / "x.velatura"
        path.write_bytes(_damaged(good, chance, keys))
        whole: list[reading.Opened] = []

        def read() -> None:
            whole[:] = [card_file.read(path)]

        def used() -> str:
            if not whole:
                return ""
            opened = whole[0]
            text = "\n".join(map(": ".join, describing.facts(opened)))
            if isinstance(opened.settings, TrainConfig):
                text += comparing.describe(comparing.against_defaults(opened.settings)[:3], ("a", "b"))
                values = from_toml(keeping.preset_text(opened), "the preset")
                assert values.pop("title") == opened.card.title
                parse(TrainConfig, values, "the preset")
            return text

        return [read, used]

    return case


def _damaged(good: list[dict[str, bytes]], chance: random.Random, keys: list[str]) -> bytes:
    """A card with damage to its values, its members, its container or its bytes, the digest mostly put right."""
    members = dict(chance.choice(good))
    kind = chance.randrange(8)
    if kind < 4:  # tables that say something else, under a digest that fits
        name = chance.choice(["card.toml", "card.toml", "settings.toml"])
        values = from_toml(members[name], name)
        text = fuzzing.as_toml(fuzzing.broken(values, chance, keys), chance)
        members[name] = (
            fuzzing.raw(text, chance)[:400_000] if chance.random() < 0.2 else text.encode("utf-8", "replace")
        )
    elif kind == 4:
        members["samples/00.webp"] = fuzzing.data([picture(), picture("blue", (512, 512))], chance)
    digest = f"sha256:{bundle.digest(members)}\n".encode()
    if kind == 5:
        extra = [(chance.choice(NAMES), chance.randbytes(50)) for _ in range(chance.choice([1, 2, 40]))]
        listed = [*members.items(), ("digest", digest), *extra]
        chance.shuffle(listed)
        return zipped(listed, chance)
    if kind < 5:
        try:
            return bundle.packed(members)
        except ConfigError:
            return zipped([*members.items(), ("digest", digest)])
    return fuzzing.data([bundle.packed(members)], chance)
