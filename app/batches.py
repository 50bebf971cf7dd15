"""Batches that the page starts: what a browser sent becomes a jobs file that names no path of its own, and a job that
draws it.

LoRAs go by name or hash, bases by what the server offers, masks only inside the file; `velatura batch` then does the
work in a child process, and what is shown is read from its journal, its manifest and its log.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from app import path_gate, zips
from app.context import Context, newest_first
from app.job_table import Job
from app.texts import say
from app.views import Progress, duration, notice_html
from trainer import lora_file, spreadsheet
from trainer.config import AdapterChoice, BatchConfig, StackConfig, parse
from trainer.config import weights as typed
from trainer.config.batch import SHEETS, adapter
from trainer.config.parsing import from_toml, text_of
from trainer.config.stack import WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.printing import plain

KINDS = {".toml": "batch-toml", ".csv": "batch-csv"}  # of a job, by what its jobs file is
MAX_BYTES = 8 << 20
MAX_PROMPTS_CHARS, MAX_LIST_CHARS = 1_000_000, 4000
MAX_PAGE_PICTURES = 20_000
_TAIL_BYTES = 64 << 10
# Numbers that an event must have to be shown.
_FIGURES = {"rendered": ("done", "total", "seconds"), "ended": ("seconds", "failed")}
_IMAGES = (".png", ".webp", ".jpg", ".jpeg")
_STATES = {
    "queued": say("job.queued"),
    "running": say("batch.drawing"),
    "stopping": say("batch.stopping"),
    "pausing": say("batch.pausing"),
    "stopped": say("job.stopped"),
    "paused": say("batch.paused"),
    "finished": say("job.finished"),
    "failed": say("job.failed"),
    "interrupted": say("job.interrupted"),
}


@dataclass(frozen=True)
class Jobs:
    """A jobs file to be: its text, and the ending that says how to read it."""

    text: str
    suffix: str

    @property
    def kind(self) -> str:
        return KINDS[self.suffix]


# From the browser.


def composed(context: Context, stack: StackConfig, prompts: str, weights: str, seeds: str, name: str) -> Jobs:
    """Every line of `prompts` with the stack at every weight and seed. Raises: ConfigError, AdapterError."""
    lines, chosen = lines_of(prompts), seeds_of(seeds)

    # Of the stack what a batch has too and what was changed; a picture's size, steps and guidance whatever they are.
    changed = [
        key
        for key, info in StackConfig.model_fields.items()
        if key in BatchConfig.model_fields and getattr(stack, key) != info.default
    ]
    keys = [*changed, "base", "family", "width_px", "height_px", "steps", "guidance_scale"]
    values = {key: getattr(stack, key) for key in keys} | {
        "prompts": lines or [stack.prompt],
        "stacks": [[lora.model_dump() for lora in stack.adapters]],
        "weights": numbers(weights),
        "seeds": chosen or [stack.seed],
    }
    if name.strip():
        values["name"] = name.strip()
    return as_toml(path_gate.checked(context, parse(BatchConfig, values, say("where.batch"))))


def lines_of(prompts: str) -> list[str]:
    """The prompts, one a line. Raises: ConfigError for too many letters."""
    return [
        line.strip()
        for line in _short(say("batch.the_prompts"), prompts, MAX_PROMPTS_CHARS).splitlines()
        if line.strip()
    ]


def seeds_of(seeds: str) -> list[int | str]:
    """Seeds and ranges as typed. Raises: ConfigError for too many letters."""
    return [part.strip() for part in _short(say("batch.the_seeds"), seeds, MAX_LIST_CHARS).split(",") if part.strip()]


def _short(label: str, text: str, most: int) -> str:
    if len(text) > most:
        raise ConfigError(say("problems.have_too_many", what=label, num=len(text), most=most))
    return text


def numbers(text: str) -> list[float]:
    """Weights as typed, 1 where nothing is. Raises: ConfigError."""
    _short(say("batch.the_weights"), text, MAX_LIST_CHARS)
    parts = [part for part in text.split(",") if part.strip()]
    try:
        return typed.numbers(",".join(parts), WIDEST_WEIGHT) if parts else [1.0]
    except ValueError as error:
        raise ConfigError(say("batch.weights", weights=text[:80], reason=error)) from None


def uploaded(context: Context, path: Path) -> Jobs:
    """A jobs file from the browser, its LoRAs and bases found here. Raises: ConfigError, AdapterError."""
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise ConfigError(say("batch.jobs_file_kind", name=path.name[:80]))
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(say("batch.jobs_file_size", mib=path.stat().st_size >> 20, most=MAX_BYTES >> 20))
    return read(context, path.read_bytes(), path.name[:80])


def read(context: Context, content: bytes, name: str) -> Jobs:
    """The same of a file's content, by the ending of its name. Raises: ConfigError, AdapterError."""
    try:
        text = text_of(content, name)
        return _csv(context, text) if name.lower().endswith(".csv") else _toml(context, text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise ConfigError(say("problems.unreadable", name=name, reason=str(error)[:400])) from None


def _toml(context: Context, text: str) -> Jobs:
    return as_toml(
        path_gate.checked(context, parse(BatchConfig, from_toml(text, say("where.jobs_file")), say("where.jobs_file")))
    )


def as_toml(batch: BatchConfig) -> Jobs:
    """The batch's jobs file. Raises: ConfigError if it is more than a page may ask for; counted, not made."""
    if (num := batch.num_pictures) > MAX_PAGE_PICTURES:
        raise _too_many(num)
    return Jobs(tomli_w.dumps(batch.model_dump(mode="json", exclude_none=True, exclude_defaults=True)), ".toml")


def _csv(context: Context, text: str) -> Jobs:
    """The same rows with files for names, read as `jobs_file` reads them.

    Whatever else is wrong with them is `velatura batch`'s to say.
    """
    from trainer.render import jobs_file

    text = text.lstrip("\ufeff")  # with a second mark the reader would see other columns than we
    rows = list(spreadsheet.reader(io.StringIO(text, newline=""), strict=True))
    # Empty rows stay, so that the others keep their numbers; bare, so that they suggest no other separator.
    rows = [row if any(cell.strip() for cell in row) else [] for row in rows]
    filled = [row for row in rows if row]
    if len(filled) > MAX_PAGE_PICTURES + 1:
        raise _too_many(len(filled) - 1)
    head = jobs_file.head(filled[0]) if filled else []
    if filled:
        filled[0][:] = head

    # Each name is looked up once, however many rows have it.
    checked: dict[str, str] = {}
    for cells in filled[1:]:
        for place, column in enumerate(head[: len(cells)]):
            if not cells[place].strip() or not (column == "lora" or jobs_file.is_path(column)):
                continue
            key = f"{column} {cells[place]}"
            if key not in checked:
                checked[key] = found(context, column, cells[place])
            cells[place] = checked[key]
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return Jobs(written.getvalue(), ".csv")


def found(context: Context, column: str, cell: str) -> str:
    """A cell that names files, with the files that are meant."""
    from trainer.render import jobs_file

    if column != "lora":
        field = jobs_file.COLUMNS[column]
        return str(
            getattr(
                path_gate.checked(context, parse(StackConfig, {field: cell.strip()}, say("where.jobs_file"))), field
            )
        )
    chosen = [
        path_gate.checked(context, parse(AdapterChoice, adapter(part), say("where.jobs_file")))
        for part in cell.split(";")
        if part.strip()
    ]
    return "; ".join(f"{lora.file}:{lora.weight:g}" for lora in chosen)


def _too_many(num: int) -> ConfigError:
    return ConfigError(say("batch.too_many", num=num, most=MAX_PAGE_PICTURES))


# The plan.


@dataclass(frozen=True)
class Planned:
    """What a batch would draw, in words, and how much that is: pixels times steps, by base."""

    text: str
    work: dict[str, float]


def planned(jobs: Jobs, library: list[Path], wildcards: Path) -> Planned:
    """How many pictures, in which groups.

    LoRAs are found in the folders of `library`, files that `__name__` in a prompt names in `wildcards`. Raises:
    ConfigError with every row that can't be used, ModelError.
    """
    from trainer.render import batch_command, batch_ledger, jobs_file

    # As `velatura batch` itself plans, in a folder that nothing was drawn into yet.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"jobs{jobs.suffix}"
        path.write_text(jobs.text, encoding="utf-8")
        rows = jobs_file.read(path, jobs_file.Defaults())
        plan = batch_ledger.make(rows, library=lambda: lora_file.library(library), wildcards=wildcards)
        plan.reconcile(Path(folder) / "new")
        work: dict[str, float] = {}
        for picture in plan.pictures():
            stack = picture.stack
            work[stack.base] = work.get(stack.base, 0.0) + stack.width_px * stack.height_px * stack.steps
        return Planned(batch_command.describe(plan), work)


# The job.


@dataclass(frozen=True)
class Drawing:
    """`python -m trainer batch`: the same command goes on where it was. A `jobs.Work`."""

    folder: Path
    configs: Path
    library: tuple[Path, ...]
    wildcards: Path

    def command(self, job: Job) -> list[str]:
        self.configs.mkdir(parents=True, exist_ok=True)
        suffix = next(suffix for suffix, kind in KINDS.items() if kind == job.kind)
        jobs = self.configs / f"job-{job.id}{suffix}"
        jobs.write_text(job.config, encoding="utf-8")
        library = [part for folder in self.library for part in ("--library", str(folder))]
        batch = [sys.executable, "-m", "trainer", "batch", str(jobs)]
        return [*batch, "--out", str(self.folder / job.name), "--json", "--wildcards", str(self.wildcards), *library]

    def finished(self, job: Job) -> bool:
        """No row waits. A row that can't be drawn stands in the manifest and is no reason to begin again."""
        states = {row["state"] for row in manifest(self.folder / job.name)}
        return bool(states) and states <= {"done", "failed"}

    def saved_step(self, job: Job) -> int:
        from trainer.render import batch_ledger

        return sum("done" in record for record in batch_ledger.read_journal(self.folder / job.name))


def manifest(out: Path) -> list[dict[str, str]]:
    """The rows of a batch's manifest, none before it is written.

    A spreadsheet program may have saved it anew, so a cell may be anything.
    """
    from trainer.render.batch_manifest import manifest_file

    path = manifest_file(out)
    try:
        if not path.is_file():
            return []
        with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
            return [{key: row.get(key) or "" for key in ("row", "state", "problem")} for row in csv.DictReader(file)]
    except (OSError, csv.Error):
        return []


# What is shown.


def last_events(log: Path) -> list[dict[str, Any]]:
    """The last events in a batch's log, oldest first; without those whose figures are none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))  # the end says enough; a line that is cut is none
            lines = file.read().splitlines()
    except OSError:
        return []
    events = []
    for line in (line for line in lines if line.startswith(b"{")):  # 64 KiB may be as many lines
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                continue
            if all(_is_number(event.get(key)) for key in _FIGURES.get(event["event"], ())):
                events.append(event)
    return events


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15


def progress(job: Job, events: list[dict[str, Any]]) -> Progress:
    """Pictures there, seconds a picture of late, time left."""
    # Of the newest start alone, as the clock began anew with it.
    kinds = [event["event"] for event in events]
    begun = len(kinds) - kinds[::-1].index("planned") if "planned" in kinds else 0
    drawn = [event for event in events[begun:] if event["event"] == "rendered"]
    if job.state == "running" and not drawn:
        return Progress(say("job.loading_base"), say("batch.first_seconds"), 0.0, job.state)
    ended = next((event for event in reversed(events) if event["event"] == "ended"), None)
    newest = next((event for event in reversed(events) if event["event"] == "rendered"), None)

    parts, share = [], 1.0 if job.state == "finished" else 0.0
    if newest:
        parts.append(say("job.pictures_done", done=newest["done"], total=newest["total"]))
        share = newest["done"] / max(newest["total"], 1)
        if job.state == "running" and len(drawn) > 1:
            pace = (drawn[-1]["seconds"] - drawn[0]["seconds"]) / (len(drawn) - 1)
            parts += [
                say("batch.pace", pace=pace),
                say("job.time_left", time=duration(pace * (newest["total"] - newest["done"]))),
            ]
    if ended and job.state not in ("running", "queued"):
        parts.append(say("job.took", time=duration(ended["seconds"])))
        parts += [say("batch.num_failed", failed=ended["failed"])] if ended["failed"] else []
    return Progress(_STATES[job.state], " · ".join(parts), share, job.state)


def problems(job: Job, rows: list[dict[str, str]]) -> str:
    """Why the job failed, and which rows can't be drawn."""
    failed = [
        plain(say("table.row_problem", row=row["row"], problem=row["problem"]))
        for row in rows
        if row["state"] == "failed"
    ]
    more = [say("batch.more_failed", num=len(failed) - 20)] if len(failed) > 20 else []
    return "\n".join(filter(None, [plain(job.error, 8000), *failed[:20], *more]))


def plan_html(text: str) -> str:
    """The plan's words in a box."""
    first, *lines = text.splitlines()
    return notice_html("plain", first, [line.strip() for line in lines])


def drawn(out: Path) -> list[Path]:
    """The pictures of a batch, the newest first."""
    return newest_first(
        [
            path
            for path in out.rglob("*")
            if path.suffix.lower() in _IMAGES and not {".batch", SHEETS} & set(path.relative_to(out).parts)
        ]
    )


def contact_sheets(out: Path) -> list[Path]:
    """The sheets of a batch, in order."""
    return sorted(path for path in (out / SHEETS).glob("*.png") if path.is_file())


def pictures(out: Path, most: int) -> tuple[list[Path], int]:
    """Contact sheets, then the newest pictures, and how many pictures there are."""
    newest = drawn(out)
    return (contact_sheets(out) + newest)[:most], len(newest)


def packed(context: Context, out: Path, part_done: zips.PartDone | None = None) -> Path:
    """A zip of a batch's folder where the browser can fetch it. Raises: ConfigError if there is nothing yet."""
    paths, num = pictures(out, MAX_PAGE_PICTURES)
    if not num:
        raise ConfigError(say("batch.none_drawn"))
    return zipped(context, out, [*paths, *out.glob("manifest*.csv")], out.name, part_done)


def zipped(context: Context, out: Path, paths: list[Path], name: str, part_done: zips.PartDone | None = None) -> Path:
    """A zip of these files of a batch's folder, byte for byte, where the browser can fetch it."""
    entries = [(path.relative_to(out).as_posix(), path) for path in paths]
    return zips.write(context.cache / "files" / f"{name}.zip", entries, part_done)
