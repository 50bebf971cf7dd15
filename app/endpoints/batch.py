"""The Batch tab for programs: many pictures at once, what is said of them, and votes between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from app import batch_estimate, batch_pictures, batch_table, batches, checkpoint_grids, path_gate
from app.batch_gallery import BatchGallery
from app.batches import Jobs
from app.endpoints.asking import Name, Number, Settings
from app.endpoints.rows import fetched_at, job_row
from app.item_notes import KEPT, REJECTED
from app.library_items import Shelf
from app.render_requests import Rendering
from app.texts import say
from trainer.config import StackConfig, parse
from trainer.errors import ConfigError

Kind = Name  # csv, toml or table
_MOST_SHOWN = 2000


class BatchEndpoints:
    """What can be asked of batches; every public method is an endpoint.

    `job` is a batch's id, and `picture` a picture's name as `batch_pictures` gives it.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.context = shelf, shelf.context
        self._gallery = BatchGallery(shelf.context)

    # Begun.

    def batch(self, jobs: str, kind: Kind = "csv", name: Name = "") -> dict[str, Any]:
        """A batch as a job; `jobs` is the text of a jobs file, or a table as a spreadsheet copies it; its row.

        `kind` is csv, toml or table.
        """
        return self._begun(self._read(jobs, kind), name or "batch")

    def batch_plan(self, jobs: str, kind: Kind = "csv") -> dict[str, Any]:
        """What a batch would draw, in words, and how long it would take; nothing is begun."""
        planned = batches.planned(self._read(jobs, kind), self._library(), self.context.wildcards)
        return {"plan": planned.text, "time": batch_estimate.words(self.context, planned.work)}

    def batch_of_stack(
        self, stack: Settings, prompts: list[str], seeds: str = "", weights: str = "", name: Name = ""
    ) -> dict[str, Any]:
        """A stack at every prompt, seed and weight, as a job; its row.

        `seeds` are as typed, such as "1-4, 9", and `weights` factors on all of the stack's weights, such as "0.5, 1".
        """
        config = path_gate.checked(self.context, parse(StackConfig, stack, say("where.stack")))
        # `composed` takes a prompt a line, as the page's box has them: a line break within one becomes a space.
        lines = "\n".join(" ".join(prompt.splitlines()) for prompt in prompts)
        return self._begun(batches.composed(self.context, config, lines, weights, seeds, ""), name or "batch")

    def checkpoint_grid(
        self,
        run: Name,
        steps: str = "",
        prompts: list[str] | None = None,
        weights: str = "",
        seeds: str = "",
        name: Name = "",
    ) -> dict[str, Any]:
        """A run's saved steps at every weight, prompt and seed, as a job whose pictures can be voted on; its row.

        Without `steps` all are drawn, without prompts and seeds those of the run's previews.
        """
        # A run may have saved steps as checkpoints alone, and only LoRA files can be stacked.
        checkpoint_grids.write_files(self.context, run, Rendering())
        lines = "\n".join(" ".join(prompt.splitlines()) for prompt in prompts or [])
        jobs = checkpoint_grids.composed(self.context, run, steps, lines, weights, seeds)
        return self._begun(jobs, name or f"{run}-steps")

    def _read(self, jobs: str, kind: str) -> Jobs:
        """The jobs file of a text. Raises: ConfigError, AdapterError."""
        if kind == "table":
            table = batch_table.read(self.context, jobs)
            if table.jobs is None:
                raise ConfigError(table.complaint or say("table.is_empty"))
            return table.jobs
        if f".{kind}" not in batches.KINDS:
            raise ConfigError(say("batch.kind", kind=kind[:80]))
        # Half a character, which JSON can carry, has no bytes: it becomes a question mark.
        return batches.read(self.context, jobs.encode("utf-8", "replace"), f"jobs.{kind}")

    def _begun(self, jobs: Jobs, name: str) -> dict[str, Any]:
        batches.planned(jobs, self._library(), self.context.wildcards)  # begins nothing that can't be drawn
        return job_row(self.context.runner.submit(name, jobs.text, jobs.kind))

    def _library(self) -> list[Path]:
        return [self.context.loras, self.context.runs]

    # Pictures.

    def batch_pictures(
        self, job: Number, view: Literal["all", "unrated", "kept", "rejected"] = "all", num: Number = 96
    ) -> dict[str, Any]:
        """The first pictures of a batch, or of a part of it: name, what it shows, address, verdict and rating of each.

        `counts` says how many there are of each view, and `trash` how many were thrown away.
        """
        found = batch_pictures.job_of(self.context, job)
        page = batch_pictures.page(self.shelf, found, view, min(num, _MOST_SHOWN))
        return {
            "pictures": [
                {"picture": item["n"], "says": item["l"], "address": f"/{item['w']}", "verdict": item["v"],
                 "rating": item["r"]}
                for item in page["items"]
            ],
            "counts": page["counts"], "trash": page["trash"], "has_more": page["more"],
        }  # fmt: skip

    def keep_picture(self, job: Number, picture: Name) -> dict[str, Any]:
        """Keep a picture of a batch; how many there are of each view now."""
        return self._said(job, picture, {"verdict": KEPT})

    def reject_picture(self, job: Number, picture: Name) -> dict[str, Any]:
        """Reject a picture of a batch; how many there are of each view now."""
        return self._said(job, picture, {"verdict": REJECTED})

    def rate_picture(self, job: Number, picture: Name, rating: Number) -> dict[str, Any]:
        """Give a picture of a batch 0 to 5 stars; how many there are of each view now."""
        return self._said(job, picture, {"rating": rating})

    def _said(self, job: int, picture: str, changes: dict[str, Any]) -> dict[str, Any]:
        found = batch_pictures.job_of(self.context, job)
        told = batch_pictures.rate(self.shelf, found, picture, changes)
        return {"picture": told["n"], "verdict": told["v"], "rating": told["r"], "counts": told["counts"]}

    def zip_kept(self, job: Number) -> str:
        """The address of a zip of the batch's kept pictures, byte for byte."""
        return fetched_at(batch_pictures.kept_zip(self.shelf, batch_pictures.job_of(self.context, job)))

    def zip_batch(self, job: Number) -> str:
        """The address of a zip of all the batch's pictures, its sheets and its manifest."""
        found = batch_pictures.job_of(self.context, job)
        return fetched_at(batches.packed(self.context, self.context.batches / found.name))

    def throw_rejected(self, job: Number) -> int:
        """Move the batch's rejected pictures to the trash; how many. They are not drawn again."""
        return batch_pictures.throw(self.shelf, batch_pictures.job_of(self.context, job))

    def restore_rejected(self, job: Number) -> int:
        """Put the batch's pictures back from the trash; how many."""
        return batch_pictures.restore(self.shelf, batch_pictures.job_of(self.context, job))

    # Votes.

    def vote_on(self, job: Number) -> dict[str, Any]:
        """The two pictures to vote on next, by address, and what is known so far; `turn` is sent back with the vote.

        `pair` is null where no two pictures of the batch differ in their LoRAs alone.
        """
        return _contest(self._gallery.match({"job": job}))

    def vote(self, job: Number, turn: Number, won: Literal["left", "right", "tie", "skip", "undo"]) -> dict[str, Any]:
        """Say which of the two that were shown is better, or take the last vote back; the next two, as `vote_on`.

        Nothing is counted where `turn` is past.
        """
        return _contest(self._gallery.cast({"job": job, "turn": turn, "won": won}))


def _contest(shown: dict[str, Any]) -> dict[str, Any]:
    """Two pictures and the result so far, as they are answered."""
    if shown["pair"] is None:
        return {"turn": shown["turn"], "pair": None, "num_votes": 0, "says": "", "result": []}
    return {
        "turn": shown["turn"], "pair": [f"/{place}" for place in shown["pair"]], "prompt": shown["prompt"],
        "num_votes": shown["num"], "says": shown["sentence"], "result": shown["rows"],
    }  # fmt: skip
