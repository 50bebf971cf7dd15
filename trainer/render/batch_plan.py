"""What a batch has to do and has done: every wanted picture by the digest of its recipe, in a database beside memory, and a journal.

A recipe is the stack with its base, LoRAs and masks by their content, never by path or name, and its prompts as they are drawn, with the
LoRAs they name among the others: a base, LoRA or line of wildcards that was changed is another recipe, drawn anew. One recipe is one picture, however many rows
want it: it is called as the first of them says, and a later run with other names or another order of rows leaves it as it is.

`<out>/.batch/journal.jsonl` only grows, each line synced before what it says is relied on:

    {"begun": [digest, ...]}                            these are drawn now, as one batch
    {"done": digest, "file", "bytes", "mtime_ns", "sha256"}    drawn, whole in `.batch/`, and about to be moved to `file`
    {"failed": digest, "why"}

A picture is done when the journal says so and the file is what it says. A batch that was broken off is drawn again in the same company,
since floats depend on it: so the pictures of a batch that was killed are byte for byte those of one that wasn't.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from trainer import base_defaults, base_match, bases, families, files
from trainer.config import StackConfig
from trainer.errors import ConfigError, UserError
from trainer.render import family_checks, modes, prompting, sharing
from trainer.render.batch_recipe import Library, base_hash, file_name, identified
from trainer.render.jobs_file import Row

HIDDEN = ".batch"
PIXELS_AT_ONCE = 1 << 20  # of a batch, as in `engine`
_MOST_ADAPTERS = 8  # of a batch: those that not every picture has at one weight cost something at every step
_MOST_PROBLEMS = 5
_SCHEMA = """
CREATE TABLE pictures (place INTEGER PRIMARY KEY, digest TEXT UNIQUE, kind TEXT, stack_key TEXT, pixels INTEGER, stack TEXT, name TEXT,
    state TEXT, why TEXT DEFAULT '', file TEXT DEFAULT '', bytes INTEGER, mtime_ns INTEGER, sha256 TEXT, failed INTEGER DEFAULT 0, taken INTEGER DEFAULT 0);
CREATE TABLE rows (number INTEGER PRIMARY KEY, place INTEGER);
"""


@dataclass(frozen=True)
class Work:
    """One picture: `place` is the number of the first row that wants it; `state` is todo, staged (drawn, not yet moved), done or failed."""

    place: int
    digest: str
    stack: StackConfig
    name: str  # wanted, below the folder
    state: str
    file: str  # where it is, if it is done or staged
    why: str


_COLUMNS = "place, digest, stack, name, state, file, why"


def _work(found: tuple[Any, ...]) -> Work:
    place, digest, stack, name, state, file, why = found
    return Work(place, digest or "", StackConfig.model_validate_json(stack), name, state, file, why)


# The plan.


class Plan:
    """Rows and pictures in a temporary database on disk, so that a million of them take no memory."""

    def __init__(self) -> None:
        self.warnings: tuple[str, ...] = ()  # of LoRAs that are for another base than they are drawn on
        self.db = sqlite3.connect("", isolation_level=None)
        self.db.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + _SCHEMA)

    def add(self, row: Row, of_base: str, library: Library) -> StackConfig | None:
        """A good row; its stack with its files found. None for a picture whose files can't be read or whose prompt has a problem: it has failed already."""
        assert row.stack is not None
        digest, stack, state, why = None, row.stack, "todo", ""
        try:
            if row.problem:
                raise ConfigError(row.problem)
            digest, stack = identified(row.stack, of_base, library)
        except UserError as error:
            state, why = "failed", str(error)
        name = file_name(row.name, row.number, stack, digest or "")
        kind, stack_key = _keys(stack)
        self.db.execute(
            "INSERT OR IGNORE INTO pictures (place, digest, kind, stack_key, pixels, stack, name, state, why) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (row.number, digest, kind, stack_key, stack.width_px * stack.height_px, stack.model_dump_json(), name, state, why),
        )
        found = self.db.execute("SELECT place FROM pictures WHERE digest = ?", (digest,)).fetchone()
        self.db.execute("INSERT INTO rows VALUES (?, ?)", (row.number, found[0] if found else row.number))
        return stack if state == "todo" else None

    def pictures(self) -> Iterator[Work]:
        """Every picture, in the order of the rows."""
        return self._where("1")

    def rows(self) -> Iterator[tuple[int, Work]]:
        """Every row's number and its picture."""
        last = 0
        while found := self.db.execute(
            f"SELECT number, {_COLUMNS} FROM rows JOIN pictures USING (place) WHERE number > ? ORDER BY number LIMIT 512", (last,)
        ).fetchall():
            yield from ((one[0], _work(one[1:])) for one in found)
            last = found[-1][0]

    def counts(self) -> dict[str, int]:
        """How many rows, how many pictures (distinct recipes), and how many of them in each state."""
        states = dict(self.db.execute("SELECT state, count(*) FROM pictures GROUP BY state").fetchall())
        rows = self.db.execute("SELECT count(*) FROM rows").fetchone()[0]
        return {"rows": rows, "pictures": sum(states.values()), **{state: states.get(state, 0) for state in ("todo", "staged", "done", "failed")}}

    def mark(self, work: Work, state: str, file: str = "", why: str = "") -> None:
        self.db.execute("UPDATE pictures SET state = ?, file = ?, why = ? WHERE place = ?", (state, file, why, work.place))

    def file_of(self, work: Work) -> str:
        found: str = self.db.execute("SELECT file FROM pictures WHERE place = ?", (work.place,)).fetchone()[0]
        return found

    def groups(self) -> Iterator[tuple[str, int]]:
        """What is to be drawn: base, size, steps and LoRAs together in words, and how many pictures."""
        for kind, stack_key, count in self.db.execute(
            "SELECT kind, stack_key, count(*) FROM pictures WHERE state = 'todo' GROUP BY kind, stack_key ORDER BY kind, stack_key"
        ):
            said = json.loads(kind)
            loras = ", ".join(f"{one['name']} {one['weight']:g}" for one in json.loads(stack_key)) or "no LoRA"
            yield f"{said['base']} ({said['family']}), {said['width_px']}x{said['height_px']}, {said['steps']} steps, {loras}", count

    def _where(self, condition: str) -> Iterator[Work]:
        last = 0
        while found := self.db.execute(f"SELECT {_COLUMNS} FROM pictures WHERE place > ? AND {condition} ORDER BY place LIMIT 512", (last,)).fetchall():
            yield from map(_work, found)
            last = found[-1][0]

    # Against what is there.

    def reconcile(self, out: Path) -> list[list[str]]:
        """Say of every picture whether it is there; the batches that were broken off, as digests. Reads, and changes no file."""
        torn: list[tuple[list[str], set[str]]] = []
        for record in read_journal(out):
            if (begun := record.get("begun")) is not None:
                torn = [one for one in torn if one[1]][-64:] + [(begun, set(begun))]
                continue
            digest = record.get("done") or record.get("failed")
            for _, left in torn:
                left.discard(digest)
            if "done" in record:
                wanted = (record["file"], record["bytes"], record["mtime_ns"], record["sha256"], digest)
                self.db.execute("UPDATE pictures SET failed = 0, file = ?, bytes = ?, mtime_ns = ?, sha256 = ? WHERE digest = ?", wanted)
            else:
                self.db.execute("UPDATE pictures SET failed = 1 WHERE digest = ?", (digest,))
        for work in self._where("file != '' AND state = 'todo'"):
            size, mtime_ns, sha256 = self.db.execute("SELECT bytes, mtime_ns, sha256 FROM pictures WHERE place = ?", (work.place,)).fetchone()
            if is_whole(out / work.file, size, mtime_ns, sha256):
                self.mark(work, "done", work.file)
            elif is_whole(out / HIDDEN / f"{work.digest}{Path(work.file).suffix}", size, mtime_ns, sha256):
                self.mark(work, "staged", work.file)
        return [begun for begun, left in torn if left]

    def staged(self) -> Iterator[Work]:
        return self._where("state = 'staged'")

    def failed(self) -> Iterator[Work]:
        return self._where("state = 'failed'")

    def chunks(self, torn: Iterable[list[str]]) -> Iterator[list[Work]]:
        """What is to be drawn, in batches: those that were broken off in their old company, then by base, size, steps and LoRAs.

        What failed before comes last, so that it doesn't move the others into other batches.
        """
        self.db.executescript("DROP TABLE IF EXISTS work; CREATE TABLE work (turn INTEGER PRIMARY KEY, place INTEGER)")
        for digests in torn:
            works = [self._by_digest(digest) for digest in digests]
            if all(works) and any(work.state == "todo" for work in works if work):
                self.db.executemany("UPDATE pictures SET taken = 1 WHERE digest = ?", [(digest,) for digest in digests])
                yield [work for work in works if work]
        self.db.execute("INSERT INTO work (place) SELECT place FROM pictures WHERE state = 'todo' AND NOT taken ORDER BY failed, kind, stack_key, place")
        yield from self._packed()

    def _by_digest(self, digest: str) -> Work | None:
        found = self.db.execute(f"SELECT {_COLUMNS} FROM pictures WHERE digest = ?", (digest,)).fetchone()
        return _work(found) if found else None

    def _packed(self) -> Iterator[list[Work]]:
        """Batches of one kind, as full as they may be; from half full on they end where another stack begins."""
        chunk: list[Work] = []
        before, adapters = ("", "", 0), set[str]()
        last = 0
        columns = ", ".join(f"pictures.{column}" for column in _COLUMNS.split(", "))
        query = f"SELECT turn, kind, stack_key, failed, pixels, {columns} FROM work JOIN pictures USING (place) WHERE turn > ? ORDER BY turn LIMIT 512"
        while found := self.db.execute(query, (last,)).fetchall():
            for turn, kind, stack_key, failed, pixels, *rest in found:
                last, limit, now = turn, max(1, PIXELS_AT_ONCE // pixels), (kind, stack_key, failed)
                here = {one["sha256"] for one in json.loads(stack_key)}
                ends = len(chunk) >= limit or (now[0], now[2]) != (before[0], before[2]) or len(adapters | here) > _MOST_ADAPTERS
                if chunk and (ends or (now != before and 2 * len(chunk) >= limit)):
                    yield chunk
                    chunk, adapters = [], set()
                chunk.append(_work(tuple(rest)))
                before, adapters = now, adapters | here
        if chunk:
            yield chunk


def _keys(stack: StackConfig) -> tuple[str, str]:
    """By which pictures are brought together: what a batch has in common, and the LoRAs with their weights."""
    loras = [one.model_dump(mode="json", exclude={"file", "trigger", "enabled"}) for one in stack.adapters if one.enabled]
    return json.dumps(dict(sharing.key(stack))), json.dumps(loras)


class _Bases:
    """Each base and size looked at once."""

    def __init__(self, download: bool, quantise: str) -> None:
        self.download, self.quantise = download, quantise
        self.folders: dict[tuple[str, str], tuple[Path, str]] = {}
        self.sizes: set[tuple[str, str, int, int]] = set()
        self.usual: dict[tuple[str, str], StackConfig] = {}
        self.origins: dict[tuple[str, str], base_match.Origin] = {}
        self.warned: dict[tuple[str, str, str], str] = {}  # by base, family and LoRA

    def completed(self, stack: StackConfig) -> StackConfig:
        """The stack with what it leaves to its base, asked once of each base. Raises: ModelError if it can't be fetched."""
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
        """Remember what a checked stack's LoRAs say of being for another base."""
        key = (stack.base, stack.family)
        for adapter in stack.adapters:
            known = (stack.base, stack.family, adapter.file)
            if adapter.enabled and adapter.file and known not in self.warned:
                if key not in self.origins:
                    self.origins[key] = base_match.of_base(stack.base, self.folders[key][0], stack.family)
                self.warned[known] = base_match.warning(Path(adapter.file), self.origins[key])

    def checked(self, stack: StackConfig) -> str:
        """The hash of a stack's base. Raises: ModelError if it isn't here or can't draw that size."""
        key = (stack.base, stack.family)
        if key not in self.folders:
            folder = bases.resolve(stack.base, families.registry()[stack.family], self.download)
            self.folders[key] = (folder, base_hash(folder, self.quantise))
        folder, found = self.folders[key]
        if (size := (*key, stack.width_px, stack.height_px)) not in self.sizes:
            bases.check_pixels(folder, {"width_px": stack.width_px, "height_px": stack.height_px})
            self.sizes.add(size)
        return found


def _drawn(stack: StackConfig, library: Library, wildcards: Path | None) -> tuple[StackConfig, str]:
    """The stack with its prompts drawn and the LoRAs they name among its adapters; or as it was, and what is wrong with them."""
    try:
        return prompting.without_tags(stack, wildcards, library), ""
    except UserError as error:
        return stack, str(error)


def make(rows: Iterable[Row], download: bool = False, library: Library = dict, wildcards: Path | None = None, quantise: str = "none") -> Plan:
    """The plan of all rows. Raises: ConfigError with the first rows that can't be used, ModelError for a base that isn't here.

    LoRAs that prompts name are looked for in `library`, which is asked once, and `__name__` in the folder of `wildcards`. Pictures of a base that
    the engine is to `quantise` are others.
    """
    plan, problems = Plan(), []
    bases_, known = _Bases(download, quantise), lru_cache(1)(library)
    for row in rows:
        try:
            if row.stack is None:
                raise ConfigError(row.problem)
            whole = bases_.completed(row.stack)
            of_base = bases_.checked(whole)
            family_checks.check(families.registry()[whole.family], whole)
            stack, problem = _drawn(whole, known, wildcards)
            if stack.mode != "sum" and not problem:
                modes.chosen(stack.mode, sum(one.enabled for one in stack.adapters), stack.guidance_scale)
            if identified_ := plan.add(replace(row, stack=stack, problem=problem), of_base, known):
                bases_.warn(identified_)
        except UserError as error:
            problems.append(f"  {row.where}: {str(error)[:400]}")
            if len(problems) >= _MOST_PROBLEMS:
                problems.append("  and perhaps more after these.")
                break
    plan.warnings = tuple(filter(None, bases_.warned.values()))
    if problems:
        raise ConfigError("rows that can't be used, so nothing was drawn:\n" + "\n".join(problems))
    return plan


# The journal, and files.


def seal(path: Path) -> dict[str, Any]:
    """Sync a file to the disk; what the journal says of it."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        status = os.fstat(file.fileno())
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": files.sha256(path)}


def is_whole(path: Path, size: int, mtime_ns: int, sha256: str) -> bool:
    """True if the file is the one that was written; it is only read where its time says that it was copied or touched."""
    try:
        status = path.stat()
        return status.st_size == size and (status.st_mtime_ns == mtime_ns or files.sha256(path) == sha256)
    except OSError:
        return False


def read_journal(out: Path) -> Iterator[dict[str, Any]]:
    """Its records, oldest first; a torn line is passed over, and one that names a file outside the folder."""
    path = out / HIDDEN / "journal.jsonl"
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(record):
                yield record


def _is_record(record: dict[str, Any]) -> bool:
    if "begun" in record:
        return isinstance(record["begun"], list) and all(isinstance(digest, str) and _is_plain(digest) for digest in record["begun"])
    wanted = {"done": str, "file": str, "bytes": int, "mtime_ns": int, "sha256": str} if "done" in record else {"failed": str}
    typed = all(isinstance(record.get(key), kind) and _is_plain(record[key]) for key, kind in wanted.items())
    path = PurePath(str(record.get("file", "")))
    return typed and not path.is_absolute() and ".." not in path.parts


def _is_plain(value: Any) -> bool:
    """Whether a database and a file name can hold it: no huge number, no NUL, no half of a character."""
    return abs(value) < 1 << 63 if isinstance(value, int) else "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


class Journal:
    """Appends, each line synced to the disk before the next thing is done."""

    def __init__(self, out: Path) -> None:
        (out / HIDDEN).mkdir(parents=True, exist_ok=True)
        self.file = (out / HIDDEN / "journal.jsonl").open("ab")
        if self.file.tell():  # a torn last line must not swallow the next
            self.write(None)

    def write(self, record: dict[str, Any] | None) -> None:
        self.file.write(b"\n" if record is None else json.dumps(record).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
