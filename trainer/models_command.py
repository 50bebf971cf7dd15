"""`velatura models`: the architectures, the bases that are here under names of one's own, and what is in a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer import families, model_registry
from trainer.errors import ConfigError, ModelError
from trainer.lazy import torch

if TYPE_CHECKING:
    from trainer import single_file
    from trainer.families.contract import Family

app = typer.Typer(help="Look at base models and name them.", no_args_is_help=True)
_GIB = 2**30


# Commands.


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the families that can be trained, stacked and rendered, and the models added here."""
    added = model_registry.entries()
    if as_json:
        models = [dataclasses.asdict(entry) for entry in added.values()]
        typer.echo(json.dumps({"families": list(families.registry()), "models": models}, indent=2))
        return
    for name, family in families.registry().items():
        typer.echo(
            f"{name:<10}{family.title:<28}{family.pipeline}, {family.default_px} px, predicts "
            f"{' or '.join(family.prediction)}"
        )
    for entry in added.values():
        state = "" if Path(entry.path).exists() else " (gone; add it again where it is now)"
        size = f", {entry.size_bytes / _GIB:.1f} GiB" if entry.size_bytes else ""
        typer.echo(
            f"{entry.name:<20}{entry.family:<8}{entry.path}{size}, {entry.sha256[:12] or 'a folder'}, added "
            f"{entry.added[:10]}{state}"
        )


@app.command()
def add(
    base: Annotated[Path, typer.Argument(help="A .safetensors checkpoint, or a diffusers folder.")],
    name: Annotated[str | None, typer.Option(help="What to call it as a base; the file's name if left out.")] = None,
    family: Annotated[str | None, typer.Option(help="Refuse it unless it is this family's.")] = None,
    like: Annotated[
        str | None,
        typer.Option(help="A base of the same architecture, for configs, tokenizers, and weights that the file lacks."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="A part's folder or file, such as vae=ae.safetensors; repeatable."),
    ] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon or v, where the file doesn't say.")] = None,
) -> None:
    """Name a base model; nothing is copied until it is used first."""
    from trainer import bases, single_file

    # Its family and its name, which must be free.
    if family is not None and family not in families.registry():
        raise ConfigError(f"--family is {family!r}; allowed: {', '.join(families.registry())}.")
    called = name if name is not None else (base.stem if base.suffix == ".safetensors" else base.name)
    old = model_registry.entries().get(called)
    if old and Path(old.path).exists() and Path(old.path) != base.resolve():
        raise ConfigError(f"--name is {called!r}, which is {old.path} already; choose another.")

    # A folder says everything itself.
    if base.is_dir():
        options = {"--like": like, "--part": part, "--prediction": prediction}
        if given := [option for option, value in options.items() if value]:
            raise ConfigError(f"{', '.join(given)} is for single files; {str(base)!r} is a folder.")
        own_family = family or bases.family_of(str(base))
        bases.resolve(str(base.resolve()), families.registry()[own_family])
        model_registry.save(model_registry.new(called, base, own_family))
        typer.echo(f"{called}: {own_family}, a diffusers folder")
        return

    # A file is planned as a folder, and registered only if nothing is missing.
    detected = single_file.detect(single_file.read_head(base))
    single_file.refuse_strangers(detected, str(base), family or detected.family)
    entry = model_registry.new(
        called,
        base,
        detected.family,
        like=_folder_like(like),
        parts=_parts(part or []),
        prediction=prediction or "",
        sha256=single_file.sha256(base),
    )
    plan = bases.planned(base, entry)
    single_file.refuse_missing(plan)
    model_registry.save(entry)
    typer.echo(f"{called}: {detected.title}, {_describe(plan)}\n{_cost(plan)}")


@app.command()
def inspect(
    base: Annotated[str, typer.Argument(help="A checkpoint file, a diffusers folder, or the name of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a base is: family, prediction, parts and sizes, what is missing, and whether it can be used here."""
    from trainer import bases

    place, entry = bases.place(base)
    if place.is_file():
        facts = _file_facts(place, entry)
    else:
        family = families.registry()[bases.family_of(base)]
        facts = _folder_facts(bases.resolve(base, family), family)
    table = "\n".join(f"{key.replace('_', ' '):<12}{_in_words(value)}" for key, value in facts.items())
    typer.echo(json.dumps(facts, indent=2) if as_json else table)


@app.command()
def tiny(
    family: Annotated[str, typer.Argument(help="Such as sdxl; `velatura models list` names them.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
) -> None:
    """Write a small random model of a family, to try things out in seconds; its pictures are noise."""
    from trainer import bases

    if family not in families.registry():
        raise ConfigError(f"family is {family!r}; allowed: {', '.join(families.registry())}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{str(out)!r} is there already; allowed: a new folder, or an empty one.")
    bases.quiet_libraries()
    typer.echo(families.registry()[family].tiny(out))


# Options.


def _folder_like(like: str | None) -> str:
    """The diffusers folder of the base that `--like` names.

    A folder, not the base's name, so that no two models can be like each other in a circle.
    """
    from trainer import bases

    return str(bases.resolve(like, families.registry()[bases.family_of(like)]).resolve()) if like else ""


def _parts(options: list[str]) -> dict[str, str]:
    """The paths that `--part NAME=PATH` gives, by name. Raises: ConfigError."""
    paths = {}
    for text in options:
        name, equals, path = text.partition("=")
        if not equals or not name or name in paths or not Path(path).exists():
            raise ConfigError(
                f"--part is {text!r}; it must be NAME=PATH of a folder or file that is here, each name once."
            )
        paths[name] = str(Path(path).resolve())
    return paths


# Facts, and how they are said.


def _describe(plan: single_file.Plan) -> str:
    predicts = f"predicts {plan.detected.prediction} ({plan.detected.why}), " if plan.detected.prediction else ""
    return f"{predicts}{plan.head.size_bytes / _GIB:.1f} GiB"


def _cost(plan: single_file.Plan) -> str:
    from trainer import single_file

    return f"its first use writes {single_file.written_bytes(plan) / _GIB:.1f} GiB to {model_registry.shelf()}, once"


def _file_facts(file: Path, entry: model_registry.Entry | None) -> dict[str, Any]:
    """What a single file is. Raises: ModelError for what is no base."""
    from trainer import base_defaults, bases, single_file

    # What its names and shapes tell.
    head = single_file.read_head(file)
    detected = single_file.detect(head)
    is_trained_here = single_file.trained_here(detected)
    facts: dict[str, Any] = {
        "file": str(file),
        "family": detected.family if is_trained_here else f"{detected.title}, which no family here trains yet",
        "model": detected.title,
        "variant": detected.variant or "unknown sizes",
        "size_gib": round(head.size_bytes / _GIB, 2),
        "dtypes": sorted(set(head.dtypes.values())),
        "sha256": model_registry.digest(file, single_file.sha256),
    }
    if not is_trained_here:
        return facts

    # What its folder would be made of: parts of the file, and what comes from elsewhere.
    try:
        plan = bases.planned(file, entry)
    except ModelError as error:
        return facts | {"usable": f"no: {error}"}
    facts |= {"prediction": f"{plan.detected.prediction} ({plan.detected.why})"} if plan.detected.prediction else {}
    sources = {name: source for name, source in plan.sources.items() if not isinstance(source, Path)}
    facts["parameters"] = {name: where.num_parameters(where.under(prefix)) for name, (where, prefix) in sources.items()}
    facts["elsewhere"] = {name: str(source) for name, source in plan.sources.items() if isinstance(source, Path)}
    facts["missing"] = {name: plan.parts[name].kind for name in plan.missing}
    facts["memory"] = _memory(sum(facts["parameters"].values()))
    facts["draws"] = base_defaults.in_words(base_defaults.of(str(file), families.registry()[plan.detected.family]))
    facts["usable"] = "no: parts are missing" if plan.missing else f"yes; {_cost(plan)}"
    return facts


def _folder_facts(folder: Path, family: Family) -> dict[str, Any]:
    """What a diffusers folder is."""
    from trainer import base_defaults, bases, single_file

    weights = sorted(folder.glob("*/*.safetensors"))
    heads = [(file.parent.name, single_file.read_head(file)) for file in weights]
    numbers: dict[str, int] = {}
    for part, head in heads:
        numbers[part] = numbers.get(part, 0) + head.num_parameters(list(head.shapes))
    return {
        "folder": str(folder),
        "family": family.name,
        "model": family.title,
        "prediction": bases.prediction_of(folder, family),
        "size_gib": round(sum(head.size_bytes for _, head in heads) / _GIB, 2),
        "dtypes": sorted({dtype for _, head in heads for dtype in head.dtypes.values()}),
        "parameters": numbers,
        "memory": _memory(sum(numbers.values())),
        "draws": base_defaults.in_words(base_defaults.of(str(folder), family)),
        "usable": "yes",
    }


def _memory(num_parameters: int) -> str:
    """What the weights alone take on the device that would be used, and what is free there."""
    import psutil

    from trainer import bases

    device, dtype = bases.hardware("auto", "auto")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    name = str(dtype).removeprefix("torch.")
    return (
        f"these weights take {num_parameters * dtype.itemsize / _GIB:.1f} GiB in {name} on {device}, where "
        f"{free / _GIB:.1f} GiB is free; `velatura train PRESET --rehearse` measures a run"
    )


def _in_words(value: Any) -> str:
    """A fact for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(each)}" for key, each in value.items()) or "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
