"""What the Dataset tab shows of a set: every picture with its caption and what is to know of it, and what will train.

All of it is sent at once, as plain data, and filtered in the browser (`dataset_gallery.js`); names that come back from
there are looked up here. The files beside the pictures are read anew each time: an edit made elsewhere is seen.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app import dataset_checks, scripts
from app.context import Context
from app.dataset_measures import Look, Looks
from app.texts import say, say_num
from trainer import files
from trainer.config import DataConfig
from trainer.data import buckets, edits, open_image, picture_replacing, sources
from trainer.data.picture_file import PictureFile
from trainer.errors import DataError
from trainer.printing import plain

SCRIPT = scripts.read("dataset_gallery.js", "dataset_drop.js", "dataset_caption.js")
TEMPLATE = f"""<div class="pictures">
<div class="reasons" aria-live="polite"></div>
<div class="kinds" role="group" aria-label="{say("dataset.filters")}"></div>
<div class="buckets" role="group" aria-label="{say("check.buckets")}"></div>
<div class="tools"><input class="find" type="search" placeholder="{say("dataset.find")}"
  aria-label="{say("dataset.find")}" maxlength="200">
<span class="count" role="status"></span><span class="gap"></span>
<button type="button" class="everything">{say("dataset.mark_all")}</button>
<button type="button" class="unmark">{say("dataset.unmark")}</button>
<button type="button" class="mirror">{say("dataset.flip_marked")}</button>
<button type="button" class="discard">{say("dataset.delete_marked")}</button>
<button type="button" class="restore">{say("button.restore")}</button></div>
<div class="working" hidden><progress aria-label="{say("dataset.flipped")}"></progress>
<span class="done" role="status"></span>
<button type="button" class="sided">{say("button.show_them")}</button>
<button type="button" class="halt">{say("button.stop")}</button></div>
<div class="grid" role="group" aria-label="{say("word.pictures")}"></div>
<p class="empty" hidden>{say("dataset.none_like_this")}</p>
<div class="tags" role="group" aria-label="{say("dataset.tags")}"></div></div>"""
_PREVIEW_PX = 768
_HISTORY = 30


@dataclass(frozen=True)
class Reason:
    """Why some pictures will not train, and what can be done: (act, label) for each button."""

    text: str
    title: str
    names: tuple[str, ...]
    cures: tuple[tuple[str, str], ...]


@dataclass
class Scene:
    """A set as the page shows it; names are paths below its folder."""

    folder: Path
    pictures: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)  # why a caption can't be read
    unrepeated: set[str] = field(default_factory=set)  # in a folder with 0 repeats
    foreign: list[str] = field(default_factory=list)
    looks: dict[str, Look] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)  # as training reads them

    @property
    def broken(self) -> dict[str, str]:
        """Why each picture that doesn't open does not."""
        return {name: look.problem for name, look in self.looks.items() if look.problem}

    @property
    def trained(self) -> list[str]:
        """The pictures that will train as they are."""
        out = {*self.broken, *self.refusals, *self.unrepeated}
        return [name for name in self.pictures if name not in out and self.captions[name]]

    def seen(self, chosen: str) -> str:
        """By which a picture or its mask is known to be another."""
        paths = [path for path in (self.pictures[chosen], self.masks.get(chosen)) if path and path.is_file()]
        return " ".join(f"{path.name}-{path.stat().st_mtime_ns}" for path in paths)


def read(context: Context, looks: Looks, name: str, budget_s: float = 0.4) -> Scene:
    """A dataset as it is now. Raises: DataError if it is not here."""
    folder = context.dataset(name)
    picture_replacing.settle(folder)
    paths, foreign = sources.with_foreign_below(folder)
    scene = Scene(folder, {path.relative_to(folder).as_posix(): path for path in paths})
    # What training would make of the set: captions, refusals and masks.
    survey = sources.survey(folder, DataConfig(folder=str(folder), mask="file"), say("where.dataset"))
    surveyed = {picture.name: picture for picture in survey.pictures}
    known = looks.of(paths, budget_s)
    for below, path in scene.pictures.items():
        picture = surveyed.get(below)
        scene.captions[below] = picture.text if picture else ""
        if picture is None:
            scene.unrepeated.add(below)
        elif picture.refusal:
            scene.refusals[below] = picture.refusal
        if picture and picture.mask:
            scene.masks[below] = picture.mask
        if path in known:
            scene.looks[below] = known[path]
    scene.foreign = [path.relative_to(folder).as_posix() for path in foreign]
    return scene


# Words.


def headline(scene: Scene) -> str:
    """How many of how many pictures will train."""
    found, trained = len(scene.pictures) + len(scene.foreign), len(scene.trained)
    if not found:
        return say("dataset.no_pictures")
    masked = say_num("dataset.with_masks", len(scene.masks)) if scene.masks else ""
    captioned = say("dataset.all_captioned") if trained == found else ""
    return say_num("dataset.will_train", found, trained=trained, captioned=captioned, masked=masked)


def reasons(scene: Scene, trigger: str) -> list[Reason]:
    """Why the others won't, each with what can be done about it."""
    found = []
    show, delete = ("show", say("button.show_them")), ("delete", say("button.delete"))
    # A picture with another fault is told of with that alone.
    bare = [
        name for name, text in scene.captions.items()
        if not text and name not in {*scene.broken, *scene.refusals, *scene.unrepeated}
    ]  # fmt: skip
    if bare:
        word = (
            say("dataset.caption_with", trigger=plain(trigger, 30)) if trigger else say("dataset.caption_with_trigger")
        )
        text = say_num("dataset.bare", len(bare))
        found.append(Reason(text, say("dataset.no_caption"), tuple(bare), (show, ("trigger", word))))
    if scene.refusals:
        text = say_num("dataset.refused", len(scene.refusals))
        cures = (show, ("utf8", say("edits.repair")))
        found.append(Reason(text, say("dataset.unreadable_caption"), tuple(scene.refusals), cures))
    if scene.broken:
        words = Counter(scene.broken.values()).most_common(1)[0][0]
        text = say_num("dataset.broken", len(scene.broken), why=plain(words, 160))
        found.append(Reason(text, say("dataset.shut"), tuple(scene.broken), (show, delete)))
    if scene.foreign:
        kinds = ", ".join(sorted({name.rpartition(".")[2].lower() for name in scene.foreign}))
        text = say_num("dataset.foreign", len(scene.foreign), kinds=plain(kinds, 60))
        found.append(Reason(text, say("dataset.unread"), tuple(scene.foreign), (delete,)))
    if scene.unrepeated:
        text = say_num("dataset.in_folder_0", len(scene.unrepeated))
        found.append(Reason(text, say("dataset.unrepeated"), tuple(scene.unrepeated), (show, delete)))
    return found


# Data for the browser.


def data(context: Context, looks: Looks, name: str, scene: Scene, resolution_px: int, trigger: str) -> dict[str, Any]:
    """The set as `dataset_gallery.js` takes it."""
    # The pictures, and those in the trash.
    groups = _doubles(scene)
    items = [_item(scene, below, groups.get(below, -1), resolution_px) for below in scene.pictures]
    trash = edits.trashed(scene.folder)
    known = looks.of(trash, 0.2)
    discarded = [_discarded(scene, path, known.get(path)) for path in trash]

    # What they can be filtered by.
    counts = Counter(flag for item in items for flag in item["f"])
    kinds = [
        ("all", say("word.all")),
        ("none", say("dataset.no_caption")),
        ("double", say("dataset.doubles")),
        ("blurred", say("dataset.blurred")),
        ("small", say("dataset.small")),
    ]
    sized = resolution_px if dataset_checks.trains(resolution_px) else 0
    shapes = buckets.shapes(sized, DataConfig(), dataset_checks.multiple_px()) if sized else []
    return {
        "dataset": name,
        "home": hashlib.sha256(str(context.workspace).encode()).hexdigest()[:12],
        "items": items,
        "resolution": sized,
        "shapes": shapes,
        "trash": discarded,
        "pending": len(scene.pictures) + len(trash) - len(scene.looks) - len(known),
        "kinds": [
            *([kind, words, len(items) if kind == "all" else counts[kind]] for kind, words in kinds),
            ["trash", say("word.trash"), len(trash)],
        ],
        "reasons": [
            {"text": why.text, "title": why.title, "names": list(why.names), "cures": list(map(list, why.cures))}
            for why in reasons(scene, trigger)
        ],
    }  # fmt: skip


def empty() -> dict[str, Any]:
    """Nothing chosen, as the gallery takes it."""
    return {
        "dataset": "",
        "home": "",
        "items": [],
        "trash": [],
        "pending": 0,
        "kinds": [],
        "reasons": [],
        "resolution": 0,
        "shapes": [],
    }


def _item(scene: Scene, name: str, group: int, resolution_px: int) -> dict[str, Any]:
    """One picture: name, label, address of its thumbnail, caption, filters, badges, group of doubles, bucket."""
    look = scene.looks.get(name)
    words = {
        "double": say("dataset.is_double"),
        "blurred": say("dataset.is_blurred"),
        "small": say("dataset.is_small"),
        "broken": say("dataset.does_not_open"),
        "mask": say("dataset.has_mask"),
    }

    # What it is filtered by, which its badges say too.
    flags = []
    if not scene.captions[name]:
        flags.append("none")
    if group >= 0:
        flags.append("double")
    if look and not look.problem:
        from trainer.data.dataset_check import BLURRED_BELOW  # loads much that the page itself does not need

        flags += ["blurred"] if look.sharpness < BLURRED_BELOW else []
        flags += ["small"] if min(look.width_px, look.height_px) < resolution_px / 2 else []
    elif look:
        flags.append("broken")
    flags += ["mask"] if name in scene.masks else []
    return {
        "n": name, "l": plain(name, 120), "c": scene.captions[name], "f": flags, "g": group,
        "s": address(look.thumbnail) if look and look.thumbnail else "",
        "b": [words[flag] for flag in flags if flag in words], "k": _bucket(look, resolution_px),
    }  # fmt: skip


def _bucket(look: Look | None, resolution_px: int) -> list[int]:
    """The bucket that a picture trains in at this resolution; none if it can't be told."""
    if not look or look.problem or not dataset_checks.trains(resolution_px):
        return []
    multiple_px = dataset_checks.multiple_px()
    return list(buckets.assign(look.width_px, look.height_px, resolution_px, DataConfig(), multiple_px))


def _discarded(scene: Scene, path: Path, look: Look | None) -> dict[str, Any]:
    """A picture in the trash, as the others are."""
    src = address(look.thumbnail) if look else ""
    name = path.relative_to(scene.folder).as_posix()
    return {"n": name, "l": plain(path.name, 120), "c": "", "f": [], "b": [], "g": 0, "s": src}


def _doubles(scene: Scene) -> dict[str, int]:
    """Pictures that are the same or look alike, by name, with the number of their group."""
    if not scene.looks:
        return {}
    from trainer.data import dataset_check  # loads much that the page itself does not need

    measured = [
        dataset_check.Measured(
            PictureFile(scene.pictures[name], name, ""), (look.width_px, look.height_px), look.sha256, look.sharpness,
            look.phash,
        )
        for name, look in scene.looks.items() if not look.problem
    ]  # fmt: skip
    # A picture in several groups goes with the first of them.
    groups = [*dataset_check.groups({picture.name: picture.sha256 for picture in measured})]
    groups += dataset_check.near_duplicates(measured)
    return {name: number for number, names in reversed(list(enumerate(groups))) for name in names}


def address(path: str) -> str:
    """Where the browser fetches a file of Gradio's cache."""
    return f"gradio_api/file={quote(Path(path).as_posix())}" if path else ""


def history(scene: Scene) -> list[dict[str, Any]]:
    """The last edits of the set, newest first, as a list shows them."""
    return [
        {
            "number": edit.number,
            "text": plain(edit.what, 120) + (f" ({edit.num_pictures})" if edit.num_pictures > 1 else ""),
            "when": time.strftime("%d %b %H:%M", time.localtime(edit.at)),
            "undone": edit.undone,
        }
        for edit in reversed(edits.history(scene.folder)[-_HISTORY:])
    ]


def preview(context: Context, path: Path, side_px: int = _PREVIEW_PX) -> Path:
    """A picture as it is looked at while its caption is written. Raises: DataError if it doesn't open."""
    preview_file = context.thumbnail(path).with_suffix(f".{side_px}.webp")
    if not preview_file.is_file():
        image = open_image(path)
        image.thumbnail((side_px, side_px))
        with files.replacing(preview_file) as unnamed:
            image.save(unnamed, "WEBP", quality=86)
    return preview_file


def picture(context: Context, name: str | None, chosen: str) -> Path:
    """The chosen picture of a dataset. Raises: DataError if it is not there."""
    folder = context.dataset(name)
    for path in context.pictures(folder):
        if path.relative_to(folder).as_posix() == chosen:
            return path
    raise DataError(say("problems.picture_gone"))
