"""`velatura bench`: measurements that anyone can repeat."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from trainer import bench
from trainer.bench import full_size
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
def gpu(
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(full_size.FAMILIES)}; repeatable, sdxl and flux if left out.")] = None,
    batch: Annotated[list[int] | None, typer.Option(min=1, max=64, help="Pictures at once; repeatable, 1 if left out.")] = None,
    loop: Annotated[list[str] | None, typer.Option(help="plain, plain-compiled or ours; repeatable, all if left out.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another row of ours with this setting, or several between spaces; repeatable.")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Blocks of each repeated kind, for what can't hold a whole model.")] = None,
    size_px: Annotated[int, typer.Option(min=64, max=4096, help="Size of the pictures.")] = 1024,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Steps measured, after three of warm-up; 6 if left out, on a CPU 2 after one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Seconds a step and memory of our training and of a plain diffusers + PEFT loop, on random bases of full size; nothing is downloaded."""
    from trainer.bench import gpu as bench_gpu

    for name, given, known in (("model", model, bench_gpu.MODELS), ("loop", loop, bench_gpu.LOOPS)):
        if wrong := [one for one in given or [] if one not in known]:
            raise ConfigError(f"--{name} is {wrong[0]!r}; allowed: {', '.join(known)}.")
    measuring, rows = bench_gpu.Bench(size_px, depth, steps), []
    for row in measuring.run(model or list(bench_gpu.USUAL), batch or [1], loop or list(bench_gpu.LOOPS), set_ or []):
        typer.echo(bench_gpu.line(row), err=True)
        rows.append(row)
    table = measuring.table(rows)
    typer.echo(bench_gpu.to_json(table) if as_json else bench_gpu.describe(table))


@app.command(hidden=True)
def one_gpu(job: str) -> None:
    """Measure one loop on one base in this process; what `gpu` starts."""
    from trainer.bench import gpu_loops

    typer.echo(json.dumps(dataclasses.asdict(gpu_loops.measure(gpu_loops.Job.read(job)))))


@app.command()
def stack(
    model: Annotated[list[str] | None, typer.Option(help="imprimatura, sd15, sdxl-blocks; with --size full sdxl, flux; repeatable, all if left out.")] = None,
    size: Annotated[str, typer.Option(help="small, or full: whole denoisers, for a GPU.")] = "small",
    depth: Annotated[int | None, typer.Option(min=1, help="With --size full: blocks of each repeated kind, for what can't hold a whole model.")] = None,
    size_px: Annotated[int, typer.Option(min=64, max=4096, help="With --size full: size of the pictures.")] = 1024,
) -> None:
    """Seconds a step with 1 to 8 adapters, to change weights, to swap, and of a grid: our engine against diffusers' adapters."""
    from trainer.bench import full_stacking, stacking

    if size not in ("small", "full"):
        raise ConfigError(f"--size is {size!r}; allowed: small, full.")
    known = full_stacking.MODELS if size == "full" else stacking.MODELS
    if wrong := [name for name in model or [] if name not in known]:
        raise ConfigError(f"--model is {wrong[0]!r}; allowed with --size {size}: {', '.join(known)}.")
    models, found = model or list(known), []
    for row in full_stacking.run(models, depth, size_px) if size == "full" else stacking.run(models):
        typer.echo(stacking.describe([row]).splitlines()[-1], err=True)
        found.append(row)
    typer.echo(stacking.describe(found))


@app.command(hidden=True)
def one_stack(
    model: str, size_px: Annotated[int, typer.Option()], depth: Annotated[int | None, typer.Option()] = None,
) -> None:  # fmt: skip
    """Measure stacking on one full-size model in this process; what `stack --size full` starts."""
    from trainer.bench import full_stacking

    for row in full_stacking.measure(model, depth, size_px):
        typer.echo(full_stacking.told(row))


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
