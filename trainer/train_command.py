"""What `velatura train` does with its options: train, go on with a run, or measure what a run would take."""

from __future__ import annotations

import json
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import typer

from trainer import console, distributed, files, more_steps, predicted_cost, run_facts, runs, session
from trainer.card_file.contents import DatasetKind
from trainer.cards import to_compare, training_like
from trainer.config import TrainConfig
from trainer.errors import ConfigError, UserError
from trainer.events import Stopped, Warned
from trainer.rehearsal.result import Rehearsal, to_json
from trainer.report import compared


@dataclass(frozen=True)
class Asked:
    """What the command line says of a run's settings."""

    preset: str | None
    data: str | None
    heldout: str | None
    changes: list[str]
    source: str | None = None  # what to go on from
    extend: int | None = None  # by how many steps


@dataclass(frozen=True)
class Beside:
    """What a run is to know that is none of its settings."""

    card: Path | None = None  # what it is started from, and is compared with
    kind: DatasetKind = "unknown"  # what its pictures teach
    old: Path | None = None  # the LoRA that it is compared with at its end, on the same held-out pictures


def wanted(asked: Asked, resume: bool, out: Path, name: str | None) -> TrainConfig | None:
    """The settings that the command line asks for; None for those that the resumed run was started with.

    Raises: ConfigError, RunError.
    """
    if asked.extend is not None:
        return _extended(asked, out, name)

    # A preset with changes. Beside --resume it must be what the run was started with.
    if asked.preset is not None or asked.source is not None or not resume:
        return session.preset_config(asked.preset, asked.data, asked.heldout, asked.changes, asked.source)
    if asked.changes or asked.data or asked.heldout:
        raise ConfigError(
            "--resume without a preset goes on with the run's own; leave out --set, --data, --heldout and "
            "--memory-gib, or name the preset."
        )
    return None


def _extended(asked: Asked, out: Path, name: str | None) -> TrainConfig:
    """The settings of the run called `name` with more steps. Raises: ConfigError, RunError."""
    assert asked.extend is not None
    if asked.preset or asked.data or asked.heldout or asked.changes or asked.source:
        raise ConfigError(
            "--extend goes on with the run's own settings; leave out the preset, --from, --set, --data, --heldout and "
            "--memory-gib. To change them, branch off: --from outputs/runs/NAME."
        )
    run = runs.find_resumable(out, name) if name else None
    if run is None:
        raise ConfigError(f"--extend needs the --name of a run in {out}" + (f"; {name!r} is none." if name else "."))
    return more_steps.extended(run, asked.extend)


def train(
    config: TrainConfig | None, out: Path, name: str | None, resume: bool, download: bool, as_json: bool, beside: Beside
) -> None:
    """Train a new run or go on with an old run, printing its events; exits with status 130 if it was stopped."""
    from trainer.cards import retraining  # loads torch, which no refusal needs

    # Which run. Each process started by torchrun comes here, and all must go the same way.
    world = distributed.enter()
    if beside.old and world.size > 1:
        raise ConfigError("--compare-with compares in one process; start it without torchrun.")
    config = retraining.with_heldout(config) if beside.old and config else config
    run = session.choose(out, name, config, world) if resume else None
    if run and world.share(run.state() if world.first else "") == "finished":
        if world.first:
            typer.echo(f"run {run.name} is finished: {run.lora_file}")
            _compare(run, as_json)
        return
    if run:
        config = run.config()
    assert config is not None
    old = None if run and to_compare.of_run(run) else beside.old
    if old:
        retraining.refuse(config, old)

    # Train. Only the first process prints; the others' events are taken and dropped.
    run, stream = session.start(config, out, name, run, download, world)
    if world.first:
        training_like.keep_card(run, beside.card)
        if beside.kind != "unknown":
            run_facts.teach(run.folder, beside.kind)
        if old:
            retraining.keep(run, old)
        (run.folder / compared.FILE).unlink(missing_ok=True)  # of the step that it now goes on from
    else:
        deque(stream, maxlen=0)
        return
    last = console.show_json(stream) if as_json else console.show(stream, run.folder)
    if isinstance(last, Stopped | Warned):
        sys.exit(130)
    _compare(run, as_json)


def _compare(run: runs.Run, as_json: bool) -> None:
    """Compare a run with what it is to be compared with and was not yet; the training stands if that can't be done."""
    if not to_compare.is_to_do(run):
        return
    from trainer.cards import retraining  # loads torch

    try:
        answer = retraining.conclude(run)
    except UserError as error:
        files.write(run.folder / compared.FILE, compared.unable(str(error)))
        typer.echo(f"warning: old and new could not be compared: {error}", err=True)
        return
    typer.echo(json.dumps(answer) if as_json else answer["sentence"])


def new(config: TrainConfig | None, resume: bool) -> TrainConfig:
    """The settings of a run to rehearse. Raises: ConfigError if there are none, or the run is not new."""
    if config is None or resume:
        raise ConfigError("--rehearse measures a new run; name a preset, and leave out --resume.")
    return config


def rehearse(config: TrainConfig, out: Path, download: bool, as_json: bool) -> None:
    """Print what a run would take; exits with status 3 if nothing fits into the memory there is."""
    from trainer.rehearsal import fitting
    from trainer.rehearsal.describing import describe

    for result in fitting.fit(config, out, download):
        if isinstance(result, Rehearsal):
            predicted_cost.remember(config, result.settings, result.prediction, out)
            typer.echo(to_json(result) if as_json else describe(result))
            sys.exit(0 if result.fits else 3)
        elif not as_json:
            settings = "".join(f" {setting}" for setting in result.settings)
            typer.echo(f"tried{settings or ' as it is'}: {result.message}")


def rehearse_once(config: TrainConfig, out: Path, download: bool) -> None:
    """Print one rehearsal as the process that finds settings reads it."""
    from trainer.rehearsal import fitting

    typer.echo(fitting.once(config, out, download))
