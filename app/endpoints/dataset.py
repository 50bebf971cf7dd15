"""The Dataset tab for programs: sets, their pictures and captions, their check, and what leaves them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

from app import captioning, dataset_checks, dataset_edits, dataset_exports, dataset_gallery, dataset_notes, dataset_sets
from app.context import Context
from app.dataset_gallery import Scene
from app.dataset_measures import Looks
from app.dataset_pictures import PictureEditor
from app.endpoints.asking import Files, Name, Names, Number, chosen, uploads
from app.endpoints.rows import fetched_at, job_row
from app.texts import say
from trainer.data import caption_files, edits

EDITS = {
    "replace": say("edits.replace"), "prefix": say("edits.prefix"), "suffix": say("edits.suffix"),
    "remove_tag": say("edits.remove_tag"), "sort_tags": say("edits.sort_tags"), "trigger": say("edits.add_trigger"),
}  # fmt: skip
LAYOUTS = {
    "as_it_lies": say("dataset.as_it_lies"), "kohya": say("dataset.kohya"), "imagefolder": say("dataset.imagefolder"),
}  # fmt: skip
_FLIPPED_AT_ONCE = 16
Operation = Literal["replace", "prefix", "suffix", "remove_tag", "sort_tags", "trigger"]
Layout = Literal["as_it_lies", "kohya", "imagefolder"]


class DatasetEndpoints:
    """What can be asked of datasets; every public method is an endpoint."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._looks, self._editor = Looks(context), PictureEditor(context)

    # Sets.

    def datasets(self) -> list[str]:
        """Names of the datasets."""
        return self.context.dataset_names()

    def sample_sets(self) -> list[str]:
        """Names of the sample sets that ship."""
        return dataset_sets.sample_sets()

    def make_dataset(self, name: Name) -> str:
        """The name of a new, empty dataset; signs that a folder can't have become dashes. A name taken is refused."""
        with caption_files.writable(say("where.dataset")):
            return dataset_sets.make(self.context, name)

    def copy_sample(self, sample: Name) -> str:
        """The name of a new copy of a sample set; its held-out part is called the same with -heldout behind it."""
        with caption_files.writable(say("where.copy")):
            return dataset_sets.copy_sample(self.context, sample)

    def dataset(self, dataset: Name) -> dict[str, Any]:
        """A dataset: how many pictures it has and how many will train, why the others won't, and its trigger."""
        scene, notes = self._scene(dataset), dataset_notes.read(self.context.dataset(dataset))
        reasons = dataset_gallery.reasons(scene, notes.trigger)
        return {
            "name": dataset, "says": dataset_gallery.headline(scene), "num_pictures": len(scene.pictures),
            "num_trained": len(scene.trained), "trigger": notes.trigger, "is_checked": notes.is_checked,
            "reasons": [{"text": reason.text, "pictures": list(reason.names)} for reason in reasons],
        }  # fmt: skip

    def set_trigger(self, dataset: Name, trigger: Name) -> str:
        """Remember the trigger word of a dataset; as it is remembered."""
        self.context.dataset(dataset)
        dataset_notes.keep_trigger(self.context, dataset, trigger)
        return dataset_notes.trigger_of(self.context, dataset)

    def add_pictures(self, files: Files, dataset: Name = "") -> dict[str, Any]:
        """Add uploaded pictures, captions and zips to a dataset, or to a new one where none is named.

        The dataset's name, the names of the pictures that were added, and a sentence on each file that was left out.
        """
        with uploads(self.context, files) as paths, caption_files.writable(say("where.dataset")):
            into, report = dataset_sets.add(self.context, dataset, paths)
        return {"dataset": into, "added": report.added, "left_out": report.left_out}

    def export_dataset(self, dataset: Name, layout: Layout = "as_it_lies") -> str:
        """The address of a zip of a dataset, as it lies or in the layout of another trainer."""
        with caption_files.writable(say("where.zip")):
            return fetched_at(dataset_exports.packed(self.context, dataset, LAYOUTS[layout]))

    # Captions.

    def captions(self, dataset: Name) -> list[dict[str, Any]]:
        """The pictures of a dataset by name, each with its caption and what is wrong with either, "" for nothing."""
        scene = self._scene(dataset)
        problems = {**scene.refusals, **scene.broken}
        return [
            {"picture": name, "caption": text, "problem": problems.get(name, ""), "has_mask": name in scene.masks}
            for name, text in scene.captions.items()
        ]

    def write_caption(self, dataset: Name, picture: Name, caption: str) -> str:
        """Give a picture its caption, as one edit that can be undone; the caption as it stands now."""
        path = dataset_gallery.picture(self.context, dataset, picture)
        with caption_files.writable(say("where.dataset")):
            edits.write(self.context.dataset(dataset), say("edits.caption_of", name=path.name), {path: caption})
        return caption_files.read_caption(path)

    def edit_captions(
        self,
        dataset: Name,
        edit: Operation,
        first: Name = "",
        second: Name = "",
        trigger: Name = "",
        pictures: Names | None = None,
    ) -> str:
        """Make one edit of many captions, all where no pictures are named; what was changed, in words.

        `first` is what is looked for, put in front, behind or removed; `second` what replaces it. Without a `trigger`
        the dataset's own is meant.
        """
        scene = self._scene(dataset)
        names = list(scene.pictures) if pictures is None else self._named(scene, pictures)
        word = trigger or dataset_notes.trigger_of(self.context, dataset)
        return dataset_edits.bulk(scene, names, EDITS[edit], (first, second), word)

    def repair_captions(self, dataset: Name, pictures: Names) -> str:
        """Write captions anew that are no UTF-8, as far as they can be guessed; what was done, in words."""
        scene = self._scene(dataset)
        return dataset_edits.repair(scene, self._named(scene, pictures))

    def edits(self, dataset: Name) -> list[dict[str, Any]]:
        """The edits of a dataset, the newest first: number, what was done, pictures, when (Unix time), if undone."""
        past = edits.history(self.context.dataset(dataset))
        return [
            {"number": edit.number, "what": edit.what, "num_pictures": edit.num_pictures, "at": edit.at,
             "is_undone": edit.undone}
            for edit in reversed(past)
        ]  # fmt: skip

    def undo_edit(self, dataset: Name, number: Number | None = None) -> str:
        """Take back an edit of a dataset, the last if no number is given; what was done, in words."""
        return dataset_edits.undo(self.context, dataset, "", number)

    def captioners(self) -> list[str]:
        """Names of the models that write captions here."""
        return list(captioning.models(self.context))

    def start_captions(
        self,
        dataset: Name,
        model: Name,
        purpose: Name = "character",
        trigger: Name = "",
        leave_out: str = "",
        instruction: str = "",
        every: bool = False,
    ) -> dict[str, Any]:
        """Have a model write captions, as a job; the job's row.

        `purpose` is character or style. Without `every`, pictures that have a caption keep it.
        """
        order = captioning.Order(dataset, model, purpose, trigger, leave_out, instruction, every)
        return job_row(captioning.begin(self.context, order))

    # Pictures.

    def delete_pictures(self, dataset: Name, pictures: Names) -> str:
        """Put pictures into the dataset's trash, each with its caption and mask; what was done, in words."""
        scene = self._scene(dataset)
        return dataset_edits.discard(scene, chosen(pictures, [*scene.pictures, *scene.foreign], say("word.pictures")))

    def deleted_pictures(self, dataset: Name) -> list[str]:
        """Names of the pictures in the dataset's trash, by which they are restored."""
        folder = self.context.dataset(dataset)
        return [path.relative_to(folder).as_posix() for path in edits.trashed(folder)]

    def restore_pictures(self, dataset: Name, pictures: Names) -> str:
        """Take pictures out of the dataset's trash; what was done, in words."""
        names = chosen(pictures, self.deleted_pictures(dataset), say("word.pictures"))
        return dataset_edits.restore(self._scene(dataset), names)

    def flip_pictures(self, dataset: Name, pictures: Names) -> dict[str, Any]:
        """Mirror pictures and their masks, as one edit: how many, which not, whose captions say left or right."""
        # `visit` makes one edit of all parts, that one undo takes back.
        names, visit = self._named(self._scene(dataset), pictures), uuid.uuid4().hex
        told: dict[str, Any] = {"done": 0, "problems": [], "sided": []}
        for start in range(0, len(names), _FLIPPED_AT_ONCE):
            asked = {"dataset": dataset, "names": names[start : start + _FLIPPED_AT_ONCE], "visit": visit}
            told = {key: told[key] + value for key, value in self._editor.flip(asked).items()}
        return told

    def crop_picture(self, dataset: Name, picture: Name, left: int, top: int, right: int, bottom: int) -> list[int]:
        """Cut a picture to a box of its pixels, as one edit; its width and height now."""
        asked: dict[str, Any] = {"dataset": dataset, "name": picture}
        # The edit is refused if the picture is changed between the two calls.
        version = self._editor.look(asked)["version"]
        self._editor.crop(asked | {"version": version, "box": [left, top, right, bottom]})
        return list(self._editor.look(asked)["size"])

    # The check.

    def check_dataset(self, dataset: Name, resolution_px: Number, trigger: Name = "") -> dict[str, Any]:
        """What is to know of a dataset before it is trained on at a resolution: findings with their pictures, buckets.

        Without a `trigger` the dataset's own is meant.
        """
        word = trigger or dataset_notes.trigger_of(self.context, dataset)
        report = dataset_checks.check(self.context, dataset, resolution_px, word)
        dataset_notes.keep_checked(self.context, dataset)
        findings = dataset_checks.cards(report)
        return {
            "num_pictures": report.num_pictures, "num_trained": report.num_trained,
            "findings": [{"title": one.title, "why": one.why, "pictures": list(one.names)} for one in findings],
            "notes": list(report.problems), "tags": report.tags,
            "buckets": [
                {"width_px": row.width_px, "height_px": row.height_px, "pictures": row.pictures}
                for row in report.buckets
            ],
        }  # fmt: skip

    def _scene(self, dataset: str) -> Scene:
        return dataset_gallery.read(self.context, self._looks, dataset)

    def _named(self, scene: Scene, pictures: Sequence[str]) -> list[str]:
        return chosen(pictures, scene.pictures, say("word.pictures"))
