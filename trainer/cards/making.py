"""A run, a preset, a LoRA of ours or a stack -> its card; a card again with more said of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import __version__, base_match, data, families, lora_file, preset_heads, presets, run_facts
from trainer.card_file import reading
from trainer.card_file.contents import (
    MOST_LORAS,
    MOST_POINTS,
    MOST_SAMPLES,
    BaseOrigin,
    Card,
    DatasetFacts,
    DatasetKind,
    Evidence,
    HeldoutPoint,
    LoraOrigin,
    Recommendation,
    Sample,
)
from trainer.card_file.reading import Config
from trainer.cards import places
from trainer.cards.sources import Source
from trainer.config import BatchConfig, StackConfig, TrainConfig
from trainer.config.stack import AdapterChoice
from trainer.errors import UserError
from trainer.events import Event, Finished, Planned, Recommended, Sampled, Started, Step, Validated, last
from trainer.lora_file import is_there
from trainer.printing import plain
from trainer.report.advising import is_copy
from trainer.report.plausible import plausible
from trainer.run_facts import RunFacts
from trainer.runs import Run

_LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class Wishes:
    """What whoever shares it says of it, and what else goes in."""

    title: str = ""
    author: str = ""
    licence: str = ""
    note: str = ""
    source_url: str = ""
    kind: DatasetKind = "unknown"  # what its pictures teach; else what the run knows
    with_samples: bool = False
    with_names: bool = False  # the dataset's name, and rules by its folders' names


@dataclass(frozen=True)
class Made:
    """A card's file, and a sentence on each thing that was left out of it."""

    raw: bytes
    notes: list[str]


def make(source: Source, wishes: Wishes) -> Made:
    """The card of a source. Raises: ConfigError for a text that is too long or no address."""
    if source.card is not None:
        return _again(source.card, wishes)
    if isinstance(source.settings, TrainConfig):
        return _of_training(source, source.settings, wishes)
    return _of_stack(source, source.settings, wishes)


def _said(wishes: Wishes, **more: Any) -> Card:
    """The card of what is said. Raises: ConfigError."""
    own = {key: getattr(wishes, key).strip() for key in ("author", "licence", "note", "source_url")}
    values = {**more, **own, "title": wishes.title.strip() or more["title"], "made_with": __version__}
    return reading.parse(Card, values, "the card")


def _again(opened: reading.Opened, wishes: Wishes) -> Made:
    """A card with other words; its evidence and pictures stay."""
    told = {key: value.strip() for key in ("title", "author", "licence", "note", "source_url")
            if (value := getattr(wishes, key))}  # fmt: skip
    values = opened.card.model_dump(mode="json", exclude_none=True) | told
    if wishes.kind != "unknown" and opened.card.evidence:
        values["evidence"]["dataset"]["kind"] = wishes.kind
    return Made(reading.packed(reading.parse(Card, values, "the card"), opened.settings, opened.pictures), [])


# Trainings.


def _of_training(source: Source, config: TrainConfig, wishes: Wishes) -> Made:
    """The card of a preset, a LoRA or a run; of a run with its evidence."""
    # What there is to read: a run's folder, or a LoRA's own header.
    run = Run(source.path) if source.kind == "run" and source.path else None
    lora = run.lora_file if run else source.path if source.kind == "lora" else None
    metadata = _header(lora)
    log = plausible(run.events()) if run else []
    samples, pictures, notes = _samples(run, log) if run and wishes.with_samples else ([], [], [])

    # What names folders of the dataset stays at home.
    if not wishes.with_names and (dropped := places.left_out(config)):
        notes.append(f"{' and '.join(dropped)} name folders of the dataset and were left out.")
    settings = places.without(config, wishes.with_names)
    evidence = _evidence(run, config, log, wishes) if run else None
    card = _said(
        wishes,
        kind="train",
        title=title(source, config),
        head=_head(source),
        base=_base(settings.base, metadata),
        loras=[lora.model_dump() for lora in _loras(lora, config, wishes.source_url)],
        evidence=evidence.model_dump(exclude_none=True) if evidence else None,
        samples=[sample.model_dump() for sample in samples],
    )
    return Made(reading.packed(card, settings, tuple(pictures)), notes)


def title(source: Source, config: TrainConfig) -> str:
    """A preset's own title; of a run or LoRA what it is, as its name is often the dataset's."""
    if source.kind == "preset":
        return presets.title(source.name)[:200]
    if source.kind == "file" and source.path:
        return str(presets.read_toml(source.path).get("title", source.name))[:200]
    return f"{config.data.trigger or 'LoRA'} on {families.registry()[config.family].title}"


def _head(source: Source) -> str:
    """The comment that a preset begins with."""
    try:
        if source.kind == "preset":
            return preset_heads.text(source.name)[:8000]
        return preset_heads.comment(source.path)[:8000] if source.kind == "file" and source.path else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _header(lora: Path | None) -> dict[str, str]:
    """What a LoRA file says of itself; nothing where there is none."""
    if lora is None or not is_there(lora):
        return {}
    try:
        return lora_file.read_header(lora).metadata
    except UserError:
        return {}


def _base(name: str, metadata: dict[str, str]) -> dict[str, Any]:
    """The base by name and hashes; a hub id says where it can be had."""
    told = base_match.origin_in_header(metadata) if metadata else None
    address = f"https://huggingface.co/{name}" if name.count("/") == 1 else ""
    hashes = {"sha256": told.sha256, "file_sha256": told.file_sha256} if told else {}
    return BaseOrigin(name=plain(name, 199), source_url=address).model_dump() | hashes


def _loras(made: Path | None, config: TrainConfig, source_url: str) -> list[LoraOrigin]:
    """The LoRA that was made, and those that it was trained against, by hash."""
    found = [_lora(made, "made", source_url)] if made is not None else []
    found += [_lora(Path(line.rpartition(":")[0]), "used", "") for line in config.against.adapters]
    return [lora for lora in found if lora]


def _lora(path: Path, role: str, source_url: str) -> LoraOrigin | None:
    try:
        info = lora_file.inspect(path)
    except (UserError, OSError):
        return None
    values = {"role": role, "sha256": info.sha256, "size_bytes": info.size_bytes, "source_url": source_url.strip()}
    return reading.parse(LoraOrigin, values, "the card")


# Evidence.


def _evidence(run: Run, config: TrainConfig, log: list[Event], wishes: Wishes) -> Evidence | None:
    """What a run showed; None for a run that made no step."""
    started, done = last(log, Started), last(log, Finished)
    steps = [event for event in log if isinstance(event, Step)]
    if started is None or not steps:
        return None
    best = last(log, Recommended)
    # Held-out losses, and the step that they speak for.
    measured = [event for event in log if isinstance(event, Validated)]
    points = [
        HeldoutPoint(
            step=event.step, loss=event.loss, gain=event.gain, gain_low=event.gain_low, gain_high=event.gain_high
        )
        for event in measured
    ]

    # The dataset: what the run noted of it, else what its log has.
    kept = run_facts.kept(run.folder) or RunFacts(dataset=_facts_of(started, last(log, Planned)))
    facts = kept.dataset
    if wishes.with_names:
        facts = facts.model_copy(update={"name": plain(Path(config.data.folder).name, 199)})
    if wishes.kind != "unknown":
        facts = facts.model_copy(update={"kind": wishes.kind})
    return Evidence(
        device=kept.device or plain(started.device, 199),
        dtype=plain(started.dtype, 199),
        num_steps=steps[-1].step,
        # The first steps are slower, so the median.
        step_s=statistics.median(event.seconds for event in steps),
        total_s=done.seconds if done else 0.0,
        peak_memory_bytes=done.peak_memory_bytes if done else 0,
        dataset=facts,
        heldout=tuple(_thinned(points)),
        recommended=Recommendation(step=best.step, reason=plain(best.reason, 2000)) if best else None,
    )


def _facts_of(started: Started, plan: Planned | None) -> DatasetFacts:
    """The facts that a run's log has, of a run that kept no others."""
    buckets = [bucket for bucket in plan.buckets if len(bucket) == 3] if plan else []
    sides = sorted(min(width, height) for width, height, _ in buckets)
    shown = (sides[0], int(statistics.median(sides)), sides[-1]) if sides else ()
    return DatasetFacts(num_pictures=started.num_pictures, num_heldout=started.num_heldout, shorter_side_px=shown)


def _thinned(points: list[HeldoutPoint]) -> list[HeldoutPoint]:
    """At most as many as a card has room for, the first and the last always."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(number * (len(points) - 1) / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]


# Samples.


def _samples(run: Run, log: list[Event]) -> tuple[list[Sample], list[bytes], list[str]]:
    """The previews of a run, the first and the last of each prompt before those between; likely copies are left out."""
    events = [event for event in log if isinstance(event, Sampled)]
    copies = [event for event in events if is_copy(event)]
    events = [event for event in events if event not in copies]
    ends = {event.step for event in (*events[:1], *events[-1:])}
    chosen = sorted(events, key=lambda event: (event.step not in ends, event.step))[:MOST_SAMPLES]
    samples: list[Sample] = []
    pictures: list[bytes] = []
    seed = run.config().preview.seed
    for event in sorted(chosen, key=lambda event: (event.step, event.file)):
        if picture := _preview(run, event.file):
            prompt = plain(event.prompt, _LONGEST_PROMPT).replace("\r", " ")
            name = f"samples/{len(pictures):02}.webp"
            samples.append(Sample(picture=name, prompt=prompt, seed=seed, step=event.step))
            pictures.append(picture)
    notes = [f"{len(copies)} previews look like training pictures and were left out."] if copies else []
    return samples, pictures, notes


def _preview(run: Run, file: str) -> bytes:
    """A preview as a card holds it; nothing for a file outside the run's folder or a file that doesn't open."""
    path = run.inside(file)
    try:
        return reading.webp(data.open_image(path)) if path else b""
    except (UserError, OSError, ValueError):
        return b""


# Stacks.


def _of_stack(source: Source, config: Config, wishes: Wishes) -> Made:
    """The card of a stack or a batch: LoRAs by hash and name, no file of this machine."""
    if isinstance(config, BatchConfig):
        return _of_batch(source, config, wishes)
    assert isinstance(config, StackConfig), "a training has a card of its own kind"
    settings = StackConfig.model_validate(_travelling(_hashed(config)))
    base = _base(settings.base, {})
    card = _said(
        wishes, kind="stack", title=source.name[:200], head=_head(source), base=base, loras=_named(settings.adapters),
    )  # fmt: skip
    return Made(reading.packed(card, settings), [])


def _of_batch(source: Source, config: BatchConfig, wishes: Wishes) -> Made:
    """The card of a batch; the run whose steps it draws stays at home, but for its name where that was asked for."""
    notes = []
    stacks = [_hashed(StackConfig.model_construct(adapters=stack)) for stack in config.stacks]
    steps_of = places.last_name(config.steps_of) if config.steps_of and wishes.with_names else None
    if config.steps_of and not steps_of:
        notes.append("steps_of names a run of yours and was left out.")
    values = config.model_dump(mode="json", exclude_none=True, exclude={"steps_of"})

    # Names and hashes stand for files of this machine.
    values |= {"stacks": [_travelling(stack)["adapters"] for stack in stacks]} if stacks else {}
    values |= {"base": places.base_name(config.base)} if config.base else {}
    values |= {"steps_of": steps_of} if steps_of else {}
    card = _said(
        wishes, kind="batch", title=source.name[:200], head=_head(source),
        loras=_named([choice for stack in stacks for choice in stack.adapters]),
    )  # fmt: skip
    return Made(reading.packed(card, BatchConfig.model_validate(values)), notes)


def _travelling(stack: StackConfig) -> dict[str, Any]:
    """A stack as it stands in a picture, and no path of any system in it."""
    from trainer.render.picture_metadata import travelling

    values = travelling(stack)
    for choice in values["adapters"]:
        kind, _, mask = choice["region"].strip().partition(" ")
        if kind == "mask" and not mask.startswith("data:"):
            choice["region"] = f"mask {places.last_name(mask.strip())}"
    return values | ({"base": places.base_name(stack.base)} if stack.base else {})


def _named(choices: Sequence[AdapterChoice]) -> list[dict[str, Any]]:
    """The LoRAs of a stack or of several by name and hash, each once."""
    by_hash = {choice.sha256: choice for choice in choices if choice.sha256}
    loras = [LoraOrigin(name=plain(one.name, 199), sha256=key) for key, one in by_hash.items()]
    return [lora.model_dump() for lora in loras[:MOST_LORAS]]


def _hashed(stack: StackConfig) -> StackConfig:
    """The stack with the hash and name of every LoRA that is here by its file."""
    return stack.model_copy(update={"adapters": tuple(_with_hash(choice) for choice in stack.adapters)})


def _with_hash(choice: AdapterChoice) -> AdapterChoice:
    if not choice.file:
        return choice
    name = choice.name or Path(choice.file).stem
    if choice.sha256 or not is_there(Path(choice.file)):
        return choice.model_copy(update={"name": name})
    info = lora_file.inspect(Path(choice.file))
    return choice.model_copy(update={"sha256": info.sha256, "name": choice.name or str(info.name)})
