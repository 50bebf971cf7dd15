"""`velatura bench scale`: what one server and many would do under many tenants' load, by simulation."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.bench import scale as simulation
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.bench import scale_costs

_TOLERANCE = 0.15  # of what was measured
_COMPARED = 20  # loads, since one of the load test's size is small


def scale(
    tenants: Annotated[int, typer.Option(min=1, help="Who ask at once, each for one picture after the other.")] = 16,
    loras: Annotated[int, typer.Option(min=0, help="LoRAs of Zipf popularity, one to three in a stack.")] = 200,
    requests: Annotated[int, typer.Option(min=1, help="Pictures that each tenant asks for.")] = 20,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 25,
    servers: Annotated[int, typer.Option(min=1, max=10_000, help="Servers that a router sends them to.")] = 1,
    routing: Annotated[str, typer.Option(help=f"One of {', '.join(simulation.ROUTINGS)}.")] = "affinity",
    memory_loras: Annotated[int, typer.Option(min=1, help="LoRAs that a server keeps in memory.")] = 200,
    window_ms: Annotated[float, typer.Option(min=0, max=10_000, help="How long a batch waits for others.")] = 10.0,
    costs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Costs that --measure printed; measured here if left out.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Print this machine's costs as JSON, and no more.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=50, help="How often costs are measured; the median counts.")] = 3,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `bench serve --json` printed, to be compared with; by its own costs without --costs.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same load.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Pictures a minute and latencies of servers with mixed batches, simulated from costs measured here."""
    if routing not in simulation.ROUTINGS:
        raise ConfigError(f"--routing is {routing!r}; allowed: {', '.join(simulation.ROUTINGS)}.")
    from trainer.bench import scale_costs  # which loads torch

    def note(text: str) -> None:
        typer.echo(text, err=True)

    if against and not costs:
        typer.echo(compared(None, against))
        return
    measured = scale_costs.read(costs) if costs else scale_costs.measure(rounds, note)
    if measure:
        typer.echo(scale_costs.write(measured))
        return
    if abs(measured.off) > _TOLERANCE:
        typer.echo(
            f"warning: at a batch that they weren't made from, these costs are off by {measured.off:+.0%}; measure "
            f"again on a machine that does nothing else.",
            err=True,
        )
    load = simulation.Load(
        tenants, loras, requests, steps, servers, routing, memory_loras=memory_loras, window_s=window_ms / 1000,
        seed=seed,
    )  # fmt: skip
    outcomes = {name: simulation.simulate(one, measured.costs) for name, one in _ways(load).items()}
    typer.echo(_to_json(load, outcomes) if as_json else describe(load, outcomes))
    if against:
        typer.echo(compared(measured, against))


def _ways(load: simulation.Load) -> dict[str, simulation.Load]:
    """The ways of serving a load, by the names that `bench serve` has for them; it has none that joins by steps."""
    return {
        "base": dataclasses.replace(load, loras=0),
        "mixed": load,
        "unmixed": dataclasses.replace(load, batch_pictures=1),
        "by step": dataclasses.replace(load, joining="step"),
    }


def _to_json(load: simulation.Load, outcomes: dict[str, simulation.Outcome]) -> str:
    rows = [{"name": name} | dataclasses.asdict(outcome) for name, outcome in outcomes.items()]
    return json.dumps({"size": dataclasses.asdict(load), "rows": rows}, indent=2)


def describe(load: simulation.Load, outcomes: dict[str, simulation.Outcome]) -> str:
    """The table for people, in the columns of `bench serve`."""
    lines = [
        f"simulated: {load.tenants} tenants, {load.loras} LoRAs, {load.steps} steps, {load.servers} servers",
        f"{'served':<10}{'pictures':>10}{'a minute':>10}{'p50 s':>9}{'p95 s':>9}{'a batch':>9}{'LoRAs':>8}{'reads':>8}"
        f"{'busy':>7}{'work s':>8}",
    ]
    lines += [
        f"{name:<10}{row.pictures:>10}{row.pictures_a_minute:>10.1f}{row.p50_s:>9.2f}{row.p95_s:>9.2f}"
        f"{row.mean_batch:>9.1f}{row.mean_loras:>8.1f}{row.reads:>8.2f}{row.busy:>7.0%}{row.work_s:>8.2f}"
        for name, row in outcomes.items()
    ]
    return "\n".join(lines)


def compared(costs: scale_costs.Measured | None, path: Path) -> str:
    """How far the simulation is from a measured load test of its size, and whether it may predict.

    The costs are the report's own, measured between its rounds, if none are given. Raises: ConfigError.
    """
    from trainer.bench import scale_costs

    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        measured = costs or scale_costs.parsed(report["measured"])
        size, rows = report["size"], {row["name"]: row for row in report["rows"]}
        tenants, loras, requests, steps = (int(size[name]) for name in ("tenants", "loras", "requests", "steps"))
        load = simulation.Load(tenants, loras, requests, steps, memory_loras=max(1, loras), in_memory=True)
        pairs = [
            (name, what, ours, float(rows[name][what]))
            for name, one in _ways(load).items()
            if name in rows
            for what, ours in _figures(one, measured).items()
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--against is {str(path)[:300]!r}, which is no report of bench serve --json: {error}."
        ) from None
    lines = [
        f"{name}, {what}: simulated {ours:.2f}, measured {theirs:.2f}, {ours / theirs - 1:+.0%}"
        for name, what, ours, theirs in pairs
    ]
    worst = max(abs(ours / theirs - 1) for _, _, ours, theirs in pairs)
    verdict = "yes" if worst <= _TOLERANCE else "no, so what it says of more servers is no guide"
    lines.append(f"within {_TOLERANCE:.0%}: {verdict}")
    return "\n".join(lines)


def _figures(load: simulation.Load, measured: scale_costs.Measured) -> dict[str, float]:
    """What `bench serve` measures of a load, by its names, each the mean of some loads of its size."""
    loads = [dataclasses.replace(load, seed=seed) for seed in range(_COMPARED)]
    outcomes = [simulation.simulate(one, measured.costs) for one in loads]
    work = [simulation.simulate(one, measured.processor).work_s for one in loads]
    return {
        "pictures_a_minute": statistics.harmonic_mean([outcome.pictures_a_minute for outcome in outcomes]),
        "p95_s": statistics.fmean(outcome.p95_s for outcome in outcomes),
        "cpu_s": statistics.fmean(work),
    }
