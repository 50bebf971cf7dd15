"""`velatura publish`: a run as a folder for the Hugging Face hub and Civitai; sent only if that is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer import runs
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.publishing.folder import Published

_OUT = Path("outputs") / "published"


def publish(
    run: Annotated[str, typer.Argument(help="A run's folder, or its name below outputs/runs.")],
    out: Annotated[Path, typer.Option(help="Where the folder is made.")] = _OUT,
    title: Annotated[
        str, typer.Option(help="What it is called, and its files by it; left out: its trigger and base.")
    ] = "",
    author: Annotated[str, typer.Option(help="Who made it.")] = "",
    licence: Annotated[str, typer.Option(help="By the hub's short name; the base's if left out.")] = "",
    note: Annotated[str, typer.Option(help="A few sentences about it.")] = "",
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="What the hub will call it.")] = "",
    push: Annotated[
        bool, typer.Option("--push", help="Send the folder to the hub as --repo, with your login.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it there.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send it without asking once more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a run as a folder for others: the LoRA, a model card, samples, and what Civitai's form asks."""
    from trainer.publishing import facts, folder, hub

    if push and not repo:
        raise ConfigError("--push needs --repo OWNER/NAME: where to send it.")
    if push and not title.strip():
        raise ConfigError(
            "--push needs --title TEXT: what others will know it by; a run's own name may be its dataset's."
        )
    if repo:
        hub.check_repo(repo)
    found = facts.gather(runs.named(run), facts.Wishes(title, author, licence, note))
    made = folder.write(found, out, repo)
    if as_json:
        answer = {"folder": str(made.path), "files": made.files, "tells": made.tells, "licence": found.licence.id}
        typer.echo(json.dumps(answer, indent=2))
    else:
        _print(made)
    if not push:
        typer.echo("Nothing was sent.", err=as_json)
        return

    # What leaves, before it does.
    who = "everybody can see it" if public else "only you can see it"
    typer.echo(f"To be sent to {repo} on the hub, where {who}: the {len(made.files)} files above.", err=as_json)
    if not yes and not typer.confirm("Send them?", err=as_json):
        typer.echo("Nothing was sent.", err=as_json)
        return
    typer.echo(f"sent: {hub.push(made.path, repo, private=not public)}", err=as_json)


def _print(made: Published) -> None:
    typer.echo(f"{made.path}")
    for name, size in made.files.items():
        typer.echo(f"  {name:<40}{size / 1000:>10.1f} kB")
    typer.echo(f"licence: {made.facts.licence.id}. {made.facts.licence.why}")
    typer.echo("The files say: " + "; ".join(made.tells) + ".")
