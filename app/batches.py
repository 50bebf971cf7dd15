"""Batches that the page starts: what a browser sent becomes a jobs file that names no path of its own, and a job that draws it.

LoRAs go by name or hash, bases by what the server offers, masks only inside the file; `velatura batch` then does the work in a child
process, and what is shown is read from its journal, its manifest and its log.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from app import gate
from app.context import Context, newest_first
from app.jobs import Job
from app.views import Progress, duration
from trainer import files, spreadsheet
from trainer.config import AdapterChoice, BatchConfig, StackConfig, parse
from trainer.config import weights as typed
from trainer.config.batch import adapter
from trainer.config.parsing import from_toml, text_of
from trainer.config.stack import WIDEST_WEIGHT
from trainer.errors import ConfigError
from trainer.printing import escape, plain

KINDS = {".toml": "batch-toml", ".csv": "batch-csv"}  # of a job, by what its jobs file is
MAX_BYTES = 8 << 20
MAX_PROMPTS_CHARS, MAX_LIST_CHARS = 1_000_000, 4000
MAX_PAGE_PICTURES = 20_000
_TAIL_BYTES = 64 << 10
_FIGURES = {"rendered": ("done", "total", "seconds"), "ended": ("seconds", "failed")}  # numbers that an event must have to be shown
_IMAGES = (".png", ".webp", ".jpg", ".jpeg")
_STATES = {
    "queued": "Waiting its turn", "running": "Drawing", "stopping": "Stopping: finishes what it draws", "stopped": "Stopped; it can go on",
    "finished": "Finished", "failed": "Failed", "interrupted": "Interrupted; goes on by itself",
}  # fmt: skip


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
    for name_, text, most in (("prompts", prompts, MAX_PROMPTS_CHARS), ("weights", weights, MAX_LIST_CHARS), ("seeds", seeds, MAX_LIST_CHARS)):
        if len(text) > most:
            raise ConfigError(f"{name_} have {len(text):,} characters; allowed: up to {most:,}.")
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    chosen: list[int | str] = [part.strip() for part in seeds.split(",") if part.strip()]
    shared = [key for key, info in StackConfig.model_fields.items() if key in BatchConfig.model_fields and getattr(stack, key) != info.default]
    settings = {key: getattr(stack, key) for key in [*shared, "base", "family", "width_px", "height_px", "steps", "guidance_scale"]}
    values = settings | {
        "prompts": lines or [stack.prompt], "stacks": [[one.model_dump() for one in stack.adapters]], "weights": _numbers(weights),
        "seeds": chosen or [stack.seed],
    }  # fmt: skip
    return _as_toml(gate.checked(context, parse(BatchConfig, values | ({"name": name.strip()} if name.strip() else {}), "the batch")))


def _numbers(text: str) -> list[float]:
    parts = [part for part in text.split(",") if part.strip()]
    try:
        return typed.numbers(",".join(parts), WIDEST_WEIGHT) if parts else [1.0]
    except ValueError as error:
        raise ConfigError(f"weights are {text[:80]!r}; write numbers with commas between, such as 0.5, 1: {error}") from None


def uploaded(context: Context, path: Path) -> Jobs:
    """A jobs file from the browser, its LoRAs and bases found here. Raises: ConfigError, AdapterError."""
    suffix = path.suffix.lower()
    if suffix not in KINDS:
        raise ConfigError(f"the jobs file is {path.name[:80]!r}; allowed: a .csv or a .toml.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"the jobs file has {path.stat().st_size >> 20} MiB; allowed here: up to {MAX_BYTES >> 20}. `velatura batch` takes more.")
    try:
        text = text_of(path.read_bytes(), path.name[:80])
        return _csv(context, text) if suffix == ".csv" else _toml(context, text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise ConfigError(f"{path.name[:80]} can't be read: {str(error)[:400]}") from None


def _toml(context: Context, text: str) -> Jobs:
    return _as_toml(gate.checked(context, parse(BatchConfig, from_toml(text, "the jobs file"), "the jobs file")))


def _as_toml(batch: BatchConfig) -> Jobs:
    """Raises: ConfigError if it is more than a page may ask for; counted, not made."""
    if (num := batch.num_pictures) > MAX_PAGE_PICTURES:
        raise _too_many(num)
    return Jobs(tomli_w.dumps(batch.model_dump(mode="json", exclude_none=True, exclude_defaults=True)), ".toml")


def _csv(context: Context, text: str) -> Jobs:
    """The same rows with files for names, read as `jobs_file` reads them; whatever else is wrong with them is `velatura batch`'s to say."""
    from trainer.render import jobs_file

    text = text.lstrip("\ufeff")  # one more mark, and the reader would see other columns than we
    rows = list(spreadsheet.reader(io.StringIO(text, newline=""), strict=True))
    rows = [row if any(cell.strip() for cell in row) else [] for row in rows]  # they keep their numbers, and tell no other separator
    said = [row for row in rows if row]
    if len(said) > MAX_PAGE_PICTURES + 1:
        raise _too_many(len(said) - 1)
    head = jobs_file.head(said[0]) if said else []
    if said:
        said[0][:] = head
    known: dict[str, str] = {}
    for cells in said[1:]:
        for place, column in enumerate(head[: len(cells)]):
            if cells[place].strip() and (column == "lora" or jobs_file.is_path(column)):
                cells[place] = known[key] if (key := f"{column} {cells[place]}") in known else known.setdefault(key, _cell(context, column, cells[place]))
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return Jobs(written.getvalue(), ".csv")


def _cell(context: Context, column: str, cell: str) -> str:
    """A cell that names files, with those that are meant."""
    from trainer.render import jobs_file

    if column != "lora":
        field = jobs_file.COLUMNS[column]
        return str(getattr(gate.checked(context, parse(StackConfig, {field: cell.strip()}, "the jobs file")), field))
    chosen = [gate.checked(context, parse(AdapterChoice, adapter(part), "the jobs file")) for part in cell.split(";") if part.strip()]
    return "; ".join(f"{one.file}:{one.weight:g}" for one in chosen)


def _too_many(num: int) -> ConfigError:
    return ConfigError(f"the batch has {num:,} pictures; allowed here: up to {MAX_PAGE_PICTURES:,}. `velatura batch` takes more.")


# The plan.


def plan_text(jobs: Jobs, library: list[Path]) -> str:
    """How many pictures, in which groups. Raises: ConfigError with every row that can't be used, ModelError."""
    from trainer import lora_file
    from trainer.render import batch_command, batch_plan, jobs_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"jobs{jobs.suffix}"
        path.write_text(jobs.text, encoding="utf-8")
        plan = batch_plan.make(jobs_file.read(path, jobs_file.Defaults()), library=lambda: lora_file.library(library))
        plan.reconcile(Path(folder) / "new")
        return batch_command.describe(plan)


# The job.


@dataclass(frozen=True)
class Drawing:
    """`python -m trainer batch`: the same command goes on where it was. A `jobs.Work`."""

    folder: Path
    configs: Path
    library: tuple[Path, ...]

    def command(self, job: Job) -> list[str]:
        self.configs.mkdir(parents=True, exist_ok=True)
        suffix = next(suffix for suffix, kind in KINDS.items() if kind == job.kind)
        jobs = self.configs / f"job-{job.id}{suffix}"
        jobs.write_text(job.config, encoding="utf-8")
        found = [part for folder in self.library for part in ("--library", str(folder))]
        return [sys.executable, "-m", "trainer", "batch", str(jobs), "--out", str(self.folder / job.name), "--json", *found]

    def finished(self, job: Job) -> bool:
        """No row waits; one that can't be drawn is said in the manifest and is no reason to begin again."""
        states = {row["state"] for row in manifest(self.folder / job.name)}
        return bool(states) and states <= {"done", "failed"}

    def saved_step(self, job: Job) -> int:
        from trainer.render import batch_plan

        return sum("done" in record for record in batch_plan.read_journal(self.folder / job.name))


def manifest(out: Path) -> list[dict[str, str]]:
    """The rows of a batch's manifest, none before it is written. A spreadsheet program may have saved it anew, so a cell may be anything."""
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


def told(log: Path) -> list[dict[str, Any]]:
    """The last events in a batch's log, oldest first."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in (line for line in lines if line.startswith(b"{")):  # 64 KiB may be as many lines
        with suppress(ValueError, RecursionError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str) and all(_is_number(event.get(key)) for key in _FIGURES.get(event["event"], ())):
                found.append(event)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15


def progress(job: Job, events: list[dict[str, Any]]) -> Progress:
    """Pictures there, seconds a picture of late, time left."""
    kinds = [event["event"] for event in events]
    begun = len(kinds) - kinds[::-1].index("planned") if "planned" in kinds else 0
    drawn = [event for event in events[begun:] if event["event"] == "rendered"]
    if job.state == "running" and not drawn:
        return Progress("Loading the base model", "The first seconds of a batch.", 0.0, job.state)
    ended = next((event for event in reversed(events) if event["event"] == "ended"), None)
    newest = next((event for event in reversed(events) if event["event"] == "rendered"), None)
    parts, share = [], 1.0 if job.state == "finished" else 0.0
    if newest:
        parts.append(f"{newest['done']:,} of {newest['total']:,} pictures")
        share = newest["done"] / max(newest["total"], 1)
        if job.state == "running" and len(drawn) > 1:
            pace = (drawn[-1]["seconds"] - drawn[0]["seconds"]) / (len(drawn) - 1)
            parts += [f"{pace:.2f} s a picture", f"about {duration(pace * (newest['total'] - newest['done']))} left"]
    if ended and job.state not in ("running", "queued"):
        parts.append(f"took {duration(ended['seconds'])}")
        parts += [f"{ended['failed']:,} can't be drawn, see below"] if ended["failed"] else []
    return Progress(_STATES[job.state], " · ".join(parts), share, job.state)


def problems(job: Job, rows: list[dict[str, str]]) -> str:
    """Why the job failed, and which rows can't be drawn."""
    found = [plain(f"row {row['row']}: {row['problem']}") for row in rows if row["state"] == "failed"]
    more = [f"... and {len(found) - 20} more, in the manifest"] if len(found) > 20 else []
    return "\n".join(filter(None, [plain(job.error, 8000), *found[:20], *more]))


def plan_html(text: str) -> str:
    """The plan's words in a box."""
    first, *rest = text.splitlines()
    said = "".join(f"<p>{escape(line.strip())}</p>" for line in rest)
    return f'<div class="notice plain"><h3>{escape(first)}</h3>{said}</div>'


def pictures(out: Path, most: int) -> tuple[list[Path], int]:
    """Contact sheets, then the newest pictures, and how many pictures there are."""
    from trainer.config.batch import SHEETS

    sheets = sorted(path for path in (out / SHEETS).glob("*.png") if path.is_file())
    found = [path for path in out.rglob("*") if path.suffix.lower() in _IMAGES and not {".batch", SHEETS} & set(path.relative_to(out).parts)]
    found = newest_first(found)
    return (sheets + found)[:most], len(found)


def packed(context: Context, out: Path) -> Path:
    """A zip of a batch's folder where the browser can fetch it. Raises: ConfigError if there is nothing yet."""
    found, num = pictures(out, MAX_PAGE_PICTURES)
    if not num:
        raise ConfigError("no picture has been drawn yet.")
    target = context.cache / "files" / f"{out.name}.zip"
    with files.replacing(target) as made, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
        for path in [*found, *out.glob("manifest*.csv")]:
            archive.write(path, path.relative_to(out))
    return target
