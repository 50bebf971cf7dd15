"""What a start would do, before it is started: pictures that train, base, length, disk, and all that stands against it.

Cheap enough to be asked at every change of a setting: no torch, no model; of a large set a few pictures are decoded
each time, until all are known. `at_start` asks everything that the trainer itself refuses, so that nothing is queued
that must fail.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app import form_words, path_gate, preset_choices, start_choices
from app.context import Context
from app.form_problems import Cure, Problem, of_form, of_sentence
from app.job_table import Job
from app.opened_pictures import OpenedPictures
from app.texts import say, say_num
from trainer import bases, console, families, presets, run_facts, runs
from trainer.card_file.contents import DatasetFacts
from trainer.cards import keeping, suiting
from trainer.config import TrainConfig, parse
from trainer.config.parsing import from_toml
from trainer.data import sources
from trainer.data.picture_file import first_names
from trainer.errors import ConfigError, UserError
from trainer.printing import plain

_BUDGET_S = 0.25  # for decoding pictures, each time
_LITTLE_DISK_BYTES = 2 << 30
_SHORTEST_TRIGGER = 3
_MOST_RUNS = 12  # that are looked through for a run that is alike


@dataclass(frozen=True)
class Forecast:
    """What will happen; `problems` are what a start must fail of, `notes` what is to be known."""

    headline: str
    facts: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    num_unseen: int = 0  # pictures that were not decoded yet
    num_used: int = 0  # pictures that train


@dataclass(frozen=True)
class Wish:
    """What the form holds: its settings, the chosen sets, and what it was filled with, by dotted path."""

    values: dict[str, Any]
    dataset: str
    heldout: str
    trigger: str
    filled: Mapping[str, Any]
    card: str = ""  # the digest of the card that it was filled from


def look(context: Context, wish: Wish, seen: OpenedPictures) -> Forecast:
    """What a start would do as the form stands."""
    # The settings. Where they don't go together, the base and the pictures are judged all the same.
    config, problems = _config(context, wish)
    is_whole = config is not None
    config = config or _base_and_pictures(context, wish)
    if config is None:
        return Forecast(say("forecast.cannot_train"), problems=tuple(problems))

    # The base and the pictures.
    problems += _base_problems(context, config)
    if not wish.dataset:
        text = say("forecast.no_dataset")
        return Forecast(say("forecast.choose_dataset"), problems=(Problem(text, "data.folder"), *problems))
    pictures = _pictures(config, wish, seen)
    problems += pictures.problems

    # What can be said of the whole.
    facts = [_base_fact(config)]
    if is_whole:
        facts += [_start_fact(config), _length_fact(config, pictures.num_used), _disk_fact(context, config)]
    headline = _headline(pictures)
    return Forecast(
        headline,
        tuple(filter(None, facts)),
        tuple(problems),
        (*pictures.notes, *_card_notes(wish.card, config, pictures.facts), *_disk_notes(context)),
        pictures.num_unseen,
        pictures.num_used,
    )


def at_start(context: Context, wish: Wish, config: TrainConfig, run: runs.Run | None = None) -> list[Problem]:
    """What the trainer refuses these settings for; it decodes every picture and loads torch.

    `run` is the run that was begun and goes on, if there is one.
    """
    from trainer import session

    try:
        session.refuse(config, run=run)
    except UserError as error:
        head, *lines = str(error).splitlines()
        lines = [line.strip() for line in lines] if head.endswith(":") and lines else [str(error)]
        return [of_sentence(_without_places(context, line), wish.values, wish.filled) for line in lines]
    return []


def check_job(context: Context, job: Job, goes_on: bool = False) -> None:
    """Refuse a training that must fail as it was asked for, as when its pictures are gone. Raises: UserError."""
    config = parse(TrainConfig, from_toml(job.config, say("where.job")), say("where.job"))
    run = runs.Run(context.runs / job.name)
    # A run that was never begun is asked about like a new one.
    is_begun = goes_on and run.config_file.is_file()
    wish = Wish(config.model_dump(mode="json"), "", "", "", {})
    if problems := at_start(context, wish, config, run if is_begun else None):
        raise ConfigError(say("train.cannot_start", problems=" ".join(problem.text for problem in problems[:3])))


def _without_places(context: Context, text: str) -> str:
    """The text without the server's folders, which are nobody's business."""
    return text.replace(f"{context.datasets}/", "").replace(f"{context.workspace}/", "")


# Settings.


def _config(context: Context, wish: Wish) -> tuple[TrainConfig | None, list[Problem]]:
    """The settings with the folders of this server, and what is wrong with them."""
    names = context.dataset_names()
    # Names become folders, of sets that are here alone: a browser may name anything.
    data = {**wish.values.get("data", {}), "trigger": wish.trigger.strip()}
    data["folder"] = str(context.datasets / wish.dataset) if wish.dataset in names else ""
    data["heldout"] = str(context.datasets / wish.heldout) if wish.heldout in names else ""
    config, problems = of_form({**wish.values, "data": data}, wish.filled)
    if config is None:
        return None, problems
    try:  # the base is judged apart, and LoRAs that are trained against are read at the start
        ours = {"base": context.bases[0], "against": type(config.against)()}
        config = path_gate.checked(context, config.model_copy(update=ours)).model_copy(
            update={"base": config.base, "against": config.against}
        )
    except UserError as error:
        problems.append(of_sentence(str(error), wish.values, wish.filled))
    return config, problems


def _base_and_pictures(context: Context, wish: Wish) -> TrainConfig | None:
    """What base and pictures are judged by where the form's settings don't go together; None if not even these do."""
    own = {key: wish.values[key] for key in ("base", "family", "resolution_px") if key in wish.values}
    folder = str(context.datasets / wish.dataset) if wish.dataset in context.dataset_names() else ""
    # A preset's settings go together, and stand for those that don't.
    sound = preset_choices.load(preset_choices.first()).model_dump(mode="json")
    try:
        return TrainConfig.model_validate({**sound, **own, "data": {"folder": folder, "trigger": wish.trigger.strip()}})
    except ValidationError:
        return None


def _base_problems(context: Context, config: TrainConfig) -> list[Problem]:
    """What stands against the base: it isn't here, is of another family, or is no base."""
    name = Path(config.base).name
    # Whether it is here.
    if config.base not in context.bases:
        base = plain(config.base, 80)
        if instead := preset_choices.base_here(context, config):
            return [
                Problem(
                    say("forecast.base_gone", base=base),
                    "base",
                    Cure(say("forecast.use", base=Path(instead).name), {"base": instead}),
                )
            ]
        text = say("forecast.base_gone_add", base=base)
        like = preset_choices.like(context, config)
        return [
            Problem(text, "base", Cure(say("forecast.take", preset=presets.title(like)), preset=like) if like else None)
        ]

    # Its family, by what lies there.
    family = preset_choices.family(config.base)
    if family != config.family:
        title = families.registry()[config.family].title
        return [
            Problem(
                say(
                    "forecast.other_family",
                    name=plain(name, 80),
                    theirs=families.registry()[family].title,
                    family=title,
                ),
                "base",
                Cure(say("forecast.set_family", family=families.registry()[family].title), {"family": family}),
            )
        ]
    try:
        place, _ = bases.place(config.base)
        if place.is_dir():
            folder = bases.resolve(config.base, families.registry()[config.family])
            # A resolution that the autoencoder would round, or that the denoiser has no positions for.
            bases.check_pixels(folder, {"resolution_px": config.resolution_px})
    except UserError as error:
        return [of_sentence(str(error), config.model_dump(mode="json"), {})]
    return []


# Pictures.


@dataclass(frozen=True)
class _Pictures:
    num_used: int
    num_found: int
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    num_unseen: int = 0
    facts: DatasetFacts = DatasetFacts()


def _pictures(config: TrainConfig, wish: Wish, seen: OpenedPictures) -> _Pictures:
    """How many pictures train, and why the others don't."""
    try:
        survey = sources.survey(Path(config.data.folder), config.data, "data.folder")
    except UserError as error:
        return _Pictures(0, 0, (of_sentence(str(error), {}, {}),))

    # Of what is there, what trains.
    reasons, num_unseen = seen.reasons([picture.path for picture in survey.pictures], _BUDGET_S)
    shut = [picture.name for picture in survey.pictures if reasons.get(picture.path) or picture.refusal]
    bare = [picture.name for picture in survey.pictures if not picture.text and picture.name not in shut]
    num_found = len(survey.pictures) + survey.num_foreign
    lacking = [] if config.data.trigger else bare
    num_used = len(survey.pictures) - len(shut) - len(lacking)

    # Why the others don't.
    causes = []
    if lacking:
        word = trigger_for(wish.dataset)
        text = say_num("forecast.no_caption", len(lacking), names=_first(lacking))
        causes.append(
            Problem(text, "data.trigger", Cure(say("forecast.use_trigger", trigger=word), {"data.trigger": word}))
        )
    if shut:
        first, why = next((p.name, reasons.get(p.path) or p.refusal) for p in survey.pictures if p.name in shut)
        causes.append(
            Problem(say("forecast.shut", num=len(shut), names=_first(shut), first=first, why=plain(why, 200)))
        )
    if survey.num_foreign:
        causes.append(Problem(say("forecast.foreign", num=survey.num_foreign)))
    if not num_found:
        causes = [Problem(say("forecast.no_pictures_yet"), "data.folder")]

    # Too few are a problem; fewer than all are a note.
    problems = tuple(causes) if num_used <= 0 else ()
    notes = list(causes) if num_used > 0 else []
    if num_used > 0 and (apart := max(config.validation.leave_out, config.validation.folds)) >= num_used:
        key = "validation.leave_out" if config.validation.leave_out else "validation.folds"
        label, fifth = form_words.labels()[key], max(num_used // 5, 2 if key.endswith("folds") else 1)
        cure = Cure(say("settings.set_to", value=fifth), {key: fifth}) if fifth < num_used else None
        problems = (Problem(say("forecast.too_many_apart", label=label, apart=apart, num=num_used), key, cure),)

    # What else is to be known.
    if config.data.heldout and config.data.heldout == config.data.folder:
        text = say("forecast.heldout_is_training")
        notes.append(Problem(text, "data.heldout", Cure(say("forecast.use_none"), {"data.heldout": ""})))
    if config.data.trigger and bare:
        notes.append(Problem(say_num("forecast.on_trigger", len(bare), names=_first(bare))))

    # What a card's own dataset is compared with.
    texts = [picture.text for picture in survey.pictures if picture.name not in shut]
    facts = run_facts.of_captions(texts, config.data.trigger).model_copy(update={"num_pictures": max(num_used, 0)})
    return _Pictures(max(num_used, 0), num_found, problems, tuple(notes), num_unseen, facts)


def _card_notes(digest: str, config: TrainConfig, own: DatasetFacts) -> tuple[Problem, ...]:
    """Where the chosen set is unlike the set of the card that the form was filled from."""
    if not digest or not own.num_pictures:
        return ()
    try:
        card = keeping.opened(digest).card
    except UserError:  # removed meanwhile
        return ()
    return tuple(Problem(line) for line in suiting.differences(config, card.evidence, card.head, own))


def _first(names: list[str]) -> str:
    return plain(first_names(names), 200)


def trigger_for(dataset: str) -> str:
    """A word for a dataset that has none: its name without signs, long enough to be a word."""
    word = re.sub(r"\W|_", "", dataset.lower())[:40]
    return word if len(word) >= _SHORTEST_TRIGGER else f"{word}style"


def _headline(pictures: _Pictures) -> str:
    used, found = pictures.num_used, pictures.num_found
    if not found:
        return say("forecast.none_train")
    all_of = say("forecast.one_trains") if found == 1 else say("forecast.all_train", num=found)
    return all_of if used == found else say("forecast.some_train", num=used, all=found)


# The rest of it.


def _base_fact(config: TrainConfig) -> str:
    return say("forecast.on_base", base=plain(Path(config.base).name, 60))


def _start_fact(config: TrainConfig) -> str:
    """What it goes on from; "" where it begins anew."""
    name = start_choices.of_source(config.start.source)
    return say("forecast.goes_on_from", name=name) if name else ""


def _length_fact(config: TrainConfig, num_pictures: int) -> str:
    """Steps, and how often each picture is seen."""
    steps = say_num("forecast.steps", config.max_steps)
    if not num_pictures:
        return steps
    times = config.max_steps * config.batch_size * config.accumulation / num_pictures
    if times >= 2:
        return say("forecast.seen_often", steps=steps, times=times)
    return say("forecast.seen_once", steps=steps) if times >= 0.75 else say("forecast.seen_less", steps=steps)


def _disk_fact(context: Context, config: TrainConfig) -> str:
    """What is free, and what a run like this took, if there was one."""
    gib = _free_bytes(context) / (1 << 30)
    if needed := _needed_bytes(context, config):
        return say("forecast.disk_of", need=console.memory(needed), gib=gib)
    return say("forecast.disk", gib=gib)


def _needed_bytes(context: Context, config: TrainConfig) -> int:
    """The bytes of the newest finished run of the same base and adapter; 0 where there is none to tell by."""
    for run in runs.every(context.runs)[:_MOST_RUNS]:
        try:
            same = _adapter_of(run.config_file, run.config_file.stat().st_mtime_ns) == (config.base, config.adapter)
            # A run that has no LoRA yet doesn't say what a whole one takes.
            if same and run.lora_file.is_file():
                return _size(run.folder, run.folder.stat().st_mtime_ns)
        except OSError:
            continue
    return 0


# The time is part of the key, so that a run that has changed is read anew; for `_size` too.
@lru_cache(maxsize=256)
def _adapter_of(file: Path, _changed_ns: int) -> tuple[str, object]:
    """The base and adapter of a run; empty for a run that can't be read."""
    try:
        config = runs.Run(file.parent).config()
    except UserError:
        return "", None
    return config.base, config.adapter


@lru_cache(maxsize=256)
def _size(folder: Path, _changed_ns: int) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _disk_notes(context: Context) -> tuple[Problem, ...]:
    free = _free_bytes(context)
    if free >= _LITTLE_DISK_BYTES:
        return ()
    return (Problem(say("forecast.little_disk", mib=free / (1 << 20))),)


def _free_bytes(context: Context) -> int:
    return shutil.disk_usage(context.workspace).free
