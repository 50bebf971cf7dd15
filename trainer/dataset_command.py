"""`velatura dataset`: what to mend in a folder of pictures before training on it, and what a run saw of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from trainer import captioning_command, families, foreign_json, printing
from trainer.config import parse
from trainer.config.data import CaptionsConfig, DataConfig
from trainer.errors import ConfigError, ModelError
from trainer.families.contract import Family
from trainer.lazy import transformers
from trainer.runs import Run

app = typer.Typer(help="Look at a dataset, and caption it.", no_args_is_help=True)


app.command(name="caption")(captioning_command.caption)


@app.callback()
def _group() -> None:
    """Look at a dataset, and caption it."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder or zip of pictures.")],
    resolution: Annotated[
        int | None, typer.Option(help="Training resolution in pixels; the base's own if left out.")
    ] = None,
    trigger: Annotated[str, typer.Option(help="Word that every caption should have.")] = "",
    step: Annotated[int, typer.Option(help="Sides of buckets are multiples of this; 0 for what training takes.")] = 0,
    base: Annotated[
        str,
        typer.Option(help="imprimatura, or a diffusers folder: its tokenizer counts, its resolution is the default."),
    ] = "imprimatura",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which pictures are unreadable, small, blurred, double or cropped, and what captions lack."""
    from trainer import base_defaults, bases
    from trainer.data import archives, dataset_check, sources

    # The pictures, and the base they are for.
    folder = archives.opened(folder)[0]
    sources.check_folder(folder, "the dataset")
    root = bases.folder_of(base)
    family = _family(root, base)
    multiple = max(family.multiple_px, bases.multiple_px(root))
    size = resolution if resolution is not None else max(base_defaults.size_px(root, family))

    # Sizes that the base can't have.
    problems = []
    if not 2 * multiple <= size <= 4096 or size % multiple:
        allowed = f"a multiple of {multiple} from {2 * multiple} to 4096"
        problems.append(f"--resolution is {size}; allowed for this base: {allowed}.")
    if step % multiple:
        problems.append(f"--step is {step}; allowed for this base: 0, or a multiple of {multiple}.")
    if problems:
        raise ConfigError(printing.listed(problems))

    # Check, with the base's own tokenizer; the narrower of its window and the family's counts.
    settings = parse(
        DataConfig, {"folder": str(folder), "trigger": trigger, "bucket_step_px": step}, "the command line"
    )
    count, own = _tokenizer(root)
    window = min((tokens for tokens in (own, family.caption_tokens) if tokens is not None), default=None)
    report = dataset_check.check(
        folder, settings, CaptionsConfig(), size, multiple, count if window is not None else None, window
    )
    typer.echo(json.dumps(dataclasses.asdict(report), indent=2) if as_json else dataset_check.describe(report))


def _family(root: Path, base: str) -> Family:
    """The family of a base's folder. Raises: ModelError if it is none."""
    try:
        pipeline = foreign_json.table(root / "model_index.json")["_class_name"]
        return next(module for module in families.registry().values() if module.pipeline == pipeline)
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"--base is {base!r}; allowed: imprimatura, or a diffusers folder (with model_index.json)."
        ) from None
    except StopIteration:
        raise ModelError(
            f"--base is {base!r}, a {pipeline}; allowed: "
            f"{', '.join(module.pipeline for module in families.registry().values())}."
        ) from None


def _tokenizer(root: Path) -> tuple[Callable[[str], int], int | None]:
    """What counts a text's tokens, and how many of a caption are read; None for the latter where there is no limit.

    It is the base's last text encoder, which reads most; the marks it adds are not counted.

    Raises: ModelError if the base has no tokenizer that opens.
    """
    from transformers.utils import logging

    from trainer import bases

    logging.set_verbosity_error()  # transformers would warn of each caption that is too long; the report lists them
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            root / (bases.parts(root, "tokenizer") or ["tokenizer"])[-1], local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"base {str(root)!r} has no tokenizer that can be opened: {str(error)[:200]}") from None
    window = int(tokenizer.model_max_length) - int(tokenizer.num_special_tokens_to_add())
    has_none = window > 100_000  # transformers' way to say it
    return (lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)), None if has_none else window


@app.command()
def saw(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    step: Annotated[int, typer.Option(help="Step to look at, from 1.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the pictures as the autoencoder got them into this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say exactly which pictures and strings a run trained on at a step."""
    # Made again from the run's settings and pictures, and refused if those have changed.
    from trainer import step_inputs

    seen = step_inputs.at(Run(run), step, out)
    typer.echo(
        json.dumps([dataclasses.asdict(picture) for picture in seen], indent=2, ensure_ascii=False)
        if as_json
        else step_inputs.describe(seen)
    )
