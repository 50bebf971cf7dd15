"""`velatura train --like`: the exact settings of a card, a LoRA of ours or a run, on other pictures.

The card that a run is started from is kept beside it, so that its report can compare the two.
"""

from __future__ import annotations

from pathlib import Path

import typer

from trainer import bases, files, predicted_cost, presets, run_facts, runs, session
from trainer.card_file import bundle, reading
from trainer.cards import keeping, places, sources, suiting
from trainer.config import TrainConfig
from trainer.errors import ConfigError


def refuse_beside(preset: str | None, resume: bool) -> None:
    """Raises: ConfigError where --like stands beside what says the same."""
    if preset is not None or resume:
        raise ConfigError(
            "--like takes every setting from its file; leave out the preset, --resume, --extend and --from."
        )


def like(
    file: str, data: str | None, heldout: str | None, changes: list[str], out: Path = runs.DEFAULT
) -> tuple[TrainConfig, Path | None]:
    """The settings of a card, a LoRA of ours, a run or a preset on other pictures, and the card if there is one.

    Raises: ConfigError naming the places that must be given anew.
    """
    if data is None:
        raise ConfigError(f"--like {file[:200]} says how, and --data which pictures; give --data DIR.")
    source = sources.of(file, out)
    config = source.settings
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"{source.name[:80]!r} holds no settings of a training; draw it with `velatura render`.")

    # What is given anew.
    overrides = presets.parse_overrides(changes)
    overrides |= {key: value for key, value in (("data.folder", data), ("data.heldout", heldout)) if value is not None}

    # What was held out was of the other pictures; whatever is only read beside it goes too. The rest is asked for.
    dropped = ["data.heldout"] if config.data.heldout and "data.heldout" not in overrides else []
    config, unread = places.forgotten(config, dropped)
    if missing := [key for key in places.needed(config) if key not in overrides]:
        raise ConfigError(f"{source.name[:80]} was trained with what lies elsewhere; give with --set: "
                          f"{', '.join(missing)}.")  # fmt: skip
    if unread:
        typer.echo(f"without a held-out set, nothing reads {', '.join(unread)}; left at the default.", err=True)

    # The settings, and the card that they came with.
    card = source.path if source.kind == "card" else keeping.card_of(source.name) if source.kind == "preset" else None
    config = session.absolute(presets.changed(config, overrides))
    if card is not None and (lines := suiting.missing(reading.read(card).card, suiting.base_is_here(config), None)):
        raise ConfigError(f"{' '.join(lines)} Get it, or train on another with --set base=BASE.")
    return config, card


def keep_card(run: runs.Run, card: Path | None) -> None:
    """Put the card that a run is started from beside it, and what the card predicts where nothing else does."""
    place = run.folder / bundle.IN_RUN
    if card is None or place.exists():
        return
    opened = reading.read(card)
    files.write(place, card.read_bytes())
    if not (run.folder / predicted_cost.FILE).exists():
        device = run_facts.device_name(bases.hardware(run.config().device, "float32")[0])
        if prediction := suiting.predicted(run.config(), opened.card, device):
            predicted_cost.keep(run.folder / predicted_cost.FILE, prediction)
