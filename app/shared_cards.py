"""Cards on the page: those that are dropped, those that are kept beside the presets, and those made to be shared."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app import job_work, pending_imports, preset_choices, saved_stacks
from app.arrival import CARD, PRESET, Arrival
from app.context import Context
from app.texts import say
from trainer import card_file, files, preset_parts, presets
from trainer.card_file.reading import Opened
from trainer.cards import describing, keeping, places, sources, suiting
from trainer.cards.making import Wishes, make
from trainer.cards.sources import Source
from trainer.config import StackConfig, TrainConfig
from trainer.errors import ConfigError, DataError, UserError
from trainer.printing import plain, some
from trainer.report.html import sentence
from trainer.runs import Run


def offered(context: Context, path: Path) -> Arrival:
    """A dropped card, which waits to be kept unless it is kept already. Raises: ConfigError if it is damaged."""
    opened = card_file.read(path)
    if opened.digest in keeping.every():
        return _arrived(context, opened, path.name, [say("offer.card_is_here")])
    return Arrival(path.name, _what(opened), say("offer.nothing_kept"), offer=pending_imports.put_by(context, path))


def take(context: Context, path: Path) -> Arrival:
    """A card, kept under its digest. Raises: ConfigError if it can't be trusted."""
    opened = card_file.read(path)
    keeping.keep(path.read_bytes())
    return _arrived(context, opened, path.name, [say("offer.card_kept")])


def _arrived(context: Context, opened: Opened, file: str, notes: list[str]) -> Arrival:
    key = f"{CARD}{opened.digest}"
    sentences = [f"{sentence(describing.in_short(opened))}.", *missing(context, opened), *notes]
    return Arrival(file, _what(opened), " ".join(sentences), (target(opened), key), ("presets", key))


def _what(opened: Opened) -> str:
    author, title = plain(opened.card.author or "", 60), plain(opened.card.title, 120)
    return say("dropped.card_by", author=author, title=title) if author else say("dropped.card", title=title)


def target(opened: Opened) -> str:
    """What `Open` opens a card as."""
    return "preset" if isinstance(opened.settings, TrainConfig) else "card-stack"


def missing(context: Context, opened: Opened) -> list[str]:
    """A line for what of a card isn't here, by hash and where the card says it comes from."""
    settings = opened.settings
    is_here = settings.base in context.bases if isinstance(settings, StackConfig) else True
    if isinstance(settings, TrainConfig):
        is_here = bool(preset_choices.base_here(context, settings))
    return suiting.missing(opened.card, is_here, context.find_loras().keys())


# What a key of the Library means.


@dataclass(frozen=True)
class Kept:
    """A preset or a kept card."""

    name: str
    settings: TrainConfig | None  # of a training
    card: Opened | None
    paths: tuple[Path, ...]


def of_key(key: str) -> Kept:
    """What a key from the browser means. Raises: ConfigError, DataError for what is not here."""
    if key.startswith(CARD):
        opened = keeping.opened(key.removeprefix(CARD))
        settings = opened.settings if isinstance(opened.settings, TrainConfig) else None
        return Kept(plain(opened.card.title, 120), settings, opened, (keeping.every()[opened.digest],))
    name = key.removeprefix(PRESET)
    if not presets.has(name):
        raise DataError(say("preset.gone"))
    return Kept(plain(presets.title(name), 120), preset_choices.load(name), None, (presets.path_of(name),))


def every_key() -> list[str]:
    """The keys of every kept card, then of the user's own presets and those that ship."""
    own = [name for name, problem in presets.own().items() if not problem]
    shipped = [name for name in presets.names() if name not in own]
    return [*(f"{CARD}{digest}" for digest in keeping.every()), *(f"{PRESET}{name}" for name in [*own, *shipped])]


def is_own(key: str) -> bool:
    """Whether a key is of a kept card or of a preset of the user's own, not of a preset that ships."""
    return key.startswith(CARD) or key.removeprefix(PRESET) in presets.own()


def picture(context: Context, opened: Opened) -> Path | None:
    """The last sample of a card as a file that thumbnails are made of; None for a card without any."""
    if not opened.pictures:
        return None
    # Written once: a card that changes has another digest.
    path = context.workspace / "cache" / "cards" / f"{opened.digest}.webp"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, opened.pictures[-1])
    return path


# Training by a card.


def for_form(context: Context, file: Path) -> tuple[TrainConfig, str]:
    """A card's settings as the form takes them, on a base that is here if there is one; and the card's digest.

    Raises: ConfigError.
    """
    opened = card_file.read(file)
    config, _ = places.forgotten(opened.train, places.needed(opened.train))
    return config.model_copy(update={"base": preset_choices.base_here(context, config) or config.base}), opened.digest


def source_of(preset: str) -> str:
    """The digest of the card that a preset was made of, or the key of a preset that ships with a purpose; else ""."""
    if card := keeping.card_of(preset):
        return card.stem
    return f"{PRESET}{preset}" if preset_parts.purpose(preset) != "unknown" else ""


def go_with(context: Context, config_text: str, source: str) -> None:
    """Have the job that is started next with these settings know its card, and what its preset's pictures teach.

    `source` is as `source_of` gives it, from the browser; nothing is known where the card is gone.
    """
    # By the text of the settings, as the job has no number yet. What an earlier job with the same text had is replaced
    # or removed.
    place = job_work.card_of(context.workspace / "configs", config_text)
    card = keeping.every().get(source)
    kind = preset_parts.purpose(source.removeprefix(PRESET)) if source.startswith(PRESET) else "unknown"
    for path, raw in (
        (place, card.read_bytes() if card else b""),
        (job_work.kind_of(place), kind.encode() if kind != "unknown" else b""),
    ):
        if not raw:
            path.unlink(missing_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            files.write(path, raw)


# Sharing.


def shared(context: Context, kind: str, key: str, wishes: Wishes) -> tuple[Path, list[str]]:
    """The card of a run, a LoRA, a saved stack or a preset where the browser may fetch it, and what was left out of it.

    Raises: UserError.
    """
    if kind == "runs":
        source = sources.of(str(_run(context, key)))
    elif kind == "stacks":
        source = sources.of(str(_stack(context, key)))
    elif kind == "loras":
        source = sources.of(str(context.lora(key).path))
    elif kind == "presets" and key.startswith(CARD):
        source = sources.of(str(of_key(key).paths[0]))
    elif kind == "presets" and (config := of_key(key).settings):
        source = Source("preset", key.removeprefix(PRESET), config)
    else:
        raise DataError(say("card.nothing_to_share"))

    # Read once as whoever gets it reads it, so that no card leaves that would be refused there.
    made = make(source, wishes)
    opened = card_file.opened(made.raw, say("where.card"))
    folder = context.workspace / "cache" / "shared"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{keeping.preset_name(opened.card.title)}-{opened.digest[:12]}{card_file.SUFFIX}"
    files.write(path, made.raw)
    return context.published(path), made.notes


def can_be_shared(context: Context, kind: str, key: str) -> bool:
    """Whether a thing of the Library has settings that a card can hold."""
    if kind == "loras":
        return context.lora(key).recipe is not None
    return kind in ("runs", "presets", "stacks")


def _stack(context: Context, key: str) -> Path:
    """The file of a saved stack. Raises: DataError if it is not here."""
    path = next((path for path in saved_stacks.every(context) if path.name == key), None)
    if path is None:
        raise DataError(say("card.stack_gone"))
    return path


def keep_preset(key: str) -> str:
    """A kept card as a preset of the user's own; its name. Raises: ConfigError."""
    kept = of_key(key)
    if kept.card is None:
        raise ConfigError(say("card.is_preset"))
    return presets.add(keeping.preset_name(kept.card.card.title), keeping.preset_text(kept.card)).stem


def line(kept: Kept) -> str:
    """A preset or card in a line."""
    if kept.card:
        author, facts = kept.card.card.author, describing.in_short(kept.card)
        return say("card.by", author=plain(author, 60), facts=facts) if author else facts
    config = kept.settings
    assert config is not None
    return say(
        "preset.facts_and_base",
        steps=config.max_steps,
        rank=config.adapter.rank,
        px=config.resolution_px,
        base=some([config.base]),
    )


def named(context: Context, key: str) -> TrainConfig | None:
    """The settings behind a key of presets, or of a run as `run:NAME`; None for what has none."""
    with suppress(UserError):
        if key.startswith("run:"):
            return Run(_run(context, key.removeprefix("run:"))).config()
        return of_key(key).settings
    return None


def _runs(context: Context) -> list[Path]:
    return [path.parent for path in context.runs.glob("[!.]*/config.toml")]


def _run(context: Context, name: str) -> Path:
    """The folder of a run of this server. Raises: DataError for a name that none has."""
    folder = next((path for path in _runs(context) if path.name == name), None)
    if folder is None:
        raise DataError(say("card.run_gone"))
    return folder


def choices(context: Context) -> list[tuple[str, str]]:
    """What a preset can be compared with, as (label, key)."""
    found = []
    for key in every_key():
        with suppress(UserError):
            if (kept := of_key(key)).settings is not None:
                found.append((say("card.card_choice", name=kept.name) if kept.card else kept.name, key))
    return found + [
        (say("card.run_choice", name=plain(path.name, 80)), f"run:{path.name}") for path in sorted(_runs(context))
    ]
