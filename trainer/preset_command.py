"""`velatura preset`: the presets that ship, the user's own, and cards to share them by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from trainer import card_file, runs
from trainer import presets as store
from trainer.card_file.contents import DatasetKind
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.cards.proposals import Proposal
    from trainer.other_trainers.commands import Wanted

app = typer.Typer(help="List presets, share them, and open what others share.", no_args_is_help=True)
OTHERS = "kohya, onetrainer, ai-toolkit, diffusers, musubi-tuner, simpletuner, diffusion-pipe"
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
What = Annotated[str, typer.Argument(help="A preset's name, a card, a LoRA of ours, a run, or a .toml.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that runs lie in.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the presets that ship, then your own, then those of stacks and batches."""
    from trainer import preset_listing  # reads every preset
    from trainer.render import command as render_command

    if as_json:
        typer.echo(preset_listing.to_json())
        return
    stacks, batches = (
        {path.stem: render_command.purpose(path) for path in sorted(folder.glob("*.toml"))}
        for folder in (render_command.PRESETS, render_command.BATCHES)
    )
    typer.echo(preset_listing.listed(stacks, batches))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A preset's name, or a path to a card, a .toml or a LoRA of ours.")],
    as_json: AsJson = False,
) -> None:
    """Show a preset or a card with all its settings."""
    from trainer.cards import commands  # reads datasets and LoRA files

    if card_file.is_card(Path(name)):
        typer.echo(commands.shown(card_file.read(Path(name)), as_json))
        return
    from trainer import preset_listing

    config = store.load(name, {})
    typer.echo(json.dumps(config.model_dump(mode="json"), indent=2) if as_json else preset_listing.shown(name, config))


@app.command()
def remove(name: Annotated[str, typer.Argument(help="A preset of your own.")]) -> None:
    """Remove a preset of your own."""
    if name not in store.own():
        allowed = ", ".join(store.own()) or "there are none"
        raise ConfigError(f"preset {name[:80]!r} is none of your own; allowed: {allowed}.")
    store.path_of(name).unlink(missing_ok=True)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A card, another trainer's recipe, a LoRA, or a picture of any tool.")],
    name: Annotated[str, typer.Option(help="The preset's name; else what the card or recipe calls itself.")] = "",
    pictures: Annotated[int, typer.Option(min=0, help="How many pictures, for a recipe that counts epochs.")] = 0,
    family: Annotated[str, typer.Option(help="The base's family, where the recipe doesn't say.")] = "",
    base: Annotated[str, typer.Option(help="The base, where the recipe names a file of another machine.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would change, and keep nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Keep it without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Keep what others share as a preset: a card, or a recipe of kohya_ss, OneTrainer, ai-toolkit and others.

    What it would change is shown first; in a terminal you are then asked.
    """
    from trainer.other_trainers.commands import Wanted

    proposal = _proposal(file, Wanted(name, pictures, family, base))
    # A program isn't asked.
    if as_json:
        kept = {} if dry_run else proposal.keep()
        typer.echo(json.dumps(proposal.facts | kept | {"kept": not dry_run}, indent=2))
        return
    typer.echo("\n".join(proposal.lines))
    if dry_run:
        typer.echo(f"\nwould be kept as {proposal.what}; nothing was written.")
    elif not yes and _is_asked() and not typer.confirm(f"\nKeep it as {proposal.what}?"):
        typer.echo("nothing was written.")
    else:
        # What was kept begins with its name or place (see `Proposal.keep`).
        name_or_file = next(iter(proposal.keep().values()))
        typer.echo(f"\nkept as {proposal.what.rpartition(' ')[0]} {name_or_file}.")


def _is_asked() -> bool:
    """Whether somebody sits there who can answer."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _proposal(file: Path, wanted: Wanted) -> Proposal:
    """What a file would be kept as. Raises: ConfigError."""
    from trainer.cards import commands
    from trainer.other_trainers import commands as of_others

    if card_file.is_card(file):
        said = {"--pictures": wanted.pictures, "--family": wanted.family, "--base": wanted.base}
        if unread := [option for option, value in said.items() if value]:
            raise ConfigError(
                f"{' and '.join(unread)}: a card says these itself; they are for recipes of other trainers. Change its "
                f"settings with `velatura train CARD --set`."
            )
        return commands.proposed(file, wanted.name or None)
    if not of_others.knows(file) and (stack := commands.proposed_picture(file, wanted.name or None)):
        return stack
    return of_others.proposed(file, wanted)


@app.command()
def export(
    what: What,
    out: Annotated[Path, typer.Option(help="The file; of a card also a folder for a name of its own.")] = Path("."),
    to: Annotated[str, typer.Option("--to", help=f"Another trainer: {OTHERS}.")] = "",
    title: Annotated[str, typer.Option(help="What it is called.")] = "",
    author: Annotated[str, typer.Option(help="Who made it.")] = "",
    licence: Annotated[str, typer.Option(help="Under which it may be used, such as CC-BY-4.0.")] = "",
    note: Annotated[str, typer.Option(help="What others should know.")] = "",
    source_url: Annotated[str, typer.Option(help="Where the LoRA can be had.")] = "",
    kind: Annotated[
        str, typer.Option(help="What a run's pictures teach: style, character or concept; else as its preset is for.")
    ] = "unknown",
    with_samples: Annotated[bool, typer.Option("--with-samples", help="Put the run's previews in.")] = False,
    with_names: Annotated[
        bool, typer.Option("--with-names", help="Put the dataset's name in, and rules that name its folders.")
    ] = False,
    runs_folder: RunsFolder = runs.DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Write a preset, a LoRA of ours, a run or a stack as one file to share, or in another trainer's words."""
    if to:
        from trainer.other_trainers import commands as of_others

        typer.echo(of_others.exported(what, to, out, as_json))
        return
    from trainer.cards import commands
    from trainer.cards.making import Wishes

    known = next((one for one in get_args(DatasetKind) if one == kind), None)
    if known is None:
        raise ConfigError(f"--kind is {kind[:40]!r}; allowed: {', '.join(get_args(DatasetKind))}.")
    wishes = Wishes(title, author, licence, note, source_url, known, with_samples, with_names)
    path, notes = commands.exported(what, out, wishes, runs_folder)
    for line in notes:
        typer.echo(line, err=True)
    typer.echo(json.dumps({"file": str(path), "left_out": notes}) if as_json else str(path))


@app.command()
def diff(before: What, after: What, as_json: AsJson = False, runs_folder: RunsFolder = runs.DEFAULT) -> None:
    """Show which settings of two presets, cards, LoRAs or runs differ."""
    from trainer.cards import commands  # reads datasets and LoRA files

    typer.echo(commands.compared(before, after, runs_folder, as_json))


@app.command()
def search(
    words: Annotated[list[str] | None, typer.Argument(help="All of which must stand in it.")] = None,
    family: Annotated[str, typer.Option(help="Such as sdxl.")] = "",
    memory_gib: Annotated[float | None, typer.Option(help="Only what says that it fits into so much.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find presets and kept cards by words, family and memory."""
    from trainer.cards import commands  # reads datasets and LoRA files

    typer.echo(commands.found(" ".join(words or []), family, memory_gib, as_json))


@app.command()
def check(
    what: What,
    data: Annotated[str, typer.Option(help="Folder or zip of your pictures.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Measure it here, for at most a minute.")] = False,
    out: Annotated[Path, typer.Option(help="Folder that run folders are made in.")] = runs.DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Say whether a card or preset suits your pictures, and what training so will take."""
    from trainer.cards import checking  # looks at pictures and bases

    typer.echo(checking.checked(what, data, set_ or [], rehearse, out, as_json))
