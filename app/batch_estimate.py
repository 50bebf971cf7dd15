"""How long a batch will take, by how long the last ones took on this machine, or the last picture in Stack; nothing is
said that wasn't measured.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress

from app import batches
from app.context import Context
from app.job_table import Job
from app.texts import say
from app.views import duration

_MOST_JOBS = 10  # the newest batches that are looked at
_MOST_ROWS = 20_000


def words(context: Context, work: Mapping[str, float]) -> str:
    """`About 3 min, as the last batch went.`; `work` is pixels times steps by base."""
    of_batches = _paces(context)
    paces = context.paces | of_batches
    if not work or any(base not in paces for base in work):
        return say("batch.time_unknown")
    time = duration(max(sum(amount * paces[base] for base, amount in work.items()), 1))
    if any(base not in of_batches for base in work):
        return say("batch.time_of_stack", time=time)
    return say("batch.time_about", time=time)


def _paces(context: Context) -> dict[str, float]:
    """Seconds a pixel and step by base, of the newest batch on each, loading the base included."""
    paces: dict[str, float] = {}
    jobs = [job for job in context.runner.every() if job.kind in batches.KINDS.values() and job.state == "finished"]
    for job in jobs[:_MOST_JOBS]:
        events = batches.last_events(context.runner.log_file(job))
        ended = next((event for event in reversed(events) if event["event"] == "ended"), None)
        made, seconds = (ended.get("made"), ended["seconds"]) if ended else (None, 0.0)
        drawn = _drawn(context, job)
        # A batch that was broken off says how long its last part took.
        if not isinstance(made, int) or made != sum(num for num, _ in drawn.values()) or len(drawn) != 1:
            continue
        ((base, (_, amount)),) = drawn.items()
        if amount > 0:
            paces.setdefault(base, seconds / amount)
    return paces


def _drawn(context: Context, job: Job) -> dict[str, tuple[int, float]]:
    """How many different pictures a batch has drawn and pixels times steps of them, by base, as its manifest says."""
    from trainer.render.batch_manifest import manifest_file

    drawn: dict[str, tuple[int, float]] = {}
    files: set[str] = set()
    path = manifest_file(context.batches / job.name)
    with (
        suppress(OSError, csv.Error, ValueError),
        path.open(encoding="utf-8-sig", newline="", errors="replace") as file,
    ):
        for _, row in zip(range(_MOST_ROWS), csv.DictReader(file), strict=False):
            name, base = row.get("file") or "", row.get("base") or ""
            # A picture that several rows ask for was drawn once.
            if row.get("state") != "done" or name in files:
                continue
            files.add(name)
            width, _, height = (row.get("size") or "").partition("x")
            amount = float(int(width) * int(height) * int(row.get("steps") or ""))
            num, before = drawn.get(base, (0, 0.0))
            drawn[base] = (num + 1, before + amount)
    return drawn
