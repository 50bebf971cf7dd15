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
from trainer.cards import comparing, describing, keeping, making, pictures, places, proposals, sources, suiting
from trainer.cards.comparing import Difference
from trainer.cards.proposals import Proposal
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


def proposed(file: Path, name: str | None) -> Proposal:
    """A card as it would be kept, and what it would change. Raises: ConfigError."""
    opened = card_file.read(file)
    raw = file.read_bytes()
    if not isinstance(opened.settings, TrainConfig):
        return _proposed_stack(raw, opened, name)
    text, wanted = keeping.preset_text(opened), name or keeping.preset_name(opened.card.title)
    kept_as = presets.free_name(wanted)
    changes, missing = comparing.against_defaults(opened.settings), _missing(opened)
    settings, _ = places.forgotten(opened.settings, places.needed(opened.settings))  # as a preset has them
    lines, existing = proposals.beside(wanted, settings)
    facts: dict[str, Any] = {"digest": opened.digest, "title": opened.card.title, "name": kept_as}
    facts |= {"missing": missing, "settings": _as_values(changes)} | existing

    # What is said before anything is written.
    said = [f"{label}: {text}" for label, text in describing.facts(opened)]
    said += [f"{one.key} = {comparing.spelled(one.after)}   ({one.title})" for one in changes]

    def keep() -> dict[str, str]:
        keeping.keep(raw)
        return {"name": presets.add(wanted, text).stem}

    return Proposal(_printed([opened.card.title, *said, *missing, *lines]), facts, f"the preset {kept_as}", keep)


def proposed_picture(file: Path, name: str | None) -> Proposal | None:
    """The stack of a picture, an A1111 text or a ComfyUI graph as a card; None for a file that is none of these.

    Raises: ConfigError.
    """
    found = pictures.stack_in(file)
    if found is None:
        return None
    stack, notes = found
    raw = making.make(Source("file", plain(file.stem, 150), stack), making.Wishes()).raw
    proposal = _proposed_stack(raw, card_file.opened(raw, file.name), name)
    return dataclasses.replace(proposal, lines=[*proposal.lines, *_printed([f"note: {note}" for note in notes])])


def _proposed_stack(raw: bytes, opened: Opened, name: str | None) -> Proposal:
    """The same for a stack or a batch, which is kept as its card; its settings are written where they are asked for."""
    if name is not None:
        raise ConfigError(f"--name is for settings of a training; this is a {opened.card.kind}.")
    missing = _missing(opened)
    facts = {"digest": opened.digest, "title": opened.card.title, "missing": missing}
    use = "draw it with: velatura render --stack" if isinstance(opened.settings, StackConfig) else "velatura batch"
    said = [f"{label}: {text}" for label, text in describing.facts(opened)]
    said.append(f"`velatura preset show` prints its settings, {use}.")
    if opened.digest in keeping.every():
        said.append("it is kept already.")
    what = f"the card {keeping.place(opened.digest)}"
    return Proposal(
        _printed([opened.card.title, *said, *missing]), facts, what, lambda: {"file": str(keeping.keep(raw))}
    )


def _missing(opened: Opened) -> list[str]:
    """What of a card isn't on this machine: its base, and LoRAs that lie in none of the usual folders."""
    settings = opened.settings
    is_here = isinstance(settings, BatchConfig) or suiting.base_is_here(settings)
    used = any(lora.role == "used" for lora in opened.card.loras)
    return suiting.missing(opened.card, is_here, lora_file.library([Path("outputs")]) if used else None)


def _printed(lines: list[str]) -> list[str]:
    return [printable(" ".join(plain(line, 4000).split())) for line in lines if line.strip()]


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
