"""Renaming things of the library, throwing them away and putting them back.

What a job works on stays where it is. A run keeps its folder, by whose name its job finds it, and so does a batch its
pictures: they get a title. A LoRA that lies in a run's folder is put into the library under its new name, and the run
keeps its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from app import batch_pictures, item_notes, library_items
from app.arrival import CARD, PRESET
from app.job_table import Job
from app.jobs import LIVE, WAITING
from app.library_items import BATCH_PICTURES, Item, Shelf
from app.texts import say
from app.trash import Entry
from trainer import presets, runs, system, unique_names
from trainer.config.parsing import from_toml
from trainer.data.uploads import safe_stem
from trainer.errors import DataError, RunError, UserError
from trainer.printing import plain, some

_HELDOUT = "-heldout"


# Names.


def rename(shelf: Shelf, item: Item, name: str) -> str:
    """The key of the thing under its new name. Raises: DataError, RunError for a name that is taken or none."""
    _refuse_shipped(item)
    name = name.strip()
    if not name:
        raise DataError(say("item.name_empty"))
    if len(name) > item_notes.LONGEST_TITLE:
        raise DataError(say("item.name_too_long", num=len(name), most=item_notes.LONGEST_TITLE))
    try:
        # What must keep its place gets a title instead.
        if item.kind == "runs" or item.key.startswith((BATCH_PICTURES, CARD)):
            item_notes.change(shelf.notes, item.kind, item.key, title="" if name == item.key else name)
            return item.key
        if item.kind == "presets":
            presets.retitle(item.key.removeprefix(PRESET), name)
            return item.key
        key = {"loras": _rename_lora, "datasets": _rename_dataset}.get(item.kind, _rename_files)(shelf, item, name)
    except FileExistsError:
        raise DataError(say("item.name_taken", name=plain(name, 80))) from None
    except OSError as error:
        raise DataError(say("item.cannot_rename", reason=error.strerror or error)) from None
    # What was said of it goes along.
    item_notes.move(shelf.notes, item.kind, item.key, key)
    return key


def _rename_lora(shelf: Shelf, item: Item, name: str) -> str:
    # `safe_stem` takes an ending off, which a name such as `fox v1.5` hasn't: so it is given one.
    target = shelf.context.loras / f"{safe_stem(f'{name}.x')}.safetensors"
    own = _of_library(shelf, item)
    if target in own:
        return item.key
    _refuse_used(shelf, own)
    # A file that lies in a run alone stays there, and the library gets a second one under the new name.
    if own:
        unique_names.put(own[0], [target])
    else:
        shelf.context.loras.mkdir(exist_ok=True)
        with unique_names.temporary(shelf.context.loras, ".tmp") as unnamed:
            system.link_or_copy(item.paths[0], unnamed)
            unique_names.put(unnamed, [target])
    shelf.context.find_loras()
    return item.key


def _rename_dataset(shelf: Shelf, item: Item, name: str) -> str:
    """A dataset's folder, and with it the set that is held out of it."""
    wanted = runs.slug(name)
    if wanted == item.key:
        return wanted
    folder = item.paths[0]
    _refuse_used(shelf, [folder])
    if unfinished := _can_go_on(shelf, folder):
        raise DataError(say("item.still_used", name=plain(item.key, 80), jobs=some(unfinished)))
    # Both new names are free before anything is moved. On a disk that doesn't tell case apart, a name that differs in
    # case alone is the same folder.
    for tail in ("", _HELDOUT):
        source, target = folder.with_name(f"{item.key}{tail}"), folder.with_name(f"{wanted}{tail}")
        if os.path.lexists(target) and not (source.exists() and os.path.samefile(source, target)):
            raise FileExistsError(str(target))
    for tail in (_HELDOUT, ""):
        source = folder.with_name(f"{item.key}{tail}")
        if source.is_dir():
            unique_names.put(source, [folder.with_name(f"{wanted}{tail}")])
    return wanted


def _rename_files(shelf: Shelf, item: Item, name: str) -> str:
    """A picture, a sheet with its cells; or a stack, with the picture beside it."""
    first, *beside = item.paths
    target = first.with_name(f"{safe_stem(f'{name}.x')}{first.suffix}")
    if target == first:
        return item.key
    unique_names.put(first, [target])
    for path in beside:
        system.replace(path, target.with_suffix(path.suffix))
    return target.name


# The trash.


def throw(shelf: Shelf, item: Item) -> Entry:
    """The thing in the trash. Raises: DataError, RunError for what a job works on."""
    _refuse_shipped(item)
    paths: Sequence[Path] = item.paths
    if item.kind == "loras":
        paths = _of_library(shelf, item)
        if not paths:
            raise DataError(say("item.lora_of_run"))
    if item.kind == "runs":
        _refuse_training(shelf, item.key)
    else:
        _refuse_used(shelf, paths)
    if item.key.startswith(BATCH_PICTURES):
        # The batch knows first, or one that goes on would draw it again.
        _, job, name = item.key.split("/", 2)
        batch_pictures.note_thrown(shelf.context.batches / job, [name])
        return shelf.trash.throw(item.kind, item.key, item.name, paths)  # no other gets its name, nor what was said
    entry = shelf.trash.throw(item.kind, item.key, item.name, paths)
    item_notes.move(shelf.notes, item.kind, item.key, _key_in_trash(entry))
    return entry


def restore(shelf: Shelf, entry_id: str) -> tuple[str, str]:
    """Kind and key of a thing that was put back. Raises: DataError."""
    entry = shelf.trash.entry(entry_id)
    # A run's job finds it by its folder's name, so it can't come back under another.
    if entry.kind == "runs" and any(os.path.lexists(shelf.context.workspace / place) for place in entry.places):
        raise DataError(say("trash.run_of_same_name", name=plain(entry.key, 80)))
    places = shelf.trash.restore(entry_id)
    if entry.key.startswith(BATCH_PICTURES):
        return entry.kind, library_items.picture_key(shelf.context, places[0]) if places else entry.key
    key = entry.key if entry.kind == "loras" or not places else _key_of(entry, places[0])
    item_notes.move(shelf.notes, entry.kind, _key_in_trash(entry), key)
    return entry.kind, key


def _key_of(entry: Entry, place: Path) -> str:
    """What a thing goes by where it lies again; a card by its digest, wherever that is."""
    if entry.kind != "presets":
        return place.name
    return entry.key if entry.key.startswith(CARD) else f"{PRESET}{place.stem}"


def _key_in_trash(entry: Entry) -> str:
    """What a note goes by while its thing is in the trash: another may take the name meanwhile."""
    return f"in the trash: {entry.id}"


# What is in use.


def _refuse_shipped(item: Item) -> None:
    """Raises: DataError for a preset that ships."""
    if item.kind == "presets" and not item.paths:
        raise DataError(say("item.preset_fixed"))


def _of_library(shelf: Shelf, item: Item) -> list[Path]:
    """The files of a LoRA that lie in the library and not in a run."""
    return [path for path in item.paths if path.is_relative_to(shelf.context.loras)]


def _refuse_training(shelf: Shelf, name: str) -> None:
    """Raises: RunError for a run that trains or waits to."""
    at_work = any(job.name == name for job in _at_work(shelf))
    if at_work or runs.Run(shelf.context.runs / name).state() == "running":
        raise RunError(say("item.run_at_work", name=plain(name, 80)))


def _refuse_used(shelf: Shelf, paths: Sequence[Path]) -> None:
    """Raises: RunError for files and folders that a job works on or waits for."""
    for job in _at_work(shelf):
        if any(path.is_dir() and str(path) in _folders(job) or path.is_file() and str(path) in job.config
               for path in paths):  # fmt: skip
            raise RunError(say("item.job_at_work", job=plain(job.name, 80)))


def _at_work(shelf: Shelf) -> list[Job]:
    return [job for job in shelf.context.runner.every() if job.state in (*LIVE, *WAITING)]


def _folders(job: Job) -> list[str]:
    """The datasets of a training job."""
    try:
        data = from_toml(job.config, say("where.job")).get("data")
    except UserError:  # a batch's table
        return []
    return [str(data.get(key)) for key in ("folder", "heldout", "regularisation")] if isinstance(data, dict) else []


def _can_go_on(shelf: Shelf, dataset: Path) -> list[str]:
    """The runs on a dataset that were stopped and can go on."""
    names = shelf.index.trained_on(dataset)
    return [name for name in names if runs.Run(shelf.context.runs / name).state() != "finished"]
