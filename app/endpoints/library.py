"""The Library tab for programs: what is here, what is said of it, the trash, and files that are handed over."""

from __future__ import annotations

from typing import Any, Literal

from app import item_changes, item_details, item_notes, recognising
from app.endpoints.asking import Files, Name, Names, Number, uploads
from app.endpoints.rows import addresses
from app.library_items import Item, Shelf, wanted

Kind = Literal["loras", "runs", "pictures", "stacks", "presets", "datasets"]


class LibraryEndpoints:
    """What can be asked of the library; every public method is an endpoint.

    A thing is named by its kind and its key, as `library` gives it.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.context = shelf, shelf.context

    def library(self, kind: Kind, search: Name = "", least_rating: Number = 0) -> list[dict[str, Any]]:
        """The things of a kind, the newest first: key, name, facts in a line, note, rating and verdict of each.

        With `search`, those that hold every word of it; rejected pictures are shown where that is one of the words.
        """
        return [_row(item) for item in wanted(self.shelf.every(kind), search, least_rating)]

    def library_item(self, kind: Kind, key: Name) -> dict[str, Any]:
        """All that is shown of a thing: its facts, where it is used, what its file says, and where that is fetched."""
        item = self.shelf.item(kind, key)
        details = item_details.of(self.shelf, item)
        files = list(item.paths[:1]) if kind in ("loras", "pictures", "stacks") else []
        places = list(addresses(self.context, files).values())
        return _row(item) | {
            "details": {label: text for label, text in details.lines if text.strip()}, "used": details.uses,
            "warning": details.warning, "file_says": details.raw, "address": places[0] if places else "",
        }  # fmt: skip

    # What is said of a thing.

    def rename_item(self, kind: Kind, key: Name, name: Name) -> str:
        """Give a thing another name; its key from now on. A preset that ships keeps its own."""
        return item_changes.rename(self.shelf, self.shelf.item(kind, key), name)

    def note_item(self, kind: Kind, key: Name, note: str) -> dict[str, Any]:
        """Write a note to a thing, in place of the one that is there; the thing as `library` gives it."""
        item = self.shelf.item(kind, key)
        # The note that stands there is named as seen, so that it is replaced; else both would be kept.
        item_notes.change(self.shelf.notes, kind, item.key, note, item.note.text)
        return _row(self.shelf.item(kind, key))

    def rate_item(self, kind: Kind, key: Name, rating: Number) -> dict[str, Any]:
        """Give a thing 0 to 5 stars; the thing as `library` gives it."""
        item_notes.change(self.shelf.notes, kind, self.shelf.item(kind, key).key, rating=rating)
        return _row(self.shelf.item(kind, key))

    def weigh_lora(self, key: Name, weight: float) -> dict[str, Any]:
        """Say at which weight, from -2 to 2, the page puts a LoRA into a stack; the thing as `library` gives it."""
        item_notes.change(self.shelf.notes, "loras", self.shelf.item("loras", key).key, weight=weight)
        return _row(self.shelf.item("loras", key))

    # The trash.

    def throw_item(self, kind: Kind, key: Name) -> str:
        """Move a thing to the trash; the id by which it is restored. What a job works on stays where it is."""
        return item_changes.throw(self.shelf, self.shelf.item(kind, key)).id

    def trash(self) -> list[dict[str, Any]]:
        """What lies in the trash, the newest first: id, kind, name and when it was thrown away (Unix time)."""
        return [
            {"id": entry.id, "kind": entry.kind, "name": entry.name, "at": entry.when}
            for entry in self.shelf.trash.entries()
        ]

    def restore_item(self, entry: Name) -> dict[str, str]:
        """Put a thing back from the trash by its id; its kind and its key."""
        kind, key = item_changes.restore(self.shelf, entry)
        return {"kind": kind, "key": key}

    def empty_trash(self, entries: Names) -> int:
        """Delete the things of these ids for good, and no other; how many there were."""
        return self.shelf.trash.empty(entries)

    # What is handed over.

    def drop_files(self, files: Files) -> list[dict[str, Any]]:
        """Take uploaded files of any kind in: LoRAs, pictures, zips, configs, jobs files, cards, checkpoints.

        What each is, where it went, whether it was taken, and kind and key of what it is in the library, if anything.
        """
        if not files:
            return []
        with uploads(self.context, files) as paths:
            arrivals = recognising.take(self.context, paths)
        rows = []
        for arrival in arrivals:
            kind, key = arrival.shelf or ("", "")
            rows.append(
                {"file": arrival.file, "says": arrival.what, "where": arrival.where, "is_taken": arrival.is_taken,
                 "kind": kind, "key": key}
            )  # fmt: skip
        return rows


def _row(item: Item) -> dict[str, Any]:
    return {
        "key": item.key, "name": item.name, "facts": item.facts, "note": item.note.text, "rating": item.note.rating,
        "verdict": item.note.verdict, "weight": item.note.weight,
    }  # fmt: skip
