"""A batch of pictures, each drawn exactly once however often the batch is broken off and started again.

A picture is saved whole under `<out>/.batch/`, written in the journal with its hash, and then linked to its own name,
which never takes the place of another file: a name that is taken gets -2, -3 ... Killed before the journal's line, it
is drawn again to the same bytes; killed after it, it is only moved. `batch_ledger` says what a batch has to draw;
`batch_manifest` writes what lies beside the pictures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from filelock import FileLock, Timeout

from trainer import system
from trainer.errors import RunError, UserError
from trainer.render import batch_manifest, picture_metadata
from trainer.render.batch_chunks import Draws, InOrder, OpenEngine, Result, Stop
from trainer.render.batch_ledger import HIDDEN, Journal, Plan, Work, seal, thrown

_MAX_TAKEN = 99  # names tried beside the wanted name
_MANIFEST_EVERY_S = 30.0


# Events.


@dataclass(frozen=True)
class Planned:
    """What a batch has to do: `pictures` are distinct recipes.

    `there` of them are done; `failed` can't be tried, since their files can't be read.
    """

    kind: ClassVar[str] = "planned"
    rows: int
    pictures: int
    there: int
    failed: int
    warnings: tuple[str, ...] = ()  # of LoRAs that are for another base


@dataclass(frozen=True)
class Rendered:
    """`done` of `total` pictures are there now, `seconds` after the batch was begun."""

    kind: ClassVar[str] = "rendered"
    row: int  # the first that wants it
    file: str  # below the folder
    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A row's picture can't be drawn."""

    kind: ClassVar[str] = "refused"
    row: int
    message: str


@dataclass(frozen=True)
class Ended:
    """The batch is over, or was stopped."""

    kind: ClassVar[str] = "ended"
    made: int
    there: int  # with those that were before
    failed: int
    stopped: bool
    manifest: str
    sheets: int
    seconds: float


Event = Planned | Rendered | Refused | Ended


def run(
    plan: Plan, out: Path, open_engine: OpenEngine, stop: Stop = lambda: False, sheets: bool = True
) -> Iterator[Event]:
    """Draw what isn't there in this process, and write the manifest and the contact sheets.

    Raises: RunError if another process works in the folder.
    """
    yield from run_by(InOrder(open_engine), plan, out, stop, sheets)


def run_by(drawing: Draws, plan: Plan, out: Path, stop: Stop = lambda: False, sheets: bool = True) -> Iterator[Event]:
    """The same with whatever draws the chunks; the folder, its lock and its journal are this process's alone.

    Raises: RunError if another process works in the folder.

    Once `stop` says so, what was begun is drawn to its end, since pictures of one chunk come together.
    """
    try:
        (out / HIDDEN).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--out is {str(out)!r}, where no folder can be made: {error.strerror}.") from None
    try:
        with FileLock(str(out / HIDDEN / "lock")).acquire(timeout=0):
            yield from _Runner(plan, out, drawing, stop).run(sheets)
    except Timeout:
        raise RunError(f"another batch is at work in {out}; wait for it, or name another folder with --out.") from None


class _Runner:
    """One run of a batch, with the folder's lock held."""

    def __init__(self, plan: Plan, out: Path, drawing: Draws, stop: Stop) -> None:
        self.plan, self.out, self.drawing, self.stop = plan, out, drawing, stop
        self.staging = out / HIDDEN
        self.made = 0
        self.started = time.monotonic()
        self.manifest = batch_manifest.manifest_file(out)
        self.next_manifest_s = time.monotonic() + _MANIFEST_EVERY_S

    def run(self, sheets: bool) -> Iterator[Event]:
        torn = self.plan.reconcile(self.out)  # batches that a killed process had begun
        self.journal = Journal(self.out)
        num_sheets, stopped = 0, False
        try:
            # What a killed process drew.
            self._sweep({staged.name for work in self.plan.staged() if (staged := self._place_again(work))})

            # What there is to do.
            counts = self.plan.counts()
            yield Planned(counts["rows"], counts["pictures"], counts["done"], counts["failed"], self.plan.warnings)
            for work in self.plan.failed():
                yield Refused(work.place, work.why)

            # What isn't there, batch by batch.
            self.there, self.total = counts["done"], counts["pictures"]
            with closing(self.drawing.draw(self.plan.chunks(torn), self._begin, self.stop)) as results:
                for work, result in results:
                    if not self.plan.is_done(work):
                        yield self._keep(work, result)
                    self._write_manifest_now_and_then()
            stopped = self.plan.counts()["todo"] > 0  # what is drawn to its end leaves none
            if sheets and not stopped:
                num_sheets = batch_manifest.write_sheets(self.plan, self.out)
        finally:
            self.journal.close()
            batch_manifest.write_manifest(self.plan, self.manifest)
        counts = self.plan.counts()
        yield Ended(
            self.made,
            counts["done"],
            counts["failed"],
            stopped,
            str(self.manifest),
            num_sheets,
            time.monotonic() - self.started,
        )

    def _place_again(self, work: Work) -> Path | None:
        """Move what a killed process drew; the staged file if that can't be done."""
        staged = self._staged(work.digest, work.file)
        try:
            self._place(work, staged, work.file)
        except UserError as error:
            self.plan.mark(work, "failed", why=str(error))
            return staged
        return None

    def _sweep(self, kept: set[str]) -> None:
        """Remove what a killed process left: drawn, but not written in the journal."""
        for path in self.staging.iterdir():
            if path.suffix in (*picture_metadata.FORMATS, ".tmp") and path.name not in kept:
                path.unlink()

    def _begin(self, chunk: list[Work]) -> None:
        self.journal.write({"begun": [work.digest for work in chunk]})

    def _write_manifest_now_and_then(self) -> None:
        # Not when all is done: the last manifest comes after the sheets, and says that.
        if time.monotonic() > self.next_manifest_s and self.plan.counts()["todo"]:
            before = time.monotonic()
            batch_manifest.write_manifest(self.plan, self.manifest)
            # A manifest of many rows takes long; it may take up to a twentieth of the time.
            self.next_manifest_s = time.monotonic() + max(_MANIFEST_EVERY_S, 20 * (time.monotonic() - before))

    def _keep(self, work: Work, result: Result) -> Event:
        """Save a picture, or note why there is none."""
        try:
            if isinstance(result, UserError):
                raise result
            self._place(work, picture_metadata.save(result, self._staged(work.digest, work.name)))
        except UserError as error:
            self.journal.write({"failed": work.digest, "why": str(error)[:2000]})
            self.plan.mark(work, "failed", why=str(error))
            return Refused(work.place, str(error))
        self.made += 1
        self.there += 1
        return Rendered(work.place, self.plan.file_of(work), self.there, self.total, time.monotonic() - self.started)

    def _place(self, work: Work, staged: Path, noted: str = "") -> None:
        """Give a drawn picture its name: the name `noted` in the journal, or a free name.

        Raises: RunError if none is free.
        """
        record, gone = seal(staged), thrown(self.out)
        if noted and _link(staged, self.out / noted):
            self.plan.mark(work, "done", noted)
            return
        for name in _names(work):
            if os.path.lexists(self.out / name) or name in gone:
                continue
            self.journal.write({"done": work.digest, "file": name, **record})
            if _link(staged, self.out / name):
                self.plan.mark(work, "done", name)
                return
        raise RunError(
            f"{work.name} and every other name tried for it in {self.out} are taken by files that aren't this picture."
        )

    def _staged(self, digest: str, name: str) -> Path:
        return self.staging / f"{digest}{Path(name).suffix.lower()}"


def _link(staged: Path, target: Path) -> bool:
    """Give a staged file its name; False if there is another file of that name.

    Raises: RunError if its folder can't be made.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunError(f"{target} can't be written: a file stands where its folder should be.") from None
    try:
        if system.link(staged, target):
            staged.unlink()
            return True
    except FileExistsError:
        return False
    if os.path.lexists(target):
        return False
    system.replace(staged, target)
    return True


def _names(work: Work) -> Iterator[str]:
    """The wanted name, then others beside it."""
    stem, ending = os.path.splitext(work.name)
    yield work.name
    yield from (f"{stem}-{number}{ending}" for number in range(2, _MAX_TAKEN + 1))
    yield f"{stem}-{work.digest}{ending}"
