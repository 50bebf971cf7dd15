"""The doors of what runs, jobs and batches leave behind; see `tests.doors`."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tests import fuzzing
from tests.doors_data import PNG
from tests.doors_setup import Call, Case, context, fresh

# What a run and a batch leave behind.


def _lines(values: list[dict[str, Any]], chance: random.Random) -> bytes:
    """JSON lines, some of them damaged, out of order or said twice."""
    rows = [
        fuzzing.as_json(fuzzing.broken(value, chance), chance) if chance.random() < 0.4 else json.dumps(value)
        for value in values
    ]
    if chance.random() < 0.5:
        rows = chance.choices(rows, k=chance.randint(0, 2 * len(rows)))
    return fuzzing.raw("\n".join(rows) + chance.choice(["\n", "", "\r\n"]), chance)


def _events() -> list[dict[str, Any]]:
    from trainer import events

    losses = (0.4, 0.5, 0.2, 0.1, 0.3, 0.9, 4, [0.1] * 10, [0.2] * 10, 0.3, 0.01)
    run = [
        events.Started("r", 30, 0, 4, 2, 1000, "cpu", "float32", "imprimatura"),
        events.Planned([[64, 64, 3], [128, 64, 1]], 2, 1),
        events.Cached(4, 4, 1.5),
        *(events.Step(step, 1 / step, 1e-4, 0.5, 0.2) for step in range(1, 6)),
        *(events.Validated(step, *losses) for step in (3, 5)),
        events.Sampled(5, "a cat", "samples/a.png", 0.99, "a.png"),
        events.Saved(5, "checkpoints/step-5"),
        events.Warned("look"),
        events.Adjusted(2, "slower"),
        events.Overtrained(5, 3, "it rose"),
        events.Recommended(3, "best.safetensors", "the lowest"),
        events.Folded(1, 2, [1, 2], [0.1, 0.2], 0.3),
        events.Stopped(4),
        events.Failed("RuntimeError", "out of paint"),
        events.Finished(5, "r.safetensors", 9.5, 0.7, 1 << 30),
    ]
    return [json.loads(events.to_line(event)) for event in run]


def _job(kind: str = "train", state: str = "finished") -> Any:
    from app.job_table import Job

    return Job(1, kind, "r", "", state, None, None, 1, 0, 1.0, 2.0, 3.0, "")  # type: ignore[arg-type]


def events(room: Path) -> Case:
    """A run's events.jsonl, as the page polls it, as the report is written and as a resumed run reads it."""
    from app import cards, library_items, loss_charts, views
    from app.job_work import Training
    from trainer import report
    from trainer.runs import Run

    there, good = context(room), _events()
    run = Run(fresh(room / "runs" / "r"))
    fresh(run.folder / "samples")
    (run.folder / "samples" / "a.png").write_bytes(PNG)

    def case(chance: random.Random) -> list[Call]:
        run.events_file.write_bytes(_lines(good, chance))
        job = _job(state=chance.choice(list(views.STATES)))

        def shown() -> str:
            log = there.logs.read(run.events_file)
            parts = [views.progress_html("r", views.progress(job, log, 1)), loss_charts.html(log), views.gain(log)]
            parts += [views.best_step(log), views.messages(job, log), views.plan_html(log), views.notices_html(log)]
            parts += [views.recommendation_html(log, None), views.heldout_html(log)]
            return "".join([*parts, *map(str, views.samples(run.folder, log)), *map(str, views.files(run.folder, log))])

        def written() -> str:
            report.write(run)
            return run.report_file.read_text(encoding="utf-8")

        def listed() -> str:
            return cards.html(there, library_items.Shelf(there).every("runs"), "")

        return [shown, written, run.state, lambda: Training(room / "runs", room).saved_step(job), listed]

    return case


REHEARSED = {"step_s": 0.5, "eta_s": 90, "peak_bytes": 1 << 30, "disk_bytes": 1 << 20, "fits": True}
REHEARSED |= {"settings": ["batch_size=2", "memory.x=true"], "budget_bytes": 7}
RENDERED = [
    {"event": "planned", "rows": 3, "pictures": 3},
    {"event": "rendered", "done": 1, "total": 3, "seconds": 1.5, "file": "a.png"},
    {"event": "rendered", "done": 2, "total": 3, "seconds": 2.5, "file": "b.png"},
    {"event": "ended", "done": 2, "failed": 1, "seconds": 9.5},
]  # fmt: skip
LAST_WORDS = [
    "error: the rank is 0; allowed: 1 to 256.\n  and more\n",
    "Traceback (most recent call last):\n  File x\nValueError: y\n",
    '{"event": "step"}\n',
    "hm\n",
]


def logs(room: Path) -> Case:
    """The end of a job's log: the rehearsal's answer, the last words of one that failed, a batch's progress."""
    from app import batches, job_output, views

    there = context(room)

    def case(chance: random.Random) -> list[Call]:
        kind = chance.choice(["train", "rehearse", "batch-csv"])
        job = _job(kind, chance.choice(list(views.STATES)))
        content = _lines(RENDERED if chance.random() < 0.5 else [REHEARSED], chance)
        content += fuzzing.raw(fuzzing.text(LAST_WORDS, chance), chance)
        there.runner.log_file(job).write_bytes(content * chance.choice([1, 1, 30]))
        log = there.runner.log_file(job)

        def answered() -> str:
            answer = there.runner.answer(job)
            return views.rehearsal_html(job, answer) + str(views.suggested(answer))

        def drawn() -> str:
            return views.progress_html("r", batches.progress(job, batches.last_events(log)))

        return [answered, drawn, lambda: views.messages(_failed(job_output.error_text(log)), [])]

    return case


def _failed(error: str) -> Any:
    import dataclasses

    return dataclasses.replace(_job(state="failed"), error=error)


ROWS = [
    ["prompt", "negative", "lora", "seed", "steps", "size", "guidance", "name"],
    ["a cat", "", "cat:0.5", "1", "4", "128x128", "3", "{number}-{prompt}"],
    ["{a|b} <lora:cat:0.5>", "b", "", "", "", "", "", ""],
    ["c", "", "", "0", "2", "64x64", "", "x"],
]
JOBS: dict[str, Any] = {"prompts": ["a", "{b|c}"], "seeds": [1, "3-5"], "weights": [0.5, 1]}
JOBS |= {"stacks": [["cat:0.5", {"file": "cat", "weight": 1}]], "steps": 4, "name": "{seed}"}
JOURNAL = [
    {"done": "ab" * 32, "file": "1.png", "bytes": 7, "mtime_ns": 1, "sha256": "ab" * 32},
    {"failed": "cd" * 32, "problem": "x"},
    {"begun": ["ab" * 32]},
]
MANIFEST = [
    ["1", "done", "1.png", "a", "", "b", "", "1", "4", "64x64", "3", "ab", ""],
    ["2", "failed", *[""] * 10, "why"],
]


def batches(room: Path) -> Case:
    """A jobs file, CSV or TOML, by the command and dropped on the page, and what a batch that goes on finds.

    That is its manifest, its journal and its sheets.
    """
    from app import batches as page
    from trainer.config import BatchConfig
    from trainer.render import batch_command, batch_ledger, batch_manifest, jobs_file

    there = context(room / "page")
    table, keys = [list(batch_manifest.COLUMNS), *MANIFEST], [*BatchConfig.model_fields, "file", "weight", "name"]

    def case(chance: random.Random) -> list[Call]:
        # What is asked for.
        suffix = chance.choice([".csv", ".toml"])
        path, out = room / f"x{suffix}", fresh(room / "out")
        if suffix == ".csv":
            text = fuzzing.as_rows(ROWS, chance)
        else:
            text = fuzzing.as_toml(fuzzing.broken(JOBS, chance, keys), chance)
        path.write_bytes(fuzzing.raw(text, chance))

        # What an earlier start left behind.
        (out / ".batch").mkdir()
        (out / "manifest.csv").write_bytes(fuzzing.raw(fuzzing.as_rows(table, chance), chance))
        (out / ".batch" / "journal.jsonl").write_bytes(_lines(JOURNAL, chance))
        sheets = fuzzing.as_json(fuzzing.broken({"page-0001.png": "ab"}, chance), chance)
        (out / ".batch" / "sheets.json").write_bytes(fuzzing.raw(sheets, chance))

        def planned() -> str:
            plan = batch_ledger.make(jobs_file.read(path, jobs_file.Defaults()), library=there.find_loras)
            plan.reconcile(out)
            batch_manifest.write_sheets(plan, out)
            batch_manifest.write_manifest(plan, out / "manifest.csv")
            return batch_command.describe(plan)

        def dropped() -> str:
            return page.plan_html(page.planned(page.uploaded(there, path), [there.loras], there.wildcards).text)

        def listed() -> str:
            problems = page.problems(_job("batch-csv"), page.manifest(out))
            return problems + str(page.Drawing(room, room, (), room).saved_step(_job()))

        return [dropped, listed, planned]

    return case


COLUMNS = ["id", "kind", "name", "config", "state", "pid", "pid_start", "attempt"]
COLUMNS += ["saved_step", "created", "started", "ended", "error"]


def _job_table(folder: Path, runner: Any) -> tuple[bytes, bytes]:
    """A page's table of three jobs, as it is while it is used, and in the older journal mode."""
    for number in range(3):
        runner.submit(f"cat {number}", "max_steps = 3")
    used = (folder / "jobs.sqlite").read_bytes()
    with closing(sqlite3.connect(folder / "jobs.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    return used, (folder / "jobs.sqlite").read_bytes()


def _put_anything(path: Path, chance: random.Random) -> None:
    """One cell of the table of jobs becomes something else, where SQLite takes it."""
    with suppress(sqlite3.Error, OverflowError, UnicodeError), closing(sqlite3.connect(path)) as connection, connection:
        others = [None, b"\xff\xfe", *fuzzing.WORDS, "running", "stopping", "../x", chance.randrange(2**22)]
        value = chance.choice([*fuzzing.NUMBERS, *others])
        column, row = chance.choice(COLUMNS), chance.randint(1, 3)
        connection.execute(f"UPDATE job SET {column} = ? WHERE id = ?", (value, row))


def tables(room: Path) -> Case:
    """The table of jobs, damaged as a file or holding rows that nobody wrote."""
    from app import views
    from app.jobs import JobRunner

    there = context(room / "page")
    good = _job_table(room / "page", there.runner)

    def case(chance: random.Random) -> list[Call]:
        here = fresh(room / "here")
        path = here / "jobs.sqlite"
        path.write_bytes(good[-1] if chance.random() < 0.5 else fuzzing.data(good, chance))
        for _ in range(chance.randint(0, 4)):
            _put_anything(path, chance)

        def opened() -> str:
            runner = JobRunner(here, there.runner.work, here / "runs")
            shown = [
                views.job_label(job) + views.progress_html(job.name, views.progress(job, [])) + views.messages(job, [])
                for job in runner.every()
            ]
            runner.tick()
            shown += [views.messages(job, []) for job in runner.every()]
            return "".join(shown) + runner.submit("cat", "x = 1").name

        return [opened]

    return case
