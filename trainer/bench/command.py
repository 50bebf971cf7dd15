"""`velatura bench`: measurements that anyone can repeat."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from trainer import families
from trainer import preset_tiers as shipped_tiers
from trainer.bench import full_size, scale_command, training
from trainer.errors import ConfigError

app = typer.Typer(help="Measure Velatura against a plain training loop.", no_args_is_help=True)
_SizePx = Annotated[
    int | None, typer.Option(min=64, max=4096, help="Size of the pictures; 1024 if left out, on a CPU 128.")
]
app.command("scale")(scale_command.scale)


@app.command()
def train(
    model: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(training.MODELS)}; repeatable, all if left out.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often each loop is measured, in turn.")] = 3,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of ours, for an ablation.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help=f"Also measure ours without {' or '.join(training.WITHOUT)}; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Steps a second and peak memory of our loop and of a plain diffusers + PEFT loop, at the same settings."""
    # Names are checked before anything is measured.
    models = model or list(training.MODELS)
    if unknown := [name for name in models if name not in training.MODELS]:
        raise ConfigError(f"--model is {unknown[0]!r}; allowed: {', '.join(training.MODELS)}.")
    if unknown := [name for name in without or [] if name not in training.WITHOUT]:
        raise ConfigError(f"--without is {unknown[0]!r}; allowed: {', '.join(training.WITHOUT)}.")
    rows = []
    for row in training.run(models, rounds, set_ or [], without or []):
        typer.echo(training.describe([row]).splitlines()[-1], err=True)
        rows.append(row)
    typer.echo(training.to_json(rows) if as_json else training.describe(rows))


@app.command(hidden=True)
def one_loop(
    model: str,
    loop: str,
    base: Annotated[str, typer.Option()],
    scratch: Annotated[Path, typer.Option()],
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
) -> None:
    """Measure one loop in this process; what `train` starts."""
    typer.echo(json.dumps(dataclasses.asdict(training.measure(model, loop, base, scratch, set_ or []))))


@app.command()
def gpu(
    model: Annotated[
        list[str] | None,
        typer.Option(help=f"One of {', '.join(full_size.FAMILIES)}; repeatable, sdxl and flux if left out."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, max=64, help="Pictures at once; repeatable, 1 if left out.")
    ] = None,
    loop: Annotated[
        list[str] | None, typer.Option(help="plain, plain-compiled or ours; repeatable, all if left out.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Another row of ours with this setting, or several between spaces; repeatable.",
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks of each repeated kind, for what can't hold a whole model.")
    ] = None,
    size_px: _SizePx = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Steps measured, after three of warm-up; 6 if left out, on a CPU 2 after one."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Seconds a step and memory of our training and of a plain diffusers + PEFT loop, on random bases of full size.

    Nothing is downloaded.
    """
    from trainer.bench import gpu as bench_gpu

    for option, values, allowed in (("model", model, bench_gpu.MODELS), ("loop", loop, bench_gpu.LOOPS)):
        if unknown := [value for value in values or [] if value not in allowed]:
            raise ConfigError(f"--{option} is {unknown[0]!r}; allowed: {', '.join(allowed)}.")
    measuring, rows = bench_gpu.Bench(size_px, depth, steps), []
    for row in measuring.run(model or list(bench_gpu.USUAL), batch or [1], loop or list(bench_gpu.LOOPS), set_ or []):
        typer.echo(bench_gpu.line(row), err=True)
        rows.append(row)
    table = measuring.table(rows)
    typer.echo(bench_gpu.to_json(table) if as_json else bench_gpu.describe(table))


@app.command(hidden=True)
def one_gpu(
    job: str,
    in_turn: Annotated[bool, typer.Option("--in-turn", help="Wait at two gates, for processes side by side.")] = False,
) -> None:
    """Measure one loop on one base in this process; what `gpu` and `targets` start."""
    from trainer.bench import gpu_loops, side_by_side

    measured = gpu_loops.measure(gpu_loops.Job.read(job), side_by_side.gate if in_turn else side_by_side.no_gate)
    typer.echo(json.dumps(dataclasses.asdict(measured)))


@app.command()
def targets(
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A target by its name, as --json has it, or all whose names begin so (sdxl); repeatable, all if left "
            "out.",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0, max=120, help="Stop after so long; what isn't measured then is listed as not run.")
    ] = 7.0,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks of each repeated kind, for what can't hold a whole model.")
    ] = None,
    size_px: _SizePx = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, help="Steps measured, after three of warm-up; 4 if left out, on a CPU 2 after one."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each thing as it is measured; the last has all.")
    ] = False,
) -> None:
    """Measure what this program is meant to reach on a GPU, on random SDXL and FLUX.1 bases, and say what holds."""
    from trainer.bench import gpu as bench_gpu
    from trainer.bench import targets as bench_targets

    bench = bench_gpu.Bench(size_px, depth, steps, bench_targets.STEPS)
    measuring = bench_targets.Targets(bench_targets.named(only or []), bench, minutes)
    for told in measuring.run():
        typer.echo(bench_targets.json_line(told) if as_json else bench_targets.line(told), err=not as_json)
    report = measuring.report()
    typer.echo(bench_targets.to_json(report) if as_json else bench_targets.describe(report))


@app.command()
def tiers(
    model: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(full_size.FAMILIES)}; repeatable, all if left out.")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Blocks of each repeated kind, to try it; whole models if left out.")
    ] = None,
    size_px: Annotated[int, typer.Option(min=64, max=4096, help="Size of the pictures.")] = 1024,
    of_presets: Annotated[bool, typer.Option("--presets", help="Print presets/tiers.toml: of all that ship.")] = False,
    as_table: Annotated[bool, typer.Option("--table", help="Print what presets/tiers.toml says, in Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Memory settings for GPUs of 8 to 40 GB and what a step then takes: estimated by arithmetic, without a GPU."""
    from trainer.bench import preset_tiers
    from trainer.bench import tiers as bench_tiers

    # What ships, as it is said or made anew.
    if as_table:
        typer.echo(preset_tiers.to_markdown(shipped_tiers.tables()))
        return
    if of_presets:
        tables = {}
        for base in preset_tiers.bases():
            tables[base] = preset_tiers.rows(base)
            typer.echo(preset_tiers.to_toml({base: tables[base]}).removeprefix(preset_tiers.HEAD), err=True)
        typer.echo(preset_tiers.to_toml(tables), nl=False)
        return

    # Models that are asked for.
    if unknown := [name for name in model or [] if name not in full_size.FAMILIES]:
        raise ConfigError(f"--model is {unknown[0]!r}; allowed: {', '.join(full_size.FAMILIES)}.")
    if size_px % bench_tiers.MULTIPLE_PX:
        raise ConfigError(f"--size-px is {size_px}; allowed: multiples of {bench_tiers.MULTIPLE_PX}.")
    rows = []
    for row in bench_tiers.run(model or list(full_size.FAMILIES), depth, size_px):
        typer.echo(bench_tiers.line(row), err=True)
        rows.append(row)
    typer.echo(bench_tiers.to_json(rows) if as_json else bench_tiers.describe(rows))


@app.command(hidden=True)
def one_folding(model: str, kinds: list[str], depth: Annotated[int | None, typer.Option()] = None) -> None:
    """Measure folding into one full-size model, in bases of these kinds, in this process; what `targets` starts."""
    from trainer.bench import folding, side_by_side

    for row in folding.measure(model, depth, kinds, side_by_side.gate):
        typer.echo(row.written())


@app.command()
def stack(
    model: Annotated[
        list[str] | None,
        typer.Option(help="imprimatura, sd15, sdxl-blocks; with --size full sdxl, flux; repeatable, all if left out."),
    ] = None,
    size: Annotated[str, typer.Option(help="small, or full: whole denoisers, for a GPU.")] = "small",
    depth: Annotated[
        int | None,
        typer.Option(min=1, help="With --size full: blocks of each repeated kind, for what can't hold a whole model."),
    ] = None,
    size_px: _SizePx = None,
) -> None:
    """Seconds a step with 1 to 8 adapters, to change weights, to swap and of a grid, against diffusers' adapters."""
    from trainer.bench import full_stacking, stacking
    from trainer.bench import gpu as bench_gpu

    # The models of that size.
    if size not in ("small", "full"):
        raise ConfigError(f"--size is {size!r}; allowed: small, full.")
    allowed = full_stacking.MODELS if size == "full" else stacking.MODELS
    if unknown := [name for name in model or [] if name not in allowed]:
        raise ConfigError(f"--model is {unknown[0]!r}; allowed with --size {size}: {', '.join(allowed)}.")
    models, rows = model or list(allowed), []
    for row in full_stacking.run(models, depth, bench_gpu.size_of(size_px)) if size == "full" else stacking.run(models):
        typer.echo(stacking.line(row), err=True)
        rows.append(row)
    typer.echo(stacking.describe(rows))


@app.command(hidden=True)
def one_stack(
    model: str, size_px: Annotated[int, typer.Option()], depth: Annotated[int | None, typer.Option()] = None
) -> None:
    """Measure stacking on one full-size model in this process; what `stack --size full` starts."""
    from trainer.bench import full_stacking

    for row in full_stacking.measure(model, depth, size_px):
        typer.echo(row.written())


@app.command()
def serve(
    tenants: Annotated[int, typer.Option(min=1, max=256, help="Who ask at once, one request open each.")] = 16,
    loras: Annotated[
        int, typer.Option(min=1, max=5000, help="Random LoRAs that are made, popular by Zipf's law.")
    ] = 200,
    requests: Annotated[int, typer.Option(min=1, max=1000, help="Requests of each tenant in a round.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often each is measured, in turn.")] = 2,
    steps: Annotated[int, typer.Option(min=1, max=150, help="Sampling steps.")] = 25,
    plain: Annotated[int, typer.Option(min=1, max=1000, help="Pictures of the plain loop in a round.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Pictures a minute of many tenants' stacks, against a server without mixed batches and a plain diffusers loop."""
    from trainer.bench import serving

    size = serving.Size(tenants, loras, requests, rounds, steps, plain)
    report = serving.run(size, lambda text: typer.echo(text, err=True))
    typer.echo(serving.to_json(report) if as_json else serving.describe(report))


@app.command()
def methods(
    name: Annotated[list[str] | None, typer.Option(help="One variant; repeatable, all if left out.")] = None,
    steps: Annotated[int, typer.Option(min=6, help="Training steps of each.")] = 150,
) -> None:
    """Held-out gain of each adapter method on the sample style, after the same number of steps."""
    from trainer.bench import methods as bench_methods

    if unknown := [variant for variant in name or [] if variant not in bench_methods.VARIANTS]:
        raise ConfigError(f"--name is {unknown[0]!r}; allowed: {', '.join(bench_methods.VARIANTS)}.")
    rows = []
    for row in bench_methods.run(name or list(bench_methods.VARIANTS), steps):
        typer.echo(f"{row.name}: {row.gain * 100:.1f} %", err=True)
        rows.append(row)
    typer.echo(bench_methods.describe(rows))


@app.command("families")
def all_families(
    name: Annotated[list[str] | None, typer.Option(help="One family; repeatable, all if left out.")] = None,
) -> None:
    """Seconds, memory and what is learned on each family's tiny model, by its own process."""
    from trainer.bench import families as tiny_models

    allowed = list(families.registry())
    if unknown := [family for family in name or [] if family not in allowed]:
        raise ConfigError(f"--name is {unknown[0]!r}; allowed: {', '.join(allowed)}.")
    typer.echo(tiny_models.describe(list(tiny_models.run(name or allowed))))


@app.command(hidden=True)
def one_family(name: str) -> None:
    """Measure one family in this process; what `families` starts."""
    from trainer.bench import families as tiny_models

    typer.echo(json.dumps(dataclasses.asdict(tiny_models.measure(name))))


@app.command()
def profile(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(training.MODELS)}.")] = "imprimatura",
    rows: Annotated[int, typer.Option(min=1, max=100, help="How many operations to list.")] = 16,
) -> None:
    """Where a step's time goes, against what the processor can do."""
    from trainer.bench import profile as bench_profile

    if model not in training.MODELS:
        raise ConfigError(f"--model is {model!r}; allowed: {', '.join(training.MODELS)}.")
    typer.echo(bench_profile.describe(bench_profile.run(model, rows)))
