"""`velatura models`: which architectures there are, which bases are here under names of one's own, and what is in a checkpoint file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from trainer import model_registry, single_file
    from trainer.families.contract import Family

app = typer.Typer(help="Look at base models and name them.", no_args_is_help=True)
_GIB = 2**30


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the families that can be trained, stacked and rendered, and the models added here."""
    from trainer import families, model_registry

    added = model_registry.entries()
    if as_json:
        typer.echo(json.dumps({"families": list(families.registry()), "models": [dataclasses.asdict(entry) for entry in added.values()]}, indent=2))
        return
    for name, family in families.registry().items():
        typer.echo(f"{name:<10}{family.title:<28}{family.pipeline}, {family.default_px} px, predicts {' or '.join(family.prediction)}")
    for entry in added.values():
        state = "" if Path(entry.path).exists() else " (gone; add it again where it is now)"
        size = f", {entry.size_bytes / _GIB:.1f} GiB" if entry.size_bytes else ""
        typer.echo(f"{entry.name:<20}{entry.family:<8}{entry.path}{size}, {entry.sha256[:12] or 'a folder'}, added {entry.added[:10]}{state}")


@app.command()
def add(
    base: Annotated[Path, typer.Argument(help="A .safetensors checkpoint, or a diffusers folder.")],
    name: Annotated[str | None, typer.Option(help="What to call it as a base; the file's name if left out.")] = None,
    family: Annotated[str | None, typer.Option(help="Refuse it unless it is this family's.")] = None,
    like: Annotated[str | None, typer.Option(help="A base of the same architecture, for configs, tokenizers, and weights that the file lacks.")] = None,
    part: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="A part's folder or file, such as vae=ae.safetensors; repeatable.")] = None,
    prediction: Annotated[str | None, typer.Option(help="epsilon or v, where the file doesn't say.")] = None,
) -> None:
    """Name a base model; nothing is copied until it is used first."""
    from trainer import bases, families, model_registry, single_file

    if family is not None and family not in families.registry():
        raise ConfigError(f"--family is {family!r}; allowed: {', '.join(families.registry())}.")
    called = name if name is not None else (base.stem if base.suffix == ".safetensors" else base.name)
    old = model_registry.entries().get(called)
    if old and Path(old.path).exists() and Path(old.path) != base.resolve():
        raise ConfigError(f"--name is {called!r}, which is {old.path} already; choose another.")
    if base.is_dir():
        if wrong := [option for option, given in (("--like", like), ("--part", part), ("--prediction", prediction)) if given]:
            raise ConfigError(f"{', '.join(wrong)} is for single files; {str(base)!r} is a folder.")
        found = family or bases.family_of(str(base))
        bases.resolve(str(base.resolve()), families.registry()[found])
        model_registry.save(model_registry.new(called, base, found))
        typer.echo(f"{called}: {found}, a diffusers folder")
        return
    detected = single_file.detect(single_file.read_head(base))
    single_file.refuse_strangers(detected, str(base), family or detected.family)
    entry = model_registry.new(
        called, base, detected.family, like=_folder_like(like), parts=_parts(part or []), prediction=prediction or "", sha256=single_file.sha256(base)
    )  # fmt: skip
    made = bases.planned(base, entry)
    single_file.refuse_missing(made)
    model_registry.save(entry)
    typer.echo(f"{called}: {detected.title}, {_told(made)}\n{_cost(made)}")


@app.command()
def inspect(
    base: Annotated[str, typer.Argument(help="A checkpoint file, a diffusers folder, or the name of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a base is: family, prediction, parts and their sizes, what is missing, and whether it can be used here."""
    from trainer import bases, families

    place, entry = bases.place(base)
    if place.is_file():
        facts = _file_facts(place, entry)
    else:
        family = families.registry()[bases.family_of(base)]
        facts = _folder_facts(bases.resolve(base, family), family)
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{key.replace('_', ' '):<12}{_said(value)}" for key, value in facts.items()))


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


def _folder_like(like: str | None) -> str:
    """The diffusers folder of the base that `--like` names; kept as a folder, so that no two models can be like each other in a circle."""
    from trainer import bases, families

    return str(bases.resolve(like, families.registry()[bases.family_of(like)]).resolve()) if like else ""


def _parts(wanted: list[str]) -> dict[str, str]:
    found = {}
    for text in wanted:
        name, equals, path = text.partition("=")
        if not equals or not name or name in found or not Path(path).exists():
            raise ConfigError(f"--part is {text!r}; it must be NAME=PATH of a folder or file that is here, each name once.")
        found[name] = str(Path(path).resolve())
    return found


def _told(made: single_file.Plan) -> str:
    predicts = f"predicts {made.found.prediction} ({made.found.why}), " if made.found.prediction else ""
    return f"{predicts}{made.head.size_bytes / _GIB:.1f} GiB"


def _cost(made: single_file.Plan) -> str:
    from trainer import model_registry, single_file

    return f"its first use writes {single_file.written_bytes(made) / _GIB:.1f} GiB to {model_registry.shelf()}, once"


def _file_facts(file: Path, entry: model_registry.Entry | None) -> dict[str, Any]:
    """What a single file is. Raises: ModelError for what is no base."""
    from trainer import base_defaults, bases, families, model_registry, single_file

    head = single_file.read_head(file)
    found = single_file.detect(head)
    facts: dict[str, Any] = {
        "file": str(file), "family": found.family if single_file.trained_here(found) else f"{found.title}, which no family here trains yet",
        "model": found.title, "variant": found.variant or "unknown sizes", "size_gib": round(head.size_bytes / _GIB, 2),
        "dtypes": sorted(set(head.dtypes.values())), "sha256": model_registry.digest(file, single_file.sha256),
    }  # fmt: skip
    if not single_file.trained_here(found):
        return facts
    try:
        made = bases.planned(file, entry)
    except ModelError as error:
        return facts | {"usable": f"no: {error}"}
    facts |= {"prediction": f"{made.found.prediction} ({made.found.why})"} if made.found.prediction else {}
    sources = {name: source for name, source in made.sources.items() if not isinstance(source, Path)}
    facts["parameters"] = {name: where.num_parameters(where.under(prefix)) for name, (where, prefix) in sources.items()}
    facts["elsewhere"] = {name: str(source) for name, source in made.sources.items() if isinstance(source, Path)}
    facts["missing"] = {name: made.parts[name].kind for name in made.missing}
    facts["memory"] = _memory(sum(facts["parameters"].values()))
    facts["draws"] = base_defaults.in_words(base_defaults.of(str(file), families.registry()[made.found.family]))
    facts["usable"] = "no: parts are missing" if made.missing else f"yes; {_cost(made)}"
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
        "folder": str(folder), "family": family.name, "model": family.title, "prediction": bases.prediction_of(folder, family),
        "size_gib": round(sum(head.size_bytes for _, head in heads) / _GIB, 2), "dtypes": sorted({one for _, head in heads for one in head.dtypes.values()}),
        "parameters": numbers, "memory": _memory(sum(numbers.values())), "draws": base_defaults.in_words(base_defaults.of(str(folder), family)),
        "usable": "yes",
    }  # fmt: skip


def _memory(num_parameters: int) -> str:
    """What the weights alone take on the device that would be used, and what is free there."""
    import psutil
    import torch

    from trainer import bases

    device, dtype = bases.hardware("auto", "auto")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    name = str(dtype).removeprefix("torch.")
    return (
        f"these weights take {num_parameters * dtype.itemsize / _GIB:.1f} GiB in {name} on {device}, where {free / _GIB:.1f} GiB is free; "
        "`velatura train PRESET --rehearse` measures a run"
    )


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_said(one)}" for key, one in value.items()) or "nothing"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
