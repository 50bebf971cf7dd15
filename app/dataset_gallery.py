"""What the Dataset tab shows of a set: every picture with its caption and what is to know of it, and what will train.

All of it is sent at once, as plain data, and filtered in the browser (`dataset_gallery.js`); names that come back from
there are looked up here. The files beside the pictures are read anew each time: an edit made elsewhere is seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app import dataset_checks
from app.context import Context
from app.dataset_measures import Look, Looks
from trainer import files
from trainer.config import DataConfig
from trainer.data import buckets, edits, open_image, sources, swaps
from trainer.data.picture_file import PictureFile
from trainer.errors import DataError
from trainer.printing import plain

SCRIPT = Path(__file__).with_name("dataset_gallery.js").read_text(encoding="utf-8")
TEMPLATE = """<div class="pictures">
<div class="reasons" aria-live="polite"></div>
<div class="kinds" role="group" aria-label="Filters"></div>
<div class="buckets" role="group" aria-label="Buckets"></div>
<div class="tools"><input class="find" type="search" placeholder="Find in captions and names"
  aria-label="Find in captions and names" maxlength="200">
<span class="count" role="status"></span><span class="gap"></span>
<button type="button" class="everything">Mark all</button><button type="button" class="unmark">Unmark</button>
<button type="button" class="mirror">Flip marked</button>
<button type="button" class="discard">Delete marked</button><button type="button" class="restore">Restore</button></div>
<div class="working" hidden><progress aria-label="Flipped"></progress><span class="done" role="status"></span>
<button type="button" class="sided">Show them</button><button type="button" class="halt">Stop</button></div>
<div class="grid" role="group" aria-label="Pictures"></div>
<p class="empty" hidden>No picture is like this.</p>
<div class="tags" role="group" aria-label="Tags"></div></div>"""
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


def read(context: Context, looks: Looks, name: str, budget_s: float = 0.4) -> Scene:
    """A dataset as it is now. Raises: DataError if it is not here."""
    folder = context.dataset(name)
    swaps.settle(folder)
    paths, foreign = sources.with_foreign_below(folder)
    scene = Scene(folder, {path.relative_to(folder).as_posix(): path for path in paths})
    survey = sources.survey(folder, DataConfig(folder=str(folder), mask="file"), "the dataset")
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
        return "0 pictures: drop some to begin."
    masked = f", {len(scene.masks)} with {'a mask' if len(scene.masks) == 1 else 'masks'}" if scene.masks else ""
    captioned = ", all with captions" if trained == found else ""
    return f"{trained} of {found} picture{'' if found == 1 else 's'} will train{captioned}{masked}."


def reasons(scene: Scene, trigger: str) -> list[Reason]:
    """Why the others won't, each with what can be done about it."""
    found = []
    show, delete = ("show", "Show them"), ("delete", "Delete")
    bare = [
        name for name, text in scene.captions.items()
        if not text and name not in {*scene.broken, *scene.refusals, *scene.unrepeated}
    ]  # fmt: skip
    if bare:
        word = f"Caption with “{plain(trigger, 30)}”" if trigger else "Caption with the trigger"
        text = f"{_have(bare, 'has', 'have')} no caption: left out, unless Train is given a trigger."
        found.append(Reason(text, "No caption", tuple(bare), (show, ("trigger", word))))
    if scene.refusals:
        text = f"{_have(list(scene.refusals), 'has', 'have')} a caption that can't be read: left out."
        cures = (show, ("utf8", "Repair text"))
        found.append(Reason(text, "Caption can't be read", tuple(scene.refusals), cures))
    if scene.broken:
        words = Counter(scene.broken.values()).most_common(1)[0][0]
        text = f"{_have(list(scene.broken), 'does', 'do')} not open ({plain(words, 160)}): left out."
        found.append(Reason(text, "Does not open", tuple(scene.broken), (show, delete)))
    if scene.foreign:
        kinds = ", ".join(sorted({name.rpartition(".")[2].lower() for name in scene.foreign}))
        verb = "is of a kind" if len(scene.foreign) == 1 else "are of kinds"
        text = f"{len(scene.foreign)} {verb} that is not read ({plain(kinds, 60)}): save as PNG or JPEG."
        found.append(Reason(text, "Not read", tuple(scene.foreign), (delete,)))
    if scene.unrepeated:
        text = f"{_have(list(scene.unrepeated), 'lies', 'lie')} in a folder whose name begins with 0_: left out."
        found.append(Reason(text, "In a folder of 0 repeats", tuple(scene.unrepeated), (show, delete)))
    return found


def _have(names: Sequence[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"


# Data for the browser.


def data(context: Context, looks: Looks, name: str, scene: Scene, resolution_px: int, trigger: str) -> dict[str, Any]:
    """The set as `dataset_gallery.js` takes it."""
    groups = _doubles(scene)
    items = [_item(scene, below, groups.get(below, -1), resolution_px) for below in scene.pictures]
    trash = edits.trashed(scene.folder)
    known = looks.of(trash, 0.2)
    discarded = [_discarded(scene, path, known.get(path)) for path in trash]
    counts = Counter(flag for item in items for flag in item["f"])
    kinds = [("all", "All"), ("none", "No caption"), ("double", "Doubles"), ("blurred", "Blurred"), ("small", "Small")]
    sized = resolution_px if dataset_checks.trains(resolution_px) else 0
    shapes = buckets.shapes(sized, DataConfig(), dataset_checks.multiple_px()) if sized else []
    return {
        "dataset": name,
        "items": items,
        "resolution": sized,
        "shapes": shapes,
        "trash": discarded,
        "pending": len(scene.pictures) + len(trash) - len(scene.looks) - len(known),
        "kinds": [
            *([kind, words, len(items) if kind == "all" else counts[kind]] for kind, words in kinds),
            ["trash", "Trash", len(trash)],
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
    words = {"double": "double", "blurred": "blurred", "small": "small", "broken": "does not open", "mask": "mask"}
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
    raise DataError("that picture is not here any more; reload the page.")
