"""The cards that are kept on this machine, each under its digest, and what is found among them and the presets."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tomli_w

from trainer import files, model_registry, preset_heads, preset_tiers, presets
from trainer.card_file import bundle, reading
from trainer.card_file.reading import Opened
from trainer.cards import places
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError
from trainer.printing import plain

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOT_NAME = re.compile(r"[^a-z0-9._-]+")
_GIB = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s?(?:GiB|GB)\b")
_FROM_CARD = re.compile(r"^Card: sha256:([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class Hit:
    """A preset or card that a search found."""

    kind: str  # preset or card
    name: str  # of a preset its name, of a card its digest
    title: str
    family: str
    memory_gib: float | None  # None: it doesn't say


def folder() -> Path:
    """Where cards are kept."""
    return model_registry.home() / "cards"


def every() -> dict[str, Path]:
    """The kept cards by digest, the newest first; a file under any other name is none."""
    times: dict[Path, float] = {}
    for path in folder().glob(f"*{bundle.SUFFIX}"):
        with suppress(OSError):  # taken away meanwhile
            if _DIGEST.fullmatch(path.stem):
                times[path] = path.stat().st_mtime
    return {path.stem: path for path in sorted(times, key=lambda path: times[path], reverse=True)}


def place(digest: str) -> Path:
    """Where a card is kept."""
    return folder() / f"{digest}{bundle.SUFFIX}"


def keep(raw: bytes) -> Path:
    """A card's file under its digest; a file that is here already stays. Raises: ConfigError for what is no card."""
    path = place(reading.opened(raw, "the card").digest)
    folder().mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        files.write(path, raw)
    return path


def opened(digest: str) -> Opened:
    """A kept card. Raises: ConfigError for a digest that none here has, or whose file is another's."""
    path = every().get(digest)
    if path is None:
        raise ConfigError(f"card {plain(digest, 80)} is not here any more.")
    status = path.stat()
    card = _opened(path, status.st_mtime_ns, status.st_size)
    if card.digest != digest:
        raise ConfigError(f"card {digest[:12]} holds another card's content; remove it and import it again.")
    return card


@lru_cache(maxsize=64)
def _opened(path: Path, changed_ns: int, size: int) -> Opened:
    return reading.read(path)


# As a preset.


def preset_text(card: Opened) -> str:
    """The settings of a card as a preset's file, with its head, without places and what needs them."""
    config, _ = places.forgotten(card.train, places.needed(card.train))
    lines = [line for line in card.card.head.splitlines() if line.strip()]
    by = f" by {card.card.author}" if card.card.author else ""
    licence = f", {card.card.licence}" if card.card.licence else ""
    lines += [f"From a card{by}{licence}.", f"Card: sha256:{card.digest}"]
    head = "".join(f"# {plain(line)}\n" for line in lines)
    return head + tomli_w.dumps({"title": card.card.title, **config.model_dump(mode="json", exclude_none=True)})


def preset_name(title: str) -> str:
    """A name that a preset may have, after a title."""
    return _NOT_NAME.sub("-", title.lower()).strip("-._")[:48] or "imported"


def card_of(preset: str) -> Path | None:
    """The kept card that an own preset was made of; None for any other."""
    if preset not in presets.own():
        return None
    with suppress(OSError, UnicodeDecodeError):
        told = _FROM_CARD.findall(preset_heads.comment(presets.path_of(preset)))
        return every().get(told[-1]) if told else None  # the last is ours, whatever the card's own head says
    return None


# Searching.


def search(words: str, family: str = "", memory_gib: float | None = None) -> list[Hit]:
    """The presets and cards that hold every word, of a family, known to fit into so much memory."""
    wanted = words[:400].casefold().split()
    hits = []
    for hit, text in [*_presets(memory_gib), *_cards()]:
        if family and hit.family != family or not all(word in text for word in wanted):
            continue
        if memory_gib is None or hit.memory_gib is not None and hit.memory_gib <= memory_gib:
            hits.append(hit)
    return hits


def _presets(memory_gib: float | None) -> list[tuple[Hit, str]]:
    """Each preset with the text it is found by; where memory is asked for, with the largest tier that fits."""
    found = []
    for name in presets.names():
        fitting = [f"{name}{preset_tiers.MARK}{tier}" for tier, size in preset_tiers.gpu_sizes(name).items()
                   if size <= (memory_gib or 0)]  # fmt: skip
        word = fitting[-1] if fitting else name
        config, head = presets.load(word, {}), preset_heads.text(word)
        memory = _GIB.search(preset_heads.of(word).memory)
        hit = Hit("preset", word, presets.title(word), config.family, float(memory[1]) if memory else None)
        found.append((hit, _text(hit, config, head)))
    return found


def _cards() -> list[tuple[Hit, str]]:
    found = []
    for digest in every():
        with suppress(UserError, OSError):
            card = opened(digest)
            evidence = card.card.evidence
            memory = evidence.peak_memory_bytes / 2**30 if evidence and evidence.peak_memory_bytes else None
            family = str(getattr(card.settings, "family", "") or "")
            hit = Hit("card", digest, card.card.title, family, memory)
            words = f"{card.card.author} {card.card.note} {card.card.head} {card.card.base.name}"
            config = card.settings if isinstance(card.settings, TrainConfig) else None
            found.append((hit, _text(hit, config, words)))
    return found


def _text(hit: Hit, config: TrainConfig | None, more: str) -> str:
    prompts = " ".join(config.preview.prompts) + f" {config.data.trigger} {config.adapter.method}" if config else ""
    return f"{hit.name} {hit.title} {hit.family} {more} {prompts}".casefold()
