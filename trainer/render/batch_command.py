"""`velatura batch`: draw every row of a TOML or CSV file."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.config.batch import NAME, NAME_FIELDS
from trainer.errors import ConfigError
from trainer.render import quantised

if TYPE_CHECKING:
    from trainer.render.batch import Ended, Event, Rendered, Renders
    from trainer.render.batch_plan import Plan

_PLAIN_EVERY_S = 10.0  # between two lines where there is no terminal to redraw
_MOST_SAID = 20


def batch(
    jobs: Annotated[Path, typer.Argument(metavar="JOBS.toml|csv", help="What to draw: lists that are multiplied (TOML), or a row for each picture (CSV).")],
    prompt: Annotated[str, typer.Option(help="What to draw, where a row doesn't say.")] = "",
    base: Annotated[
        str, typer.Option(help="imprimatura, a diffusers folder, a checkpoint file, a name from models list, or a downloaded hub id.")
    ] = "imprimatura",
    lora: Annotated[list[str] | None, typer.Option(metavar="FILE:WEIGHT", help="A LoRA and its weight; repeatable.")] = None,
    negative: Annotated[str, typer.Option(help="What to keep out.")] = "",
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; each base's usual if left out.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="In pixels; each base's own if left out.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt, 1 is off; each base's usual if left out.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting a row doesn't say, such as mode=switch.")] = None,
    name: Annotated[str, typer.Option(help=f"How files are called, of {' '.join(f'{{{field}}}' for field in NAME_FIELDS)}; '/' makes folders.")] = NAME,
    library: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Where LoRAs are found by name and hash; repeatable; outputs/ if left out.")] = None,
    quantise: Annotated[str, typer.Option(help=quantised.HELP)] = "none",
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; outputs/batch/ and the file's name if left out.")] = None,
    sheets: Annotated[bool, typer.Option(help="Make contact sheets.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
    download: Annotated[bool, typer.Option("--download", help="Fetch a base from the hub if it isn't here.")] = False,
) -> None:
    """Render every row of a file, each picture once: broken off anywhere, the same command goes on where it was."""
    from trainer import bases, lora_file
    from trainer.render import batch_plan, batch_recipe, jobs_file

    folder = out or Path("outputs") / "batch" / jobs.stem
    if folder.suffix.lower() in batch_recipe.ENDINGS:
        raise ConfigError(f"--out is {str(folder)!r}; allowed: a folder. How files are called is --name's to say.")
    defaults = jobs_file.Defaults(base, prompt, negative, tuple(lora or ()), seed, steps, size, guidance, name, tuple(set_ or ()))
    plan = batch_plan.make(
        jobs_file.read(jobs, defaults), download, lambda: lora_file.library(library or [Path("outputs")]), Path("wildcards"), quantised.checked(quantise)
    )
    if dry_run:
        plan.reconcile(folder)
        typer.echo(json.dumps(_plan_values(plan)) if as_json else describe(plan))
        return
    from trainer.render import batch as work
    from trainer.stopping import StopRequest

    def open_engine(base: str, family: str) -> Renders:
        from trainer.render.engine import Engine

        if download:
            bases.fetch(base)
        return Engine(base, family, quantise=quantise)

    stop = StopRequest()
    try:
        events = work.run(plan, folder, open_engine, stop, sheets)
        last = _show_json(events) if as_json else _show(events, folder)
    finally:
        stop.restore()
    if last.stopped or last.failed:
        sys.exit(130 if last.stopped else 1)


def _plan_values(plan: Plan) -> dict[str, object]:
    return plan.counts() | {"warnings": list(plan.warnings), "groups": [{"what": what, "pictures": count} for what, count in plan.groups()]}


def describe(plan: Plan) -> str:
    """What there is to do, in words."""
    counts = plan.counts()
    there = counts["done"] + counts["staged"]
    lines = [f"{counts['rows']:,} rows, {counts['pictures']:,} pictures: {there:,} already there, {counts['todo']:,} to draw"]
    lines += [f"warning: {said}" for said in plan.warnings]
    if counts["failed"]:
        lines.append(f"{counts['failed']:,} can't be drawn:")
        lines += [f"  row {work.place}: {work.why}" for work in islice(plan.failed(), _MOST_SAID)]
    groups = list(islice(plan.groups(), _MOST_SAID + 1))
    lines += [f"  {count:>7,}  {what}" for what, count in groups[:_MOST_SAID]]
    return "\n".join([*lines, "  ... and more groups"] if len(groups) > _MOST_SAID else lines)


def _show_json(events: Iterator[Event]) -> Ended:
    last = None
    for last in events:
        sys.stdout.write(json.dumps({"event": last.kind, **dataclasses.asdict(last)}) + "\n")
        sys.stdout.flush()
    return _ended(last)


def _ended(last: Event | None) -> Ended:
    from trainer.render.batch import Ended

    assert isinstance(last, Ended), "a batch says how it ended"
    return last


def _show(events: Iterator[Event], folder: Path) -> Ended:
    """Print a batch for people: a bar with the time that is left, or a line now and then where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from trainer.render.batch import Ended, Planned, Refused, Rendered

    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600)
    last, refused, pace = None, 0, _Pace()
    with bar:
        task = bar.add_task("drawing", total=None)
        for last in events:
            if isinstance(last, Planned):
                bar.update(task, total=last.pictures, completed=last.there)
                bar.console.print(f"{last.rows:,} rows, {last.pictures:,} pictures, {last.there:,} already there", markup=False)
                for warning in last.warnings:
                    bar.console.print(f"warning: {warning}", markup=False)
            elif isinstance(last, Rendered):
                bar.update(task, completed=last.done)
                if not console.is_terminal and (line := pace.line(last)):
                    console.print(line, markup=False)
            elif isinstance(last, Refused):
                refused += 1
                if refused <= _MOST_SAID:
                    bar.console.print(f"row {last.row} can't be drawn: {last.message}", markup=False)
            elif isinstance(last, Ended):
                bar.console.print(_farewell(last, folder), markup=False)
    return _ended(last)


class _Pace:
    """When to say how far it is, and how long it will take."""

    def __init__(self) -> None:
        self.said = self.started = time.monotonic()
        self.drawn = 0

    def line(self, event: Rendered) -> str:
        self.drawn += 1
        now = time.monotonic()
        if now - self.said < _PLAIN_EVERY_S:
            return ""
        self.said = now
        return f"{event.done:,} of {event.total:,}, {(now - self.started) / self.drawn * (event.total - event.done):.0f} s left"


def _farewell(ended: Ended, folder: Path) -> str:
    problems = f", {ended.failed:,} can't be drawn (see the manifest)" if ended.failed else ""
    sheets = f", {ended.sheets:,} contact sheet{'s' if ended.sheets > 1 else ''}" if ended.sheets else ""
    said = f"{ended.made:,} drawn in {ended.seconds:.0f} s, {ended.there:,} there{problems}: {folder}, {ended.manifest}{sheets}"
    return f"stopped; the same command goes on. {said}" if ended.stopped else said
