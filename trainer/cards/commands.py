"""What `velatura preset` says of cards: each function gives the text, or the JSON, that is printed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from trainer import card_file, files, lora_file, presets
from trainer.card_file.reading import Opened
from trainer.cards import comparing, describing, keeping, making, pictures, places, sources, suiting
from trainer.cards.comparing import Difference
from trainer.cards.sources import Source
from trainer.config import BatchConfig, StackConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.printing import plain, printable

if TYPE_CHECKING:
    from trainer.cards.making import Wishes


def shown(opened: Opened, as_json: bool) -> str:
    """A card as TOML that a preset may be: what it says as comments, then its settings."""
    settings = opened.settings.model_dump(mode="json", exclude_none=True)
    if as_json:
        card = opened.card.model_dump(mode="json", exclude_none=True)
        return json.dumps({"digest": opened.digest, "card": card, "settings": settings}, indent=2)
    rows = [("Title", opened.card.title), *describing.facts(opened)]
    lines = [f"# {label}: {' '.join(text.split())}" for label, text in rows]
    return "\n".join(map(printable, lines)) + "\n\n" + tomli_w.dumps(settings)


# Importing.


def imported(file: Path, name: str | None, dry_run: bool, as_json: bool) -> str:
    """A card kept as a preset, or what it would change; the text that says so. Raises: ConfigError."""
    opened = card_file.read(file)
    if not isinstance(opened.settings, TrainConfig):
        return _kept_stack(file.read_bytes(), opened, name, dry_run, as_json)
    text, wanted = keeping.preset_text(opened), name or keeping.preset_name(opened.card.title)
    changes = comparing.against_defaults(opened.settings)
    missing = _missing(opened)
    kept = ""
    if not dry_run:
        keeping.keep(file.read_bytes())
        kept = presets.add(wanted, text).stem
    if as_json:
        facts: dict[str, Any] = {"digest": opened.digest, "title": opened.card.title, "name": kept or wanted}
        facts |= {"kept": bool(kept), "missing": missing, "settings": _as_values(changes)}
        return json.dumps(facts, indent=2)
    head = f"kept as the preset {kept}." if kept else f"would be kept as the preset {wanted}; nothing was written."
    lines = [f"{label}: {text}" for label, text in describing.facts(opened)]
    lines += [f"{one.key} = {comparing.spelled(one.after)}   ({one.title})" for one in changes]
    return _printed([opened.card.title, *lines, *missing, head])


def imported_picture(file: Path, name: str | None, dry_run: bool, as_json: bool) -> str | None:
    """The stack of a picture, an A1111 text or a ComfyUI graph kept as a card; None for a file that is none of these.

    Raises: ConfigError.
    """
    found = pictures.stack_in(file)
    if found is None:
        return None
    stack, notes = found
    raw = making.make(Source("file", plain(file.stem, 150), stack), making.Wishes()).raw
    text = _kept_stack(raw, card_file.opened(raw, file.name), name, dry_run, as_json)
    return text if as_json else _printed([*text.splitlines(), *(f"note: {note}" for note in notes)])


def _kept_stack(raw: bytes, opened: Opened, name: str | None, dry_run: bool, as_json: bool) -> str:
    """The same for a stack or a batch, whose settings are written where they are asked for: beside the card."""
    if name is not None:
        raise ConfigError(f"--name is for settings of a training; this is a {opened.card.kind}.")
    where = "" if dry_run else str(keeping.keep(raw))
    if as_json:
        facts = {"digest": opened.digest, "title": opened.card.title, "kept": bool(where), "missing": _missing(opened)}
        return json.dumps(facts, indent=2)
    use = "draw it with: velatura render --stack" if isinstance(opened.settings, StackConfig) else "velatura batch"
    head = f"kept as {where}; `velatura preset show` prints its settings, {use}." if where else "nothing was written."
    lines = [f"{label}: {text}" for label, text in describing.facts(opened)]
    return _printed([opened.card.title, *lines, *_missing(opened), head])


def _missing(opened: Opened) -> list[str]:
    """What of a card isn't on this machine: its base, and LoRAs that lie in none of the usual folders."""
    settings = opened.settings
    is_here = isinstance(settings, BatchConfig) or suiting.base_is_here(settings)
    used = any(lora.role == "used" for lora in opened.card.loras)
    return suiting.missing(opened.card, is_here, lora_file.library([Path("outputs")]) if used else None)


def _printed(lines: list[str]) -> str:
    return "\n".join(printable(" ".join(plain(line, 4000).split())) for line in lines if line.strip())


def _as_values(found: list[Difference]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in found]


# Exporting.


def exported(what: str, out: Path, wishes: Wishes, runs_folder: Path) -> tuple[Path, list[str]]:
    """The card's file, and what was left out of it. Raises: ConfigError, AdapterError."""
    made = making.make(sources.of(what, runs_folder), wishes)
    opened = card_file.opened(made.raw, "the card")
    if os.path.isdir(out):
        path = out / f"{keeping.preset_name(opened.card.title)}-{opened.digest[:12]}{card_file.SUFFIX}"
    elif out.suffix.lower() == card_file.SUFFIX:
        path = out
    else:
        raise ConfigError(
            f"--out is {str(out)[:200]!r}; allowed: a name that ends with {card_file.SUFFIX}, or a folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, made.raw)
    return path, made.notes


# Comparing and searching.


def compared(before: str, after: str, runs_folder: Path, as_json: bool) -> str:
    """The settings that differ between two sources. Raises: ConfigError, AdapterError."""
    pair = [sources.of(word, runs_folder) for word in (before, after)]
    configs = [places.without(one.settings, with_names=True) if isinstance(one.settings, TrainConfig) else one.settings
               for one in pair]  # fmt: skip
    found = comparing.differences(*configs)
    if as_json:
        scales = [comparing.scale(config) for config in configs]
        return json.dumps(
            {"names": [one.name for one in pair], "scale": scales, "settings": _as_values(found)}, indent=2
        )
    return "\n".join(map(printable, comparing.describe(found, (pair[0].name, pair[1].name)).splitlines()))


def found(words: str, family: str, memory_gib: float | None, as_json: bool) -> str:
    """The presets and cards that a search finds, a line each."""
    hits = keeping.search(words, family, memory_gib)
    if as_json:
        return json.dumps([dataclasses.asdict(hit) for hit in hits], indent=2)
    if not hits:
        return "no preset and no kept card fits; leave a word out, or see `velatura preset list`."
    return "\n".join(_line(hit) for hit in hits)


def _line(hit: keeping.Hit) -> str:
    name = hit.name if hit.kind == "preset" else f"card {hit.name[:12]}"
    memory = f"{hit.memory_gib:.3g} GiB" if hit.memory_gib is not None else ""
    return printable(f"{name:<28}{hit.family:<14}{memory:<10}{plain(hit.title, 120)}")
