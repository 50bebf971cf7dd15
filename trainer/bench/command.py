"""`velatura bench`: measurements that anyone can repeat."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from trainer import bench
from trainer.errors import ConfigError

app = typer.Typer(help="Measure Velatura against a plain training loop.", no_args_is_help=True)


@app.command()
def train(
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(bench.MODELS)}; repeatable, all if left out.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often each loop is measured, in turn.")] = 3,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of ours, for an ablation.")] = None,
    without: Annotated[list[str] | None, typer.Option(help=f"Also measure ours without {' or '.join(bench.WITHOUT)}; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Steps a second and peak memory of our loop and of a plain diffusers + PEFT loop, at the same settings."""
    models = model or list(bench.MODELS)
    if wrong := [name for name in models if name not in bench.MODELS]:
        raise ConfigError(f"--model is {wrong[0]!r}; allowed: {', '.join(bench.MODELS)}.")
    if wrong := [name for name in without or [] if name not in bench.WITHOUT]:
        raise ConfigError(f"--without is {wrong[0]!r}; allowed: {', '.join(bench.WITHOUT)}.")
    found = []
    for row in bench.run(models, rounds, set_ or [], without or []):
        typer.echo(bench.describe([row]).splitlines()[-1], err=True)
        found.append(row)
    typer.echo(bench.to_json(found) if as_json else bench.describe(found))


@app.command(hidden=True)
def one(
    model: str, loop: str, base: Annotated[str, typer.Option()], scratch: Annotated[Path, typer.Option()],
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:  # fmt: skip
    """Measure one loop in this process; what `train` starts."""
    typer.echo(json.dumps(dataclasses.asdict(bench.one(model, loop, base, scratch, set_ or []))))


@app.command()
def stack(
    model: Annotated[list[str] | None, typer.Option(help="imprimatura, sd15 or sdxl-blocks; repeatable, all if left out.")] = None,
) -> None:
    """Seconds a step with 1 to 8 adapters, to change weights, to swap, and of a grid: our engine against diffusers' adapters."""
    from trainer.bench import stacking

    if wrong := [name for name in model or [] if name not in stacking.MODELS]:
        raise ConfigError(f"--model is {wrong[0]!r}; allowed: {', '.join(stacking.MODELS)}.")
    found = []
    for row in stacking.run(model or list(stacking.MODELS)):
        typer.echo(stacking.describe([row]).splitlines()[-1], err=True)
        found.append(row)
    typer.echo(stacking.describe(found))


@app.command()
def methods(
    name: Annotated[list[str] | None, typer.Option(help="One variant; repeatable, all if left out.")] = None,
    steps: Annotated[int, typer.Option(min=6, help="Training steps of each.")] = 150,
) -> None:
    """Held-out gain of each adapter method on the sample style, after the same number of steps."""
    from trainer.bench import methods as bench_methods

    if wrong := [one for one in name or [] if one not in bench_methods.VARIANTS]:
        raise ConfigError(f"--name is {wrong[0]!r}; allowed: {', '.join(bench_methods.VARIANTS)}.")
    rows = []
    for row in bench_methods.run(name or list(bench_methods.VARIANTS), steps):
        typer.echo(f"{row.name}: {row.gain * 100:.1f} %", err=True)
        rows.append(row)
    typer.echo(bench_methods.describe(rows))


@app.command()
def families(name: Annotated[list[str] | None, typer.Option(help="One family; repeatable, all if left out.")] = None) -> None:
    """Seconds, memory and what is learned on each family's tiny model, by its own process."""
    from trainer import families as registry
    from trainer.bench import families as bench_families

    known = list(registry.registry())
    if wrong := [one for one in name or [] if one not in known]:
        raise ConfigError(f"--name is {wrong[0]!r}; allowed: {', '.join(known)}.")
    typer.echo(bench_families.describe(list(bench_families.run(name or known))))


@app.command(hidden=True)
def one_family(name: str) -> None:
    """Measure one family in this process; what `families` starts."""
    from trainer.bench import families as bench_families

    typer.echo(json.dumps(dataclasses.asdict(bench_families.one(name))))


@app.command()
def profile(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(bench.MODELS)}.")] = "imprimatura",
    rows: Annotated[int, typer.Option(min=1, max=100, help="How many operations to list.")] = 16,
) -> None:
    """Where a step's time goes, against what the processor can do."""
    from trainer.bench import profile as bench_profile

    if model not in bench.MODELS:
        raise ConfigError(f"--model is {model!r}; allowed: {', '.join(bench.MODELS)}.")
    typer.echo(bench_profile.describe(bench_profile.run(model, rows)))
