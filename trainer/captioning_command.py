"""`velatura dataset caption`: captions for a folder of pictures by a model that lies in another folder."""

from __future__ import annotations

import dataclasses
import json
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.printing import plain, printable
from trainer.stopping import StopRequest

if TYPE_CHECKING:
    from trainer.captioning.writing import Captioned, Event, Skipped


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    model: Annotated[
        Path, typer.Option(help="Folder of the model: BLIP, GIT, Florence-2, a chat model that sees, or a WD tagger.")
    ],
    purpose: Annotated[
        str, typer.Option("--for", help="character or style: what the set teaches, which captions then don't name.")
    ] = "character",
    trigger: Annotated[str, typer.Option(help="Word put in front of every caption.")] = "",
    leave_out: Annotated[
        str | None,
        typer.Option(help="Words and phrases to leave out, commas between; for a style its usual words if left out."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Caption pictures anew that have a caption; an undo takes it back.")
    ] = False,
    instruction: Annotated[str, typer.Option(help="What a chat model is told, or Florence-2's task.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the captions, and write none.")] = False,
    visit: Annotated[str, typer.Option(help="Name of this edit: to go on with one that was stopped.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Write captions beside pictures that have none, by a model on this machine; one edit, which can be undone."""
    from trainer.captioning import kinds, rules, writing

    asked = rules.rules(purpose, trigger, leave_out)
    opener = kinds.opener(model, asked.purpose, instruction)
    what = f"Captions by {plain(model.expanduser().resolve().name, 60)}"
    wanted = writing.Wanted(
        folder.expanduser(), asked, every, what, f"captions {visit or secrets.token_hex(8)}", dry_run
    )
    # From here on Ctrl-C asks for a stop; the picture that is looked at gets its caption yet.
    stop = StopRequest()
    try:
        events = writing.write(wanted, opener, stop)
        last = _show_json(events) if as_json else _show(events)
    finally:
        stop.restore()
    if isinstance(last, writing.Ended) and last.stopped:
        # What shells give for Ctrl-C: 128 and the signal's 2.
        sys.exit(130)


def _show_json(events: Iterable[Event]) -> Event | None:
    """Print every event as a JSON line; the last event."""
    last = None
    for last in events:
        typer.echo(json.dumps({"event": type(last).__name__.lower(), **dataclasses.asdict(last)}))
    return last


def _show(events: Iterable[Event]) -> Event | None:
    """Print a line for each picture; the last event."""
    from trainer.captioning.writing import Captioned, Ended, Planned, Skipped

    last = None
    for last in events:
        match last:
            case Planned(total, done, pictures):
                before = f", {done} of them done before" if done else ""
                typer.echo(f"{total} of {pictures} pictures are to be captioned{before}")
                if not total:
                    typer.echo("all have a caption; --all writes them anew")
            case Captioned():
                typer.echo(f"{_place(last)} {printable(last.name)} is {printable(last.caption)!r}")
            case Skipped():
                typer.echo(f"{_place(last)} {printable(last.name)} gets none, {printable(last.why)}")
            case Ended(captioned, skipped, seconds, stopped):
                end = "stopped: the same command goes on with what is left" if stopped else "done"
                typer.echo(f"{end}; {captioned} captioned, {skipped} not, {seconds:.0f} s")
    return last


def _place(event: Captioned | Skipped) -> str:
    """How far it is, and how long the rest takes."""
    return f"{event.done}/{event.total}, about {event.left_s:.0f} s left:"
