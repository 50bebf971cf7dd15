"""Training again with new pictures: whose recipe it is, which old LoRA it is compared with, and what would happen.

What is trained again is named as the Library names it, by its kind and key: a run, a LoRA of ours, or the card of a
training whose LoRA is here. What is done once it is trained is `trainer.cards.retraining`.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import branch_form, forecast, form_problems, item_details, job_work, shared_cards, train_settings
from app.context import Context
from app.forecast import Forecast, Wish
from app.form_problems import Cure, Problem
from app.opened_pictures import OpenedPictures
from app.texts import say, say_num
from trainer import families, runs
from trainer.cards import to_compare
from trainer.config import StartConfig, TrainConfig
from trainer.errors import DataError, UserError
from trainer.lora_file import LoraInfo
from trainer.printing import plain

KINDS = ("runs", "loras", "presets")


@dataclass(frozen=True)
class Again:
    """What is trained again."""

    key: str  # runs/fox, loras/SHA256, presets/card:DIGEST
    name: str  # as people know it
    old: LoraInfo


def of(context: Context, key: str) -> Again:
    """What a key means. Raises: DataError, ConfigError for what isn't here, or is nothing that can be compared with."""
    kind, _, name = key.partition("/")
    loras = context.find_loras()
    match kind:
        case "runs":
            run = _run(context, name)
            path, _ = run.best(context.logs.read(run.events_file))
            files = {(file.parent, file.name): info for info in loras.values() for file in (info.path, *info.copies)}
            old, title = files.get((run.folder, path.name)), plain(name, 80)
        case "loras":
            old = loras.get(name)
            title = plain(old.name, 80) if old else plain(name, 12)
            if old is not None and old.recipe is None:
                raise DataError(say("again.no_recipe", name=title))
        case "presets":
            kept = shared_cards.of_key(name)
            if kept.card is None or kept.settings is None:
                raise DataError(say("again.no_card"))
            made = [lora.sha256 for lora in kept.card.card.loras if lora.role == "made"]
            old, title = next((loras[sha256] for sha256 in made if sha256 in loras), None), kept.name
        case _:
            raise DataError(say("library.nothing_to_open"))
    if old is None:
        raise DataError(say("again.no_lora", name=title))
    return Again(key, title, old)


def is_possible(context: Context, kind: str, key: str) -> bool:
    """Whether a thing of the Library can be trained again."""
    if kind not in KINDS:
        return False
    try:
        settings(context, f"{kind}/{key}")
        of(context, f"{kind}/{key}")
    except (UserError, OSError):
        return False
    return True


def settings(context: Context, key: str) -> tuple[TrainConfig, str]:
    """The recipe as the form takes it, without pictures, and the digest of the card that it is of.

    Raises: UserError for what has no recipe here.
    """
    kind, _, name = key.partition("/")
    if kind == "presets":
        config, card = shared_cards.for_form(context, shared_cards.of_key(name).paths[0])
    elif kind == "loras":
        config, card = train_settings.recipe_of(context, str(context.lora(name).path))
    else:
        config, card = _run(context, name).config(), ""
        config = config.model_copy(update={"base": context.base(config.base)})
    data = config.data.model_copy(update={"folder": "", "heldout": ""})
    return config.model_copy(update={"data": data, "start": StartConfig()}), card


def _run(context: Context, name: str) -> runs.Run:
    """The run of that name. Raises: DataError."""
    run = next((run for run in runs.every(context.runs) if run.name == name), None)
    if run is None:
        raise DataError(say("library.gone"))
    return run


# What would happen.


def look(context: Context, wish: Wish, key: str, seen: OpenedPictures) -> Forecast:
    """What a start would do as the form stands, and the comparison after it; `key` is "" for a start without one."""
    ahead = forecast.look(context, wish, seen)
    if not key:
        return ahead
    try:
        again = of(context, key)
    except UserError as error:
        return dataclasses.replace(ahead, problems=(*ahead.problems, Problem(_sentence(str(error)))))

    # What it is compared on.
    problems, facts, notes = [], [], []
    left_out = wish.values.get("validation", {}).get("leave_out")
    if wish.heldout:
        facts.append(say("again.on_heldout_set"))
    elif num := left_out if isinstance(left_out, int) and left_out > 0 else to_compare.num_held_out(ahead.num_used):
        facts.append(say_num("again.held_out", num))
    elif ahead.num_used:
        problems.append(Problem(say_num("again.too_few", ahead.num_used), "data.heldout"))

    # Whether the old one fits, and knows the pictures.
    family = families.registry().get(str(again.old.family))
    if family and family.name != wish.values.get("family"):
        cure = Cure(say("forecast.set_family", family=family.title), {"family": family.name})
        problems.append(Problem(say("again.other_family", name=again.old.name, family=family.title), "family", cure))
    if wish.dataset and wish.dataset == item_details.trained_on(again.old):
        notes.append(Problem(say("again.same_pictures", name=plain(again.old.name, 80)), "data.folder"))
    return dataclasses.replace(
        ahead, facts=(*ahead.facts, *facts), problems=(*ahead.problems, *problems), notes=(*ahead.notes, *notes)
    )


def at_start(context: Context, wish: Wish, key: str, config: TrainConfig) -> tuple[TrainConfig, list[Problem]]:
    """The settings to start with, and what the trainer refuses them for; it decodes every picture and loads torch."""
    if key:
        from trainer.cards import retraining

        try:
            config = retraining.with_heldout(config)
            retraining.refuse(config, of(context, key).old.path)
        except UserError as error:
            return config, [form_problems.of_sentence(str(error), wish.values, wish.filled)]
    return config, forecast.at_start(context, wish, config)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


# The job.


def go_with(context: Context, config: TrainConfig, config_text: str, key: str) -> None:
    """Have the job that is started next with these settings be compared with the old LoRA, or with none.

    A copy lies beside its card until it begins, so that the old one may be renamed or thrown away. Raises: UserError.
    """
    folder = job_work.old_of(job_work.card_of(context.workspace / "configs", config_text))
    if not key:
        shutil.rmtree(folder, ignore_errors=True)
        return
    from trainer.cards import retraining  # loads torch

    old = of(context, key).old
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        pictures = _pictures_of(context, old)
        to_compare.keep(old.path, folder, retraining.seen_in(pictures, config) if pictures else 0)
    except OSError as error:
        raise DataError(say("again.not_kept", name=old.name, reason=error.strerror or error)) from None


def _pictures_of(context: Context, old: LoraInfo) -> Path | None:
    """The dataset that the old one was trained on, if it is still here."""
    name = item_details.trained_on(old)
    return context.datasets / name if name and name in context.dataset_names() else None


def awaited(context: Context, config_text: str, run: runs.Run) -> str:
    """The name of the LoRA that a training will be compared with; "" for none, or where it was compared."""
    old = to_compare.of_run(run)
    if old is None:
        old = to_compare.kept(job_work.old_of(job_work.card_of(context.workspace / "configs", config_text)))
    elif not to_compare.is_to_do(run):
        return ""
    return plain(old.stem, 80) if old else ""


def changes_of(context: Context, key: str, family: str, from_old: bool) -> dict[str, Any]:
    """Settings by dotted path with which a training begins with the old LoRA, or anew. Raises: UserError."""
    if not from_old:
        return {"start.source": "", "start.optimizer": False}
    old = of(context, key).old
    return branch_form.of_lora(context, old.sha256, family) | {"start.source": old.sha256}
