"""Will it work for mine? A card beside a dataset of your own: where the two differ, and what it will take."""

from __future__ import annotations

import re
from collections.abc import Collection

from trainer import bases, families
from trainer.card_file.contents import Card, DatasetFacts, Evidence
from trainer.config import StackConfig, TrainConfig
from trainer.errors import UserError
from trainer.predicted_cost import Prediction
from trainer.printing import plain

_OFTEN, _SELDOM = 2.0, 0.5  # times the pictures of the card's set
_SMALLER = 0.67  # of the card's median side
_SAID, _UNSAID = 0.5, 0.1  # share of captions with the trigger
_MADE_FOR = re.compile(r"\b(\d{1,6})(?:\s?[-–]\s?(\d{1,6}))? pictures\b")
_STYLES = {"none": "no captions", "tags": "tags", "words": "a few words", "sentences": "sentences", "mixed": "mixed"}


def differences(config: TrainConfig, evidence: Evidence | None, head: str, own: DatasetFacts) -> list[str]:
    """A sentence for each way in which your set is unlike the set that the settings are known to work for.

    `head` is the preset's comment, which says how many pictures it was made for where there is no evidence.
    """
    theirs = evidence.dataset if evidence else None
    found = [*_counts(config, theirs, head, own), *_sizes(config, theirs, own)]
    if theirs and theirs.num_pictures and theirs.captions != own.captions:
        found.append(
            f"Your captions are {_STYLES[own.captions]}, the card's were {_STYLES[theirs.captions]}: prompts will "
            f"have to be written as yours are."
        )
    return found + _triggers(config, theirs, own)


def _counts(config: TrainConfig, theirs: DatasetFacts | None, head: str, own: DatasetFacts) -> list[str]:
    match = _MADE_FOR.search(head)
    if theirs and theirs.num_pictures:
        low = high = theirs.num_pictures
        name = f"the card's {low}"
    elif match:
        low, high = int(match[1]), int(match[2] or match[1])
        name = f"the {match[0]} that it was made for"
    else:
        return []
    if not own.num_pictures or _SELDOM * low <= own.num_pictures <= _OFTEN * high:
        return []
    # As many looks at each picture as there.
    near = low if own.num_pictures < low else high
    steps = max(round(config.max_steps * own.num_pictures / near), 1) if near else config.max_steps
    word = "fewer" if own.num_pictures < low else "more"
    return [
        f"You have {own.num_pictures} pictures, {word} than {name}: {config.max_steps} steps show each "
        f"{_looks(config, own.num_pictures)} times instead of {_looks(config, near)}; max_steps={steps} keeps that."
    ]


def _looks(config: TrainConfig, num_pictures: int) -> int:
    """How often a run shows each picture."""
    return round(config.max_steps * config.batch_size * config.accumulation / max(num_pictures, 1))


def _sizes(config: TrainConfig, theirs: DatasetFacts | None, own: DatasetFacts) -> list[str]:
    if len(own.shorter_side_px) != 3:
        return []
    median = own.shorter_side_px[1]
    if median < config.resolution_px * _SMALLER:
        return [
            f"Half of your pictures are below {median} px on their shorter side, and it trains at "
            f"{config.resolution_px} px: what it learns will be soft."
        ]
    if theirs and len(theirs.shorter_side_px) == 3 and median < theirs.shorter_side_px[1] * _SMALLER:
        return [f"Your pictures are smaller: {median} px on the shorter side, the card's {theirs.shorter_side_px[1]}."]
    return []


def _triggers(config: TrainConfig, theirs: DatasetFacts | None, own: DatasetFacts) -> list[str]:
    word = plain(config.data.trigger, 60)
    if word and theirs and theirs.has_trigger >= _SAID and own.has_trigger <= _UNSAID:
        return [
            f"The card's captions said its trigger {word!r} themselves; none of yours does, and it is put before each. "
            f"Give your own word with data.trigger."
        ]
    if word and not theirs:
        return [f"Its trigger is {word!r}; give your own word with data.trigger."]
    return []


def predicted(config: TrainConfig, card: Card, device: str) -> Prediction | None:
    """What the card's own figures say for a run on the same device; None for another, or without figures.

    They hold for the card's batch and resolution, which the settings then have too.
    """
    evidence = card.evidence
    if evidence is None or not evidence.step_s or evidence.device != device:
        return None
    per_step = evidence.total_s / evidence.num_steps if evidence.num_steps and evidence.total_s else evidence.step_s
    return Prediction("card", evidence.step_s, per_step * config.max_steps, evidence.peak_memory_bytes)


def base_is_here(config: TrainConfig | StackConfig) -> bool:
    """Whether the base of some settings is on this machine."""
    try:
        bases.resolve(config.base, families.registry()[config.family])
    except UserError:
        return False
    return True


def missing(card: Card, base_is_here: bool, known_loras: Collection[str] | None) -> list[str]:
    """A line for the base and each LoRA that isn't here: its hash, and where the card says it can be had.

    `known_loras` are the hashes of those that are here; None leaves LoRAs out.
    """
    lines = []
    if not base_is_here:
        digest = card.base.file_sha256 or card.base.sha256
        lines.append(_origin(f"base {plain(card.base.name, 80) or 'without a name'}", digest, card.base.source_url))
    for lora in card.loras:
        if known_loras is not None and lora.role == "used" and lora.sha256 not in known_loras:
            lines.append(_origin(f"LoRA {plain(lora.name, 80)}".strip(), lora.sha256, lora.source_url))
    return lines


def _origin(what: str, digest: str, address: str) -> str:
    told = f"; the card says it comes from {plain(address, 300)}" if address else ""
    return f"{what}{f' (sha256 {digest[:16]}…)' if digest else ''} is not here{told}."
