"""A card in words: label and text, for a terminal and for the page alike."""

from __future__ import annotations

from trainer import console, families
from trainer.card_file.contents import DatasetFacts, Evidence
from trainer.card_file.reading import Opened
from trainer.cards.comparing import scale
from trainer.config import StackConfig, TrainConfig
from trainer.printing import plain

_STYLES = {
    "none": "without captions", "tags": "captioned with tags", "words": "captioned with a few words",
    "sentences": "captioned with sentences", "mixed": "captioned in several ways",
}  # fmt: skip


def facts(opened: Opened) -> list[tuple[str, str]]:
    """Label and text of everything that a card says, its settings in short; nothing for what it doesn't say."""
    card, evidence = opened.card, opened.card.evidence
    rows = [
        ("By", plain(card.author, 200)),
        ("Licence", plain(card.licence, 200)),
        ("Note", plain(card.note)),
        ("From", plain(card.source_url, 1000)),
        ("For", _base(opened)),
        ("Settings", in_short(opened)),
        *(_evidence(evidence) if evidence else []),
        *((f"LoRA {lora.role}", _lora(lora.name, lora.sha256, lora.source_url)) for lora in card.loras),
        ("Samples", str(len(card.samples) or "")),
        ("Digest", f"sha256 {opened.digest[:16]}…"),
    ]
    return [(label, text) for label, text in rows if text]


def in_short(opened: Opened) -> str:
    """The settings in a line."""
    config = opened.settings
    if isinstance(config, TrainConfig):
        effective = scale(config)
        parts = [f"{config.max_steps:,} steps", f"batch {config.batch_size}", f"{config.resolution_px} px"]
        parts += [f"learning rate {config.learning_rate:g}", f"{config.adapter.method}, rank {config.adapter.rank}"]
        parts += [f"scale {effective:g}"] if effective is not None else []
        return ", ".join(parts)
    if isinstance(config, StackConfig):
        num = len(config.adapters)
        return f"{num} LoRA{'' if num == 1 else 's'}, {config.mode}, {config.width_px} x {config.height_px} px"
    return f"{config.num_pictures} pictures"


def _base(opened: Opened) -> str:
    base, config = opened.card.base, opened.settings
    family = families.registry().get(str(getattr(config, "family", "")))
    digest = base.file_sha256 or base.sha256
    name = f"{plain(base.name, 80)}{f' (sha256 {digest[:16]}…)' if digest else ''}"
    address = f", from {plain(base.source_url, 300)}" if base.source_url else ""
    return f"{family.title}: {name}{address}" if family else name


def _evidence(evidence: Evidence) -> list[tuple[str, str]]:
    memory = f", at most {console.memory(evidence.peak_memory_bytes)}" if evidence.peak_memory_bytes else ""
    total = f"; {console.duration(evidence.total_s)} in all" if evidence.total_s else ""
    best = max(evidence.heldout, key=lambda point: point.gain, default=None)
    used = evidence.recommended
    return [
        ("Trained on", dataset(evidence.dataset)),
        ("Ran on", f"{plain(evidence.device, 80)}, {plain(evidence.dtype, 40)}: {evidence.step_s:.3g} s a step"
                   f"{memory}{total}"),
        ("Held-out", f"{best.gain:.1%} better than the base at step {best.step} (95 % interval {best.gain_low:.1%} to "
                     f"{best.gain_high:.1%})" if best else ""),
        ("Best step", f"{used.step}: {plain(used.reason, 600)}" if used else ""),
    ]  # fmt: skip


def dataset(facts: DatasetFacts) -> str:
    """A dataset's facts as a phrase."""
    sides = facts.shorter_side_px
    spread = f"{sides[0]} to {sides[2]} px" if len(set(sides)) > 1 else f"{sides[0]} px" if sides else ""
    size = f", {spread} on the shorter side" if len(sides) == 3 else ""
    heldout = f", {facts.num_heldout} more held out" if facts.num_heldout else ""
    name = f" ({plain(facts.name, 80)})" if facts.name else ""
    of = {"unknown": "", "style": " of a style", "character": " of a character", "concept": " of a concept"}[facts.kind]
    masks = {"none": "", "some": ", some with masks", "all": " with masks"}[facts.masks]
    regular = f", {facts.num_regular} regularisation pictures" if facts.num_regular else ""
    pictures = f"{facts.num_pictures} pictures{of}{name}{masks}{size}"
    return f"{pictures}, {_STYLES[facts.captions]}{regular}{heldout}"


def _lora(name: str, digest: str, address: str) -> str:
    told = f", from {plain(address, 300)}" if address else ""
    return f"{plain(name, 80)} sha256 {digest[:16]}…{told}".strip()
