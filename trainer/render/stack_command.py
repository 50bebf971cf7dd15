"""`velatura stack`: what a stack of LoRAs will do, before a picture is drawn, and weights that keep it from burning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer import families
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config import StackConfig
    from trainer.render.analysis import Analysis, Balance
    from trainer.render.engine import Engine

app = typer.Typer(help="Look at a stack before rendering with it.", no_args_is_help=True)

_HELP = "LoRAs and their weights, such as fox.safetensors:0.8; weight 1 if left out."
Loras = Annotated[list[str], typer.Argument(metavar="FILE:WEIGHT...", help=_HELP)]
LorasOrStack = Annotated[list[str] | None, typer.Argument(metavar="[FILE:WEIGHT...]", help=_HELP)]
StackFile = Annotated[
    str,
    typer.Option(
        "--stack", metavar="TOML|NAME", help="A stack with all it says of time and place, instead of LoRAs and a base."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        help="imprimatura, a diffusers folder, a checkpoint file, a name from models list, or a downloaded hub id."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the base from the hub if it isn't here.")]


@app.command()
def analyze(
    loras: LorasOrStack = None,
    base: Base = "imprimatura",
    stack: StackFile = "",
    heatmap: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw the conflict map into this file.")] = None,
    as_json: Json = False,
    download: Download = False,
) -> None:
    """Say what was read, which LoRAs meet where, and whether their sum is likely to burn."""
    if heatmap is not None and heatmap.suffix.lower() != ".png":
        raise ConfigError(f"--heatmap is {str(heatmap)!r}; allowed: a file that ends in .png.")
    report = _analysis(loras or [], base, stack, download)
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False) if as_json else describe(report))
    if heatmap is not None:
        from trainer.render.heatmap import draw

        heatmap.parent.mkdir(parents=True, exist_ok=True)
        draw(report).save(heatmap)
        typer.echo(f"conflict map: {heatmap}", err=True)


@app.command()
def balance(
    loras: LorasOrStack = None,
    base: Base = "imprimatura",
    stack: StackFile = "",
    as_json: Json = False,
    download: Download = False,
) -> None:
    """Propose weights, in the proportions given, at which the sum is as strong as the strongest LoRA alone."""
    report = _analysis(loras or [], base, stack, download)
    from trainer.render import analysis

    # Warnings go to the other stream, so that the weights can be piped into a command.
    proposed = analysis.balance(report)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        adapters = [
            {
                "name": adapter.name,
                "file": adapter.file,
                "sha256": adapter.sha256,
                "weight": adapter.weight,
                "proposed": weight,
            }
            for adapter, weight in zip(report.adapters, proposed.weights, strict=True)
        ]
        typer.echo(json.dumps({"adapters": adapters, **dataclasses.asdict(proposed)}, indent=2, ensure_ascii=False))
        return
    typer.echo(describe_balance(report, proposed))


@app.command()
def bake(
    loras: Loras,
    base: Base = "imprimatura",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the stack as one LoRA.")] = None,
    rank: Annotated[
        int, typer.Option(min=0, max=1024, help="Cut it to this rank, and say what is lost; 0 keeps it exact.")
    ] = 0,
    into: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the base with the stack folded in, as a diffusers folder.")
    ] = None,
    download: Download = False,
) -> None:
    """Make one LoRA, or a base, of a stack with constant weights; its recipe is inside."""
    if (out is None) == (into is None) or (out is not None and out.suffix != ".safetensors"):
        raise ConfigError("name what to write: --out FILE.safetensors for one LoRA, or --into DIR for a base.")
    stack = _stack(loras, base, download=download)

    # On the CPU: nothing is drawn, and weights are summed once.
    from trainer.render import baking
    from trainer.render.engine import Engine

    engine = Engine(stack.base, stack.family, device="cpu")
    _warn(engine, stack)
    if into is not None:
        typer.echo(str(baking.into_base(engine, stack, into)))
        return
    assert out is not None
    baked = baking.lora(engine, stack, out, rank)
    typer.echo(
        f"{baked.path}: {baked.modules} modules, rank {baked.rank}, {baked.residual * 100:.2f} % of the sum's norm "
        f"left out"
    )


@app.command("modes")
def show_modes(
    loras: Loras,
    prompt: Annotated[str, typer.Option(help="What to draw.")] = "",
    base: Base = "imprimatura",
    seed: Annotated[int, typer.Option(help="The same seed in every mode.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; the base's usual if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PNG", help="The sheet; a new file in outputs/renders if left out.")
    ] = None,
    download: Download = False,
) -> None:
    """Draw one prompt and seed in every way of composing the LoRAs, with seconds a picture."""
    from trainer.render import picture_metadata

    if out and not picture_metadata.format_of(out):
        raise ConfigError(f"--out is {str(out)!r}; name a picture to write, such as modes.png.")
    settings = {"prompt": prompt, "seed": seed} | ({} if steps is None else {"steps": steps})
    stack = _stack(loras, base, settings, download)

    # A picture in each mode.
    from trainer.render import grid
    from trainer.render.engine import Engine

    engine = Engine(stack.base, stack.family)
    _warn(engine, stack)
    sheet, seconds = grid.of_modes(engine, stack)
    path = picture_metadata.save_sheet(sheet, out or Path("outputs") / "renders", "modes")
    typer.echo("\n".join(f"{name:<12}{seconds_:8.2f} s" for name, seconds_ in seconds.items()) + f"\n{path}")


def _warn(engine: Engine, stack: StackConfig) -> None:
    for warning in engine.warnings(engine.resolve(stack)):
        typer.echo(f"warning: {warning}", err=True)


def _stack(loras: list[str], base: str, settings: dict[str, Any] | None = None, download: bool = False) -> StackConfig:
    """The stack of the command line, its files looked at, and what it leaves to the base. Raises: UserError."""
    from trainer import base_defaults, bases, lora_file
    from trainer.render import command

    stack, axes = command.stack(base, loras, settings or {}, None)
    if axes:
        raise ConfigError("a LoRA has several weights; allowed here: one each, such as fox.safetensors:0.8.")
    # A file that can't be read is refused before a base is fetched.
    for adapter in stack.adapters:
        lora_file.read_header(Path(adapter.file))
    if download:
        bases.fetch(stack.base)
    return base_defaults.completed(stack)


def _analysis(loras: list[str], base: str, stack_file: str, download: bool) -> Analysis:
    """The report on the LoRAs as the base reads them. Raises: UserError, for the files before the base is opened."""
    from trainer import base_defaults, bases, lora_file
    from trainer.render import command

    if bool(loras) == bool(stack_file):
        raise ConfigError("name LoRAs, such as fox.safetensors:0.8, or a stack with --stack FILE; one of the two.")
    if stack_file:
        stack = base_defaults.completed(command.from_file(Path(stack_file)))
    else:
        stack = _stack(loras, base, download=download)
    bases.resolve(stack.base, families.registry()[stack.family], download)

    # The base, on the CPU: its weights are read, nothing is drawn.
    from trainer.render import analysis, overlap
    from trainer.render.engine import Engine

    engine = Engine(stack.base, stack.family, device="cpu", library=lambda: lora_file.library([Path("outputs")]))
    stack = engine.resolve(stack)
    enabled = [adapter for adapter in stack.adapters if adapter.enabled]
    loaded = [overlap.load(adapter, engine.file_keys, engine.shapes) for adapter in enabled]
    together = overlap.acting(enabled, stack.mode, stack.steps, engine.latents(stack)) if enabled else None
    report = analysis.analyse(loaded, engine.weights, together)
    return dataclasses.replace(report, warnings=engine.warnings(stack))


def describe(report: Analysis) -> str:
    """The report in words and tables."""
    # What was read.
    lines = [report.verdict, *(f"warning: {warning}" for warning in report.warnings), "", "adapters"]
    for adapter in report.adapters:
        least, largest = adapter.ranks
        ranks = f"rank {least}" if least == largest else f"rank {least} to {largest}"
        lines.append(
            f"  {adapter.name}  {adapter.method}, {ranks}, alpha {adapter.alpha}, {adapter.matched} of "
            f"{adapter.modules} modules matched, hash {adapter.sha256[:12]}"
        )
        norm = f"{adapter.total.energy**0.5:.4g}{_relative(adapter.total.relative)}"
        lines.append(f"    weight {adapter.weight:g}: norm {norm}")

    # Where the sum is strong.
    lines += ["", "the sum, against the strongest LoRA alone (ratio of norms); in brackets each one's own norm"]
    for name, place in {"whole": report.total, **report.blocks}.items():
        own = [adapter.total if place is report.total else adapter.blocks.get(name) for adapter in report.adapters]
        norms = ", ".join("-" if strength is None else f"{strength.energy**0.5:.3g}" for strength in own)
        lines.append(f"  {name:<24}{place.ratio:5.2f} x {place.strongest_name}{_relative(place.relative)} ({norms})")

    # Which LoRAs meet, and where.
    if report.pairs:
        lines += ["", "pairs, the most interfering first        overlap (chance)  cosine  writes  reads  interference"]
    for pair in report.pairs:
        meeting = pair.total
        numbers = (
            f"{meeting.overlap:7.2f} ({meeting.chance:.2f})     {meeting.cosine:+.2f}  {meeting.writes:6.2f} "
            f"{meeting.reads:6.2f}  {meeting.interference:12.2f}"
        )
        lines.append(f"  {' + '.join(pair.names):<38} {numbers}")
    worst = [f"  {path:<80}{value:.3f}" for path, value in list(report.layers.items())[:8] if value]
    if worst:
        lines += ["", "layers that interfere most", *worst]
    if left_out := report.not_analysed:
        lines += ["", f"not analysed ({len(left_out)})", *(f"  {path}" for path in left_out[:20])]
    return "\n".join(lines)


def _relative(share: float | None) -> str:
    return "" if share is None else f", {share * 100:.2f} % of the base's"


def describe_balance(report: Analysis, proposed: Balance) -> str:
    """The proposal, each LoRA as it is given to a command."""
    lines = [f"{adapter.file}:{weight:.3f}" for adapter, weight in zip(report.adapters, proposed.weights, strict=True)]
    return "\n".join([proposed.reason, *lines])
