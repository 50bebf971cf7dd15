"""`velatura batch`: draw every row of a TOML or CSV file."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trainer.config.batch import NAME, NAME_FIELDS
from trainer.errors import ConfigError
from trainer.render import quantised
from trainer.stopping import StopRequest

if TYPE_CHECKING:
    from trainer.render.batch import Ended, Event, Rendered
    from trainer.render.batch_chunks import Draws, Renders
    from trainer.render.batch_ledger import Plan

_PLAIN_EVERY_S = 10.0  # between two lines where there is no terminal to redraw
_MOST_LINES = 20  # of one kind in what is printed

# The command's options.
Jobs = Annotated[
    Path,
    typer.Argument(
        metavar="JOBS.toml|csv",
        help="What to draw: lists that are multiplied (TOML), a row for each picture (CSV), or a template's name.",
    ),
]
Prompt = Annotated[str, typer.Option(help="What to draw, where a row doesn't say.")]
Base = Annotated[
    str,
    typer.Option(
        help="imprimatura, a diffusers folder, a checkpoint file, a name from models list, or a downloaded hub id."
    ),
]
Lora = Annotated[list[str] | None, typer.Option(metavar="FILE:WEIGHT", help="A LoRA and its weight; repeatable.")]
Negative = Annotated[str, typer.Option(help="What to keep out.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same picture.")]
Steps = Annotated[int | None, typer.Option(help="Sampling steps; each base's usual if left out.")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="In pixels; each base's own if left out.")]
Guidance = Annotated[
    float | None, typer.Option(help="How closely to follow the prompt, 1 is off; each base's usual if left out.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting a row doesn't say, such as mode=switch."),
]
Name = Annotated[
    str,
    typer.Option(
        help=f"How files are called, of {' '.join(f'{{{field}}}' for field in NAME_FIELDS)}; '/' makes folders."
    ),
]
LibraryFolders = Annotated[
    list[Path] | None,
    typer.Option(metavar="DIR", help="Where LoRAs are found by name and hash; repeatable; outputs/ if left out."),
]
Wildcards = Annotated[Path, typer.Option(metavar="DIR", help="Where the files are that __name__ in a prompt names.")]
Quantise = Annotated[str, typer.Option(help=quantised.HELP)]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the pictures; outputs/batch/ and the file's name if left out.")
]
Sheets = Annotated[bool, typer.Option(help="Make contact sheets.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch a base from the hub if it isn't here.")]
EngineName = Annotated[
    str, typer.Option(help="local, or ray: spread over processes of this machine, or of a cluster with --address.")
]
Address = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="With --engine ray: a cluster that is running, and asks for a token.")
]
Workers = Annotated[
    int, typer.Option(min=0, help="With --engine ray: processes that draw; 0 is one a GPU, or one a machine.")
]
SentGib = Annotated[
    float, typer.Option(min=0, help="With --engine ray: GiB of sent LoRAs that each machine keeps for later.")
]
_SENT_GIB = 20.0


def batch(
    jobs: Jobs,
    prompt: Prompt = "",
    base: Base = "imprimatura",
    lora: Lora = None,
    negative: Negative = "",
    seed: Seed = 1,
    steps: Steps = None,
    size: Size = None,
    guidance: Guidance = None,
    set_: Set = None,
    name: Name = NAME,
    library: LibraryFolders = None,
    wildcards: Wildcards = Path("wildcards"),
    quantise: Quantise = "none",
    out: Out = None,
    sheets: Sheets = True,
    dry_run: DryRun = False,
    as_json: Json = False,
    download: Download = False,
    engine: EngineName = "local",
    address: Address = "",
    workers: Workers = 0,
    sent_gib: SentGib = _SENT_GIB,
) -> None:
    """Render every row of a file, each picture once: broken off anywhere, the same command goes on where it was."""
    from trainer import lora_file
    from trainer.render import batch_ledger, command, jobs_file, picture_names

    # What there is to do. Everything that can be refused is, before a base is loaded.
    folder = out or Path("outputs") / "batch" / jobs.stem
    draws = _draws(engine, quantise, download, Spreading(address, workers, sent_gib))
    if folder.suffix.lower() in picture_names.ENDINGS:
        raise ConfigError(f"--out is {str(folder)!r}; allowed: a folder. How files are called is --name's to say.")
    defaults = jobs_file.Defaults(
        base, prompt, negative, tuple(lora or ()), seed, steps, size, guidance, name, tuple(set_ or ())
    )
    plan = batch_ledger.make(
        jobs_file.read(command.batch_file(jobs), defaults),
        download,
        lambda: lora_file.library(library or [Path("outputs")]),
        wildcards,
        quantised.checked(quantise),
    )
    if dry_run:
        plan.reconcile(folder)
        typer.echo(json.dumps(_plan_values(plan)) if as_json else describe(plan))
        return

    # Drawing it, until it ends or is asked to stop.
    from trainer.render import batch as drawing

    stop = StopRequest()
    try:
        events = drawing.run_by(draws, plan, folder, stop, sheets)
        last = _show_json(events) if as_json else _show(events, folder)
    finally:
        stop.restore()
    if last.stopped or last.failed:
        sys.exit(130 if last.stopped else 1)


@dataclasses.dataclass(frozen=True)
class Spreading:
    """The options that only Ray reads."""

    address: str = ""
    workers: int = 0
    sent_gib: float = _SENT_GIB


def _draws(engine: str, quantise: str, download: bool, spreading: Spreading) -> Draws:
    """What draws the batch. Raises: ConfigError for an engine that isn't there, and for what only Ray would read."""
    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine is {engine!r}; allowed: local, ray.")
    if engine == "local":
        usual = dataclasses.asdict(Spreading())
        if names := [name for name, value in dataclasses.asdict(spreading).items() if value != usual[name]]:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
            raise ConfigError(f"{options}: read with --engine ray only, and --engine is local.")
        from trainer.render.batch_chunks import InOrder

        return InOrder(_engine_opener(quantise, download))
    from trainer.render.spreading import ray_access

    ray_access.prepare(spreading.address)
    from trainer.render.spreading.spread import Options, Spread

    return Spread(Options(spreading.address, spreading.workers, quantise, int(spreading.sent_gib * (1 << 30))))


def _engine_opener(quantise: str, download: bool) -> Callable[[str, str], Renders]:
    """What opens an engine for a base and family.

    Only what is left to draw opens one: a batch that is done loads no base.
    """

    def open_engine(base: str, family: str) -> Renders:
        from trainer import bases
        from trainer.render.engine import Engine

        if download:
            bases.fetch(base)
        return Engine(base, family, quantise=quantise)

    return open_engine


def _plan_values(plan: Plan) -> dict[str, object]:
    return plan.counts() | {
        "warnings": list(plan.warnings),
        "groups": [{"what": what, "pictures": count} for what, count in plan.groups()],
    }


def describe(plan: Plan) -> str:
    """What there is to do, in words."""
    counts = plan.counts()
    already_there = counts["done"] + counts["staged"]
    lines = [
        f"{counts['rows']:,} rows, {counts['pictures']:,} pictures: {already_there:,} already there, "
        f"{counts['todo']:,} to draw"
    ]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    if counts["failed"]:
        lines.append(f"{counts['failed']:,} can't be drawn:")
        lines += [f"  row {work.place}: {work.why}" for work in islice(plan.failed(), _MOST_LINES)]
    groups = list(islice(plan.groups(), _MOST_LINES + 1))  # one more, to know whether there are more
    lines += [f"  {count:>7,}  {what}" for what, count in groups[:_MOST_LINES]]
    return "\n".join([*lines, "  ... and more groups"] if len(groups) > _MOST_LINES else lines)


def _show_json(events: Iterator[Event]) -> Ended:
    """Print a batch's events as JSON lines, each at once; the last of them."""
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
    from trainer.render.batch import Ended, Planned, Refused, Rendered

    # A bar that is redrawn; where there is no terminal it would fill a log.
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600)

    # What each event has to say.
    last, num_refused, pace = None, 0, _Pace()
    with bar:
        task = bar.add_task("drawing", total=None)
        for last in events:
            if isinstance(last, Planned):
                bar.update(task, total=last.pictures, completed=last.there)
                bar.console.print(
                    f"{last.rows:,} rows, {last.pictures:,} pictures, {last.there:,} already there", markup=False
                )
                for warning in last.warnings:
                    bar.console.print(f"warning: {warning}", markup=False)
            elif isinstance(last, Rendered):
                bar.update(task, completed=last.done)
                if not console.is_terminal and (line := pace.line(last)):
                    console.print(line, markup=False)
            elif isinstance(last, Refused):
                num_refused += 1
                if num_refused <= _MOST_LINES:
                    bar.console.print(f"row {last.row} can't be drawn: {last.message}", markup=False)
            elif isinstance(last, Ended):
                bar.console.print(_summary(last, folder), markup=False)
    return _ended(last)


class _Pace:
    """When to print how far it is, and how long it will take."""

    def __init__(self) -> None:
        self.last_line = self.started = time.monotonic()
        self.drawn = 0

    def line(self, event: Rendered) -> str:
        """A line on the progress, or nothing if the last line is not long ago."""
        self.drawn += 1
        now = time.monotonic()
        if now - self.last_line < _PLAIN_EVERY_S:
            return ""
        self.last_line = now
        # By what was drawn now: `done` also counts what was there before.
        left_s = (now - self.started) / self.drawn * (event.total - event.done)
        return f"{event.done:,} of {event.total:,}, {left_s:.0f} s left"


def _summary(ended: Ended, folder: Path) -> str:
    """How a batch ended, in a line."""
    problems = f", {ended.failed:,} can't be drawn (see the manifest)" if ended.failed else ""
    sheets = f", {ended.sheets:,} contact sheet{'s' if ended.sheets > 1 else ''}" if ended.sheets else ""
    summary = (
        f"{ended.made:,} drawn in {ended.seconds:.0f} s, {ended.there:,} there{problems}: {folder}, "
        f"{ended.manifest}{sheets}"
    )
    return f"stopped; the same command goes on. {summary}" if ended.stopped else summary
