"""`velatura retrain`: a kept recipe on new pictures, old and new compared on the same held-out set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer import presets, runs
from trainer.errors import ConfigError
from trainer.events import Stopped, Warned


def retrain(
    what: Annotated[str, typer.Argument(metavar="RUN|CARD|LORA", help="Whose recipe, and what it is compared with.")],
    data: Annotated[str, typer.Option(help="Folder or zip of the new pictures.")],
    heldout: Annotated[
        str | None, typer.Option(help="Pictures to compare on; else some of --data are left out.")
    ] = None,
    old: Annotated[Path | None, typer.Option(help="The LoRA to compare with, where a card's is not found.")] = None,
    from_old: Annotated[bool, typer.Option("--from-old", help="Begin with the old LoRA's weights.")] = False,
    name: Annotated[str | None, typer.Option(help="Name of the new run.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that run folders are made in.")] = runs.DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print events and the verdict as JSON lines.")] = False,
) -> None:
    """Train with a kept recipe on new pictures, and say whether the old or the new LoRA is better."""
    from trainer import console, lora_file, session, start_weights
    from trainer.cards import retraining, sources, to_compare, training_like

    # The recipe on the new pictures, and what it is compared with.
    source = sources.of(what, out)
    config, card = training_like.like(what, data, heldout, set_ or [], out)
    config = retraining.with_heldout(config)
    before = old or retraining.old_lora(source, lora_file.library([Path("outputs"), out]))
    if before is None:
        raise ConfigError(f"the LoRA of {what[:200]} is not here; name its file with --old FILE.")
    retraining.refuse(config, before)
    if from_old:
        config = presets.changed(config, start_weights.changes(str(before), config.family))
    if seen := retraining.seen_before(source, config):
        typer.echo(f"warning: the old run was trained on {seen} of the held-out pictures, which favours it.", err=True)

    # Train, then ask both the same.
    run, stream = session.start(config, out, name, None)
    training_like.keep_card(run, card)
    to_compare.keep(before, run.folder / to_compare.FOLDER, seen)
    last = console.show_json(stream) if as_json else console.show(stream, run.folder)
    if isinstance(last, Stopped | Warned):
        sys.exit(130)
    answer = retraining.conclude(run)
    typer.echo(json.dumps(answer) if as_json else answer["sentence"])
