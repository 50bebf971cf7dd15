"""`velatura lora`: the commands that convert, merge, resize, extract, make plain and verify LoRA files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.config import weights
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.rank_reduction import Cut

app = typer.Typer(help="Change, join and check LoRA files.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="A LoRA file.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="Write here; never over what is read.")]
Names = Annotated[
    str,
    typer.Option(
        "--to",
        help=(
            "kohya, diffusers, comfyui, peft, onetrainer, lycoris, bare or xlabs; default: what most tools of the "
            "family read."
        ),
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16; keep: as the file has it.")]
Rank = Annotated[int, typer.Option(min=0, max=4096, help="At most this rank in every layer; 0: no limit.")]
Energy = Annotated[
    float, typer.Option(min=0, max=1, help="Keep this share of each layer's energy (squared norm), such as 0.99.")
]
Error = Annotated[
    float, typer.Option(min=0, max=0.999, help="Leave out at most this share of each layer's norm, such as 0.05.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def convert(file: File, out: Out, to: Names = "default", dtype: Dtype = "keep", as_json: Json = False) -> None:
    """Write a LoRA under another tool's names; every layer's update is read back and compared."""
    from trainer.lora_tools.convert import convert as run

    result = run(file, out, to, dtype)
    _print(
        result,
        f"{result.path}: {result.before} modules are {result.after} under {result.scheme} names, largest "
        f"difference {result.error:.1e}",
        as_json,
    )


@app.command()
def merge(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE:WEIGHT...", help="Two LoRAs or more; weight 1 if left out.")
    ],
    out: Out,
    rank: Annotated[
        int, typer.Option(min=0, max=4096, help="Cut the sum to this rank, and say what is lost; 0 keeps it exact.")
    ] = 0,
    to: Names = "default",
    dtype: Dtype = "keep",
    as_json: Json = False,
) -> None:
    """Add LoRAs up into one: exactly, or to a rank."""
    from trainer import base_match
    from trainer.lora_tools.merge import merge as run

    weighted = [_weighted(text) for text in files]
    result = run(weighted, out, rank, to, dtype)
    if warning := base_match.differing(file for file, _ in weighted):
        typer.echo(f"warning: {warning}", err=True)
    _print(
        result,
        f"{result.path}: {result.layers} layers, rank {result.rank}, {result.residual * 100:.2f} % of the sum's norm "
        f"left out",
        as_json,
    )


@app.command()
def resize(
    file: File,
    out: Out,
    rank: Rank = 0,
    energy: Energy = 0.0,
    error: Error = 0.0,
    block: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT=RANK", help="Another rank for layers whose path has TEXT in it; repeatable."),
    ] = None,
    dtype: Dtype = "keep",
    as_json: Json = False,
) -> None:
    """Give a LoRA another rank, by rank, energy or error, and say what that leaves out."""
    from trainer.lora_tools.resize import resize as run

    result = run(file, out, _cut(rank, energy, error), _blocks(block or []), dtype)
    ranks = f"rank {result.before[0]}-{result.before[1]} is {result.after[0]}-{result.after[1]}"
    worst = sorted(result.blocks.items(), key=lambda item: -item[1])[:3]
    lost = ", ".join(f"{name} {share * 100:.2f} %" for name, share in worst)
    _print(
        result,
        f"{result.path}: {result.modules} modules, {ranks}, {result.residual * 100:.2f} % of the norm left out; "
        f"most in {lost}",
        as_json,
    )


@app.command()
def extract(
    tuned: Annotated[Path, typer.Argument(help="A fine-tuned model, a diffusers folder.")],
    base: Annotated[
        Path,
        typer.Argument(
            help="What it was tuned from: a diffusers folder, a checkpoint file, or a name from models list."
        ),
    ],
    out: Out,
    rank: Rank = 32,
    energy: Energy = 0.0,
    error: Error = 0.0,
    to: Names = "default",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float16",
    as_json: Json = False,
) -> None:
    """Make a LoRA of what a fine-tuned model has over its base."""
    from trainer.lora_tools.extract import extract as run

    result = run(tuned, base, out, _cut(rank, energy, error), to, dtype)
    _print(
        result,
        f"{result.path}: {result.layers} of {result.of} layers differ, rank {result.rank}, "
        f"{result.residual * 100:.2f} % of the change left out",
        as_json,
    )


@app.command()
def to_plain(
    file: File,
    out: Out,
    rank: Rank = 0,
    energy: Energy = 0.0,
    error: Error = 0.0,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The base model, a folder, checkpoint file or name; DoRA and OFT depend on it."
        ),
    ] = None,
    to: Names = "default",
    dtype: Dtype = "keep",
    as_json: Json = False,
) -> None:
    """Make a plain LoRA of a DoRA, LoHa, LoKr or OFT, which every tool loads, and say what that leaves out."""
    from trainer.lora_tools.plain import to_plain as run

    result = run(file, out, _cut(rank, energy, error), base, to, dtype)
    text = (
        f"{result.changed} of {result.modules} modules made plain, rank {result.rank}, {result.residual * 100:.2f} % "
        f"of the norm left out"
    )
    _print(result, f"{result.path}: {text}", as_json)


@app.command()
def verify(
    file: File,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Load it into this base with diffusers as well; a folder, checkpoint file or name."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a LoRA through every scheme's names and diffusers' loaders, and compare every layer's update; status 1 if a
    way changes it.
    """
    from trainer import base_match
    from trainer.lora_tools.verify import verify as run

    proofs = run(file, base)
    if base is not None and (warning := base_match.at_home(file, str(base))):
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(proof) | {"holds": proof.holds} for proof in proofs], indent=2))
    else:
        for proof in proofs:
            error = "-" if proof.error is None else f"{proof.error:.1e}"
            typer.echo(
                f"{'ok' if proof.holds else '--':<4}{proof.through:<24}{proof.layers:>5} of {proof.of} layers  "
                f"{error:>8}  {proof.why}".rstrip()
            )
    if any(not proof.holds and proof.error is not None for proof in proofs):
        raise typer.Exit(1)


def _print(result: object, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(dataclasses.asdict(result), indent=2, default=str) if as_json else text)  # type: ignore[call-overload]


def _cut(rank: int, energy: float, error: float) -> Cut:
    from trainer.rank_reduction import Cut

    return Cut(rank, energy, error)


def _weighted(text: str) -> tuple[Path, float]:
    """`fox.safetensors:0.8` -> file and weight. Raises: ConfigError."""
    from trainer import lora_file

    file, weight = weights.split(text)
    # A file may have a colon in its name.
    if weight is None or lora_file.is_there(Path(text)):
        return Path(text), 1.0
    try:
        return Path(file), weights.number(weight)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None


def _blocks(lines: list[str]) -> dict[str, int]:
    """`up_blocks.1=16` -> text and rank. Raises: ConfigError."""
    ranks = {}
    for line in lines:
        text, equals, rank = line.rpartition("=")
        if not equals or not text or not rank.isdecimal() or not 1 <= int(rank) <= 4096:
            raise ConfigError(
                f"--block is {line!r}; allowed: TEXT=RANK with a rank of 1 to 4096, such as up_blocks.1=16."
            )
        ranks[text] = int(rank)
    return ranks
