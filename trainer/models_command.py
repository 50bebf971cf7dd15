"""`velatura models`: which architectures there are, and small random bases of each to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import ConfigError

app = typer.Typer(help="Look at base models.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the families that can be trained, stacked and rendered."""
    from trainer import families

    for name, family in families.registry().items():
        typer.echo(f"{name:<8}{family.title:<28}{family.pipeline}, {family.default_px} px, predicts {' or '.join(family.prediction)}")


@app.command()
def tiny(
    family: Annotated[str, typer.Argument(help="Such as sdxl; `velatura models list` names them.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a small random model of a family: its pictures are noise, and everything else works as with a real one, in seconds and without a GPU."""
    from trainer import bases, families

    if family not in families.registry():
        raise ConfigError(f"family is {family!r}; allowed: {', '.join(families.registry())}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} is there already; allowed: a new folder, or an empty one.")
    bases.quiet_libraries()
    typer.echo(families.registry()[family].tiny(out))
