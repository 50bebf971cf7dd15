"""The pictures of a batch with what was said of each: kept, rejected, a rating; and their way to the trash and back.

What is said of a picture stands where the Library keeps it, under the picture's place below the workspace. Those that
are thrown away are named in the batch's own folder first, so that a batch that goes on draws none of them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app import batches, cards, item_notes
from app.context import Context
from app.item_notes import KEPT, MOST_RATING, REJECTED, VERDICTS, Note
from app.job_table import Job
from app.library_items import BATCH_PICTURES, Shelf, picture_line
from app.texts import say
from trainer.errors import DataError
from trainer.printing import plain
from trainer.render import batch_journal

KIND = "pictures"
VIEWS = ("all", "unrated", KEPT, REJECTED)
PAGE = 96  # pictures that are shown at first, and more each time
_MOST_SHEETS = 20


def job_of(context: Context, wanted: Any) -> Job:
    """The batch of that number. Raises: DataError if there is none."""
    for job in context.runner.every():
        if isinstance(wanted, int) and job.id == wanted and job.kind in batches.KINDS.values():
            return job
    raise DataError(say("gallery.batch_gone"))


def key(job: Job, name: str) -> str:
    """What the Library calls a picture of a batch; `name` is its place in the batch's folder."""
    return f"{BATCH_PICTURES}{job.name}/{name}"


def named(context: Context, job: Job) -> dict[str, Path]:
    """The batch's pictures by name, in the order in which they were drawn."""
    out = context.batches / job.name
    return {path.relative_to(out).as_posix(): path for path in batches.drawn(out)[::-1]}


def path_of(context: Context, wanted: str) -> Path:
    """The picture of a batch that goes by this key. Raises: DataError if it isn't here."""
    for out in context.batches.glob("[!.]*"):
        prefix = f"{BATCH_PICTURES}{out.name}/"
        if wanted.startswith(prefix):
            for path in batches.drawn(out):
                if f"{prefix}{path.relative_to(out).as_posix()}" == wanted:
                    return path
    raise DataError(say("gallery.picture_gone"))


def notes(shelf: Shelf, job: Job) -> dict[str, Note]:
    """What was said of the batch's pictures, by name."""
    prefix = key(job, "")
    noted = item_notes.read(shelf.notes, KIND)
    return {name.removeprefix(prefix): note for name, note in noted.items() if name.startswith(prefix)}


def fits(note: Note, view: str) -> bool:
    """Whether a picture of which this was said is of that view."""
    if view == "unrated":
        return not note.verdict and not note.rating
    return view not in (KEPT, REJECTED) or note.verdict == view


def page(shelf: Shelf, job: Job, view: str, num: int) -> dict[str, Any]:
    """The first `num` pictures of a view, how many there are of each, and the sheets, as the gallery takes them."""
    context, pictures, noted = shelf.context, named(shelf.context, job), notes(shelf, job)
    view = view if view in VIEWS else "all"
    chosen = [name for name in pictures if fits(noted.get(name, Note()), view)]
    # Sheets are of the whole batch, so they stand with all pictures alone.
    sheets = batches.contact_sheets(context.batches / job.name)[:_MOST_SHEETS] if view == "all" else []
    return {
        "job": job.id, "name": plain(job.name, 120), "view": view, "more": len(chosen) > num,
        "items": [item for name in chosen[:num] if (item := _item(shelf, name, pictures[name], noted.get(name)))],
        "sheets": [
            [cards.address(thumbnail), cards.address(context.published(path)), say("gallery.sheet", number=number)]
            for number, (path, thumbnail) in enumerate(context.thumbnails(sheets), 1)
        ],
        **_numbers(shelf, job, list(pictures), noted),
    }  # fmt: skip


def _numbers(shelf: Shelf, job: Job, names: list[str], noted: dict[str, Note]) -> dict[str, Any]:
    counts = {view: sum(fits(noted.get(name, Note()), view) for name in names) for view in VIEWS}
    return {"counts": counts, "trash": sum(len(entry.places) for entry in thrown(shelf, job))}


def _item(shelf: Shelf, name: str, path: Path, noted: Note | None) -> dict[str, Any] | None:
    """A picture as the gallery shows it; None for a picture that doesn't open."""
    try:
        thumbnail, whole = shelf.context.thumbnail(path), shelf.context.published(path)
    except (DataError, OSError, ValueError):
        return None
    note = noted or Note()
    line = picture_line(shelf.index.picture(path))
    return {
        "n": name, "l": plain(line, 300), "s": cards.address(thumbnail), "w": cards.address(whole), "v": note.verdict,
        "r": note.rating,
    }  # fmt: skip


# What a person says.


def rate(shelf: Shelf, job: Job, name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What is said of a picture now, and how many there are of each view.

    Raises: DataError for a picture that isn't here, and a rating or verdict that is none.
    """
    names = list(named(shelf.context, job))
    if name not in names:
        raise DataError(say("gallery.picture_gone"))
    # What a browser sent is checked one by one; what it left out stays as it is.
    rating, verdict = changes.get("rating"), changes.get("verdict")
    given: dict[str, Any] = {}
    if rating is not None:
        if not isinstance(rating, int) or isinstance(rating, bool):
            raise DataError(say("gallery.rating", rating=str(rating)[:40], most=MOST_RATING))
        given["rating"] = rating
    if verdict is not None:
        if verdict not in VERDICTS:
            raise DataError(say("gallery.verdict", verdict=str(verdict)[:40], kept=KEPT, rejected=REJECTED))
        given["verdict"] = verdict
    note = item_notes.change(shelf.notes, KIND, key(job, name), **given)
    return {"n": name, "v": note.verdict, "r": note.rating, **_numbers(shelf, job, names, notes(shelf, job))}


def kept_zip(shelf: Shelf, job: Job) -> Path:
    """A zip of the kept pictures, byte for byte. Raises: DataError if none is kept."""
    paths = list(_of(shelf, job, KEPT).values())
    if not paths:
        raise DataError(say("gallery.none_kept"))
    return batches.zipped(shelf.context, shelf.context.batches / job.name, paths, f"{job.name}-kept")


def _of(shelf: Shelf, job: Job, view: str) -> dict[str, Path]:
    """The pictures of a view, by name."""
    noted = notes(shelf, job)
    return {name: path for name, path in named(shelf.context, job).items() if fits(noted.get(name, Note()), view)}


# The trash.


def throw(shelf: Shelf, job: Job) -> int:
    """How many rejected pictures were moved to the trash, as one thing. Raises: DataError if none is rejected."""
    rejected = _of(shelf, job, REJECTED)
    if not rejected:
        raise DataError(say("gallery.none_rejected"))
    note_thrown(shelf.context.batches / job.name, list(rejected))
    words = say("gallery.rejected", num=len(rejected), batch=plain(job.name, 80))
    shelf.trash.throw(KIND, key(job, next(iter(rejected))), words, list(rejected.values()))
    return len(rejected)


def restore(shelf: Shelf, job: Job) -> int:
    """How many pictures of the batch were put back from the trash, with what was said of them. Raises: DataError."""
    return sum(len(shelf.trash.restore(entry.id)) for entry in thrown(shelf, job))


def thrown(shelf: Shelf, job: Job) -> list[Any]:
    """What lies in the trash of this batch."""
    prefix = key(job, "")
    entries = shelf.trash.entries()
    return [entry for entry in entries if entry.kind == KIND and all(at.startswith(prefix) for at in entry.places)]


def note_thrown(out: Path, names: list[str]) -> None:
    """Have the batch know that these are thrown away. Raises: DataError if its folder can't be written."""
    try:
        batch_journal.note_thrown(out, names)
    except OSError as error:
        raise DataError(say("gallery.cannot_write", reason=error.strerror or error)) from None
