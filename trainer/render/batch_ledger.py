"""What a batch has to do and has done: every wanted picture by the digest of its recipe, in a database on disk.

A recipe is the stack with its base, LoRAs and masks by their content, never by path or name, and its prompts as they
are drawn, with the LoRAs they name among the others: a base, LoRA or line of wildcards that was changed is another
recipe, drawn anew. One recipe is one picture, however many rows want it: it is called as the first of them says, and a
later run with other names or another order of rows leaves it as it is.

A picture is done when the journal (`batch_journal`) says so and the file is what it says. Pictures that were being
drawn together when a run was killed are drawn together again, since floating point depends on what else is in a batch:
so a run that was killed and goes on gives byte for byte the pictures of one that wasn't.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer import base_defaults, base_match, bases, families
from trainer.config import StackConfig
from trainer.errors import ConfigError, UserError
from trainer.render import family_checks, modes, picture_names, prompting, sharing
from trainer.render.batch_journal import HIDDEN as HIDDEN
from trainer.render.batch_journal import Journal as Journal
from trainer.render.batch_journal import is_whole
from trainer.render.batch_journal import read_journal as read_journal
from trainer.render.batch_journal import seal as seal
from trainer.render.batch_journal import thrown as thrown
from trainer.render.batch_recipe import Library, base_hash, identified
from trainer.render.jobs_file import Row

PIXELS_AT_ONCE = 1 << 20  # of a batch, as in `engine`
_MOST_ADAPTERS = 8  # of a batch: those that not every picture has at one weight cost something at every step
_MOST_PROBLEMS = 5
_MOST_OPEN = 4096  # batches that were being drawn at once when a run was killed
_PAGE = 512  # rows that a query reads at once
_SCHEMA = """
CREATE TABLE pictures (
    place INTEGER PRIMARY KEY, digest TEXT UNIQUE, kind TEXT, stack_key TEXT, pixels INTEGER, stack TEXT, name TEXT,
    state TEXT, why TEXT DEFAULT '', file TEXT DEFAULT '', bytes INTEGER, mtime_ns INTEGER, sha256 TEXT,
    failed INTEGER DEFAULT 0, taken INTEGER DEFAULT 0
);
CREATE TABLE rows (number INTEGER PRIMARY KEY, place INTEGER);
"""
_COLUMNS = "place, digest, stack, name, state, file, why"


@dataclass(frozen=True)
class Work:
    """One picture that is wanted."""

    place: int  # number of the first row that wants it
    digest: str
    stack: StackConfig
    name: str  # wanted, below the folder
    state: str  # todo, staged (drawn, not yet moved), done or failed
    file: str  # where it is, if it is done or staged
    why: str


def _work(columns: tuple[Any, ...]) -> Work:
    place, digest, stack, name, state, file, why = columns
    return Work(place, digest or "", StackConfig.model_validate_json(stack), name, state, file, why)


# The plan.


class Plan:
    """Rows and pictures in a temporary database on disk, so that a million of them take no memory."""

    def __init__(self) -> None:
        self.warnings: tuple[str, ...] = ()  # of LoRAs that are for another base than they are drawn on
        # An empty name is a temporary file, which goes away with the connection.
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)

    def add(self, row: Row, base_digest: str, library: Library) -> StackConfig | None:
        """Put in a row that can be used, and give its stack with the files found.

        None for a picture whose files can't be read or whose prompt has a problem: it has failed already.
        """
        assert row.stack is not None
        digest, stack, state, why = None, row.stack, "todo", ""
        try:
            if row.problem:
                raise ConfigError(row.problem)
            digest, stack = identified(row.stack, base_digest, library)
        except UserError as error:
            state, why = "failed", str(error)
        name = picture_names.of_row(row.name, row.number, stack, digest or "")
        kind, stack_key = _keys(stack)
        self.db.execute(
            "INSERT OR IGNORE INTO pictures (place, digest, kind, stack_key, pixels, stack, name, state, why) VALUES "
            "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.number,
                digest,
                kind,
                stack_key,
                stack.width_px * stack.height_px,
                stack.model_dump_json(),
                name,
                state,
                why,
            ),
        )
        # A recipe that is there already keeps its place; a picture that failed has no digest to be found by.
        first = self.db.execute("SELECT place FROM pictures WHERE digest = ?", (digest,)).fetchone()
        self.db.execute("INSERT INTO rows VALUES (?, ?)", (row.number, first[0] if first else row.number))
        return stack if state == "todo" else None

    def pictures(self) -> Iterator[Work]:
        """Every picture, in the order of the rows."""
        return self._where("1")

    def rows(self) -> Iterator[tuple[int, Work]]:
        """Every row's number and its picture."""
        last = 0
        query = f"SELECT number, {_COLUMNS} FROM rows JOIN pictures USING (place) WHERE number > ?"
        while page := self.db.execute(f"{query} ORDER BY number LIMIT {_PAGE}", (last,)).fetchall():
            yield from ((number, _work(tuple(columns))) for number, *columns in page)
            last = page[-1][0]

    def counts(self) -> dict[str, int]:
        """How many rows, how many pictures (distinct recipes), and how many of them in each state."""
        states = dict(self.db.execute("SELECT state, count(*) FROM pictures GROUP BY state").fetchall())
        rows = self.db.execute("SELECT count(*) FROM rows").fetchone()[0]
        return {
            "rows": rows,
            "pictures": sum(states.values()),
            **{state: states.get(state, 0) for state in ("todo", "staged", "done", "failed")},
        }

    def mark(self, work: Work, state: str, file: str = "", why: str = "") -> None:
        """Set a picture's state, and where it is or why it failed."""
        self.db.execute(
            "UPDATE pictures SET state = ?, file = ?, why = ? WHERE place = ?", (state, file, why, work.place)
        )

    def file_of(self, work: Work) -> str:
        """Where a picture is now, if it is done or staged."""
        file: str = self.db.execute("SELECT file FROM pictures WHERE place = ?", (work.place,)).fetchone()[0]
        return file

    def is_done(self, work: Work) -> bool:
        """Whether a picture is done by now: it may stand in two batches that were broken off."""
        return bool(
            self.db.execute("SELECT state FROM pictures WHERE place = ?", (work.place,)).fetchone()[0] == "done"
        )

    def groups(self) -> Iterator[tuple[str, int]]:
        """What is to be drawn: base, size, steps and LoRAs together in words, and how many pictures."""
        for kind, stack_key, count in self.db.execute(
            "SELECT kind, stack_key, count(*) FROM pictures WHERE state = 'todo' GROUP BY kind, stack_key ORDER BY "
            "kind, stack_key"
        ):
            shared = json.loads(kind)
            size = f"{shared['width_px']}x{shared['height_px']}"
            loras = ", ".join(f"{lora['name']} {lora['weight']:g}" for lora in json.loads(stack_key)) or "no LoRA"
            yield f"{shared['base']} ({shared['family']}), {size}, {shared['steps']} steps, {loras}", count

    def _where(self, condition: str) -> Iterator[Work]:
        """Pictures that an SQL condition holds for, in the order of the rows.

        Read page by page, so that a picture may be marked while they are gone through.
        """
        last = 0
        query = f"SELECT {_COLUMNS} FROM pictures WHERE place > ? AND {condition} ORDER BY place LIMIT {_PAGE}"
        while page := self.db.execute(query, (last,)).fetchall():
            yield from map(_work, page)
            last = page[-1][0]

    # Against what is there.

    def reconcile(self, out: Path) -> list[list[str]]:
        """The batches that were broken off, as digests; every picture is marked by whether it is there.

        Reads, and changes no file.
        """
        # What the journal says. A batch was broken off if a digest of it is neither done nor failed.
        batches: dict[int, tuple[list[str], set[str]]] = {}  # by turn: digests, and those of them that are still open
        turns: dict[str, list[int]] = {}  # of the open batches that a digest is in
        for turn, record in enumerate(read_journal(out)):
            if (begun := record.get("begun")) is not None:
                batches[turn] = (begun, set(begun))
                for digest in batches[turn][1]:
                    turns.setdefault(digest, []).append(turn)
                if len(batches) > _MOST_OPEN:
                    del batches[next(iter(batches))]
                continue
            digest = record.get("done") or record["failed"]
            for begun_at in turns.pop(digest, ()):
                if begun_at in batches:
                    batches[begun_at][1].discard(digest)
                    if not batches[begun_at][1]:
                        del batches[begun_at]
            if "done" in record:
                self.db.execute(
                    "UPDATE pictures SET failed = 0, file = ?, bytes = ?, mtime_ns = ?, sha256 = ? WHERE digest = ?",
                    (record["file"], record["bytes"], record["mtime_ns"], record["sha256"], digest),
                )
            else:
                self.db.execute("UPDATE pictures SET failed = 1 WHERE digest = ?", (digest,))

        # Whether the files are what it says: at their place, still where they were drawn to, or thrown away since.
        gone = thrown(out)
        for work in self._where("file != '' AND state = 'todo'"):
            size, mtime_ns, sha256 = self.db.execute(
                "SELECT bytes, mtime_ns, sha256 FROM pictures WHERE place = ?", (work.place,)
            ).fetchone()
            if is_whole(out / work.file, size, mtime_ns, sha256):
                self.mark(work, "done", work.file)
            elif is_whole(out / HIDDEN / f"{work.digest}{Path(work.file).suffix}", size, mtime_ns, sha256):
                self.mark(work, "staged", work.file)
            elif work.file in gone:
                self.mark(work, "done", work.file, "thrown away")
        return [digests for digests, _ in batches.values()]

    def staged(self) -> Iterator[Work]:
        return self._where("state = 'staged'")

    def failed(self) -> Iterator[Work]:
        return self._where("state = 'failed'")

    def chunks(self, torn: Iterable[list[str]]) -> Iterator[list[Work]]:
        """What is to be drawn, in batches, by base, size, steps and LoRAs.

        Batches that were broken off (`torn`) come first and as they were. What failed before comes last, so that it
        doesn't move the others into other batches.
        """
        self.db.executescript("DROP TABLE IF EXISTS work; CREATE TABLE work (turn INTEGER PRIMARY KEY, place INTEGER)")
        for digests in torn:
            works = [self._by_digest(digest) for digest in digests]  # None for what no row wants any more
            if all(works) and any(work.state == "todo" for work in works if work):
                self.db.executemany("UPDATE pictures SET taken = 1 WHERE digest = ?", [(digest,) for digest in digests])
                yield [work for work in works if work]
        self.db.execute(
            "INSERT INTO work (place) SELECT place FROM pictures WHERE state = 'todo' AND NOT taken ORDER BY failed, "
            "kind, stack_key, place"
        )
        yield from self._packed()

    def _by_digest(self, digest: str) -> Work | None:
        columns = self.db.execute(f"SELECT {_COLUMNS} FROM pictures WHERE digest = ?", (digest,)).fetchone()
        return _work(columns) if columns else None

    def _packed(self) -> Iterator[list[Work]]:
        """Batches of one kind, as full as they may be; from half full on they end where another stack begins."""
        chunk: list[Work] = []
        # Of the picture before, and of all in the batch.
        before, adapters = ("", "", 0), set[str]()
        last = 0
        columns = ", ".join(f"pictures.{column}" for column in _COLUMNS.split(", "))
        query = (
            f"SELECT turn, kind, stack_key, failed, pixels, {columns} FROM work JOIN pictures USING (place) WHERE "
            f"turn > ? ORDER BY turn LIMIT {_PAGE}"
        )
        while page := self.db.execute(query, (last,)).fetchall():
            for turn, kind, stack_key, failed, pixels, *picture in page:
                last, limit, now = turn, max(1, PIXELS_AT_ONCE // pixels), (kind, stack_key, failed)
                own_adapters = {adapter["sha256"] for adapter in json.loads(stack_key)}
                # A batch has one kind. What failed before is kept apart, so that the others stay as they would be.
                must_end = (
                    len(chunk) >= limit
                    or (kind, failed) != (before[0], before[2])
                    or len(adapters | own_adapters) > _MOST_ADAPTERS
                )
                # LoRAs that not all pictures share cost something at every step: half full is full enough for them.
                may_end = now != before and 2 * len(chunk) >= limit
                if chunk and (must_end or may_end):
                    yield chunk
                    chunk, adapters = [], set()
                chunk.append(_work(tuple(picture)))
                before, adapters = now, adapters | own_adapters
        if chunk:
            yield chunk


def _keys(stack: StackConfig) -> tuple[str, str]:
    """By which pictures are brought together: what a batch has in common, and the LoRAs with their weights."""
    loras = [
        adapter.model_dump(mode="json", exclude={"file", "trigger", "enabled"})
        for adapter in stack.adapters
        if adapter.enabled
    ]
    return json.dumps(dict(sharing.key(stack))), json.dumps(loras)


# Making a plan.


class _Bases:
    """What was found out of each base and size, asked once: a batch may have a million rows."""

    def __init__(self, download: bool, quantise: str) -> None:
        self.download, self.quantise = download, quantise
        # By base and family.
        self.folders: dict[tuple[str, str], tuple[Path, str]] = {}  # and hashes
        self.sizes: set[tuple[str, str, int, int]] = set()
        self.usual: dict[tuple[str, str], StackConfig] = {}
        self.origins: dict[tuple[str, str], base_match.Origin] = {}
        self.warned: dict[tuple[str, str, str], str] = {}  # by base, family and LoRA

    def completed(self, stack: StackConfig) -> StackConfig:
        """The stack with what it leaves to its base. Raises: ModelError if that can't be fetched."""
        missing = base_defaults.left_out(stack)
        if not missing:
            return stack
        key = (stack.base, "" if "family" in missing else stack.family)
        if key not in self.usual:
            if self.download:
                bases.fetch(stack.base)
            own = {"base": stack.base} | ({"family": stack.family} if key[1] else {})
            self.usual[key] = base_defaults.completed(StackConfig.model_validate(own))
        return stack.model_copy(update={name: getattr(self.usual[key], name) for name in missing})

    def warn(self, stack: StackConfig) -> None:
        """Keep what a checked stack's LoRAs say of being for another base."""
        key = (stack.base, stack.family)
        for adapter in stack.adapters:
            drawn_on = (*key, adapter.file)
            if adapter.enabled and adapter.file and drawn_on not in self.warned:
                if key not in self.origins:
                    self.origins[key] = base_match.of_base(stack.base, self.folders[key][0], stack.family)
                self.warned[drawn_on] = base_match.warning(Path(adapter.file), self.origins[key])

    def checked_hash(self, stack: StackConfig) -> str:
        """The hash of a stack's base. Raises: ModelError if it isn't here or can't draw that size."""
        key = (stack.base, stack.family)
        if key not in self.folders:
            folder = bases.resolve(stack.base, families.registry()[stack.family], self.download)
            self.folders[key] = (folder, base_hash(folder, self.quantise))
        folder, hash_ = self.folders[key]
        if (size := (*key, stack.width_px, stack.height_px)) not in self.sizes:
            bases.check_pixels(folder, {"width_px": stack.width_px, "height_px": stack.height_px})
            self.sizes.add(size)
        return hash_


def _drawn(stack: StackConfig, library: Library, wildcards: Path | None) -> tuple[StackConfig, str]:
    """The stack with its prompts drawn and the LoRAs they name among its adapters; or as it was, and why not."""
    try:
        return prompting.without_tags(stack, wildcards, library), ""
    except UserError as error:
        return stack, str(error)


def make(
    rows: Iterable[Row],
    download: bool = False,
    library: Library = dict,
    wildcards: Path | None = None,
    quantise: str = "none",
) -> Plan:
    """The plan of all rows.

    LoRAs that prompts name are looked for in `library`, which is asked once, and `__name__` in the folder of
    `wildcards`. Pictures of a base that the engine is to `quantise` are others. Raises: ConfigError with the first rows
    that can't be used, ModelError for a base that isn't here.
    """
    plan, problems = Plan(), []
    bases_, library_once = _Bases(download, quantise), lru_cache(1)(library)
    for row in rows:
        try:
            if row.stack is None:
                raise ConfigError(row.problem)
            # An error here stops the whole batch; a problem with a prompt or a LoRA file fails its own picture alone.
            completed = bases_.completed(row.stack)
            base_digest = bases_.checked_hash(completed)
            family_checks.check(families.registry()[completed.family], completed)
            stack, problem = _drawn(completed, library_once, wildcards)
            if stack.mode != "sum" and not problem:
                num_enabled = sum(adapter.enabled for adapter in stack.adapters)
                modes.chosen(stack.mode, num_enabled, stack.guidance_scale)
            with_files = plan.add(replace(row, stack=stack, problem=problem), base_digest, library_once)
            if with_files:
                bases_.warn(with_files)
        except UserError as error:
            problems.append(f"  {row.where}: {str(error)[:400]}")
            if len(problems) >= _MOST_PROBLEMS:
                problems.append("  and perhaps more after these.")
                break
    plan.warnings = tuple(filter(None, bases_.warned.values()))
    if problems:
        raise ConfigError("rows that can't be used, so nothing was drawn:\n" + "\n".join(problems))
    return plan
