"""What `velatura preset import` and `export` do with recipes of other trainers, as text to print."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from trainer import families, files, presets
from trainer.cards import proposals
from trainer.cards.proposals import Proposal
from trainer.config import TrainConfig, parse
from trainer.errors import ConfigError
from trainer.other_trainers import importing, presets_from, recipes_out
from trainer.other_trainers.contract import Imported
from trainer.other_trainers.rows import STATUSES
from trainer.printing import printable


@dataclass(frozen=True)
class Wanted:
    """What the user says of a recipe that it doesn't say itself; "" and 0 where it does."""

    name: str = ""
    pictures: int = 0
    family: str = ""
    base: str = ""


def proposed(file: Path, wanted: Wanted) -> Proposal:
    """The recipe in a file as the preset that it would be kept as, with the report of its keys. Raises: ConfigError."""
    family = families.known(wanted.family) if wanted.family else ""
    recipe = importing.read(file, wanted.pictures, family, wanted.base)
    name = wanted.name or presets_from.name_of(recipe, file)
    kept_as = presets.free_name(name)
    settings = parse(TrainConfig, recipe.settings, "the recipe")
    lines, existing = proposals.beside(name, settings)
    report = _lines(recipe, kept_as)
    return Proposal(
        [*report, *(["", *map(printable, lines)] if lines else [])],
        _report(recipe) | existing | {"preset": kept_as},
        f"the preset {kept_as}",
        lambda: {"preset": presets_from.keep(recipe, file, wanted.name).stem},
    )


def knows(file: Path) -> bool:
    """Whether a file is a recipe of another trainer."""
    try:
        return bool(importing.recognised(file))
    except ConfigError:
        return False


def exported(preset: str, tool: str, out: Path, as_json: bool) -> str:
    """Write a preset in a tool's words; what can't be said there. Raises: ConfigError."""
    written = recipes_out.write(presets.load(preset, {}), tool, out.stem)
    # The file that names the others is written last.
    beside = [out.parent / name for name in written.beside]
    for path, text in zip([*beside, out], [*written.beside.values(), written.text], strict=True):
        files.write(path, text.encode())
    if as_json:
        names = [str(path) for path in beside]
        return json.dumps({"tool": tool, "file": str(out), "beside": names, "unsaid": written.unsaid}, indent=2)
    lines = [f"{setting}: {why}" for setting, why in written.unsaid.items()]
    return "\n".join([str(out), *map(str, beside), *(["can't be said there:", *lines] if lines else [])])


def _report(recipe: Imported) -> dict[str, object]:
    """The report as JSON; `tool` and `keys` are what other programs may rely on."""
    return {
        "tool": recipe.tool,
        "version": recipe.version,
        "keys": [dataclasses.asdict(key) for key in recipe.keys],
        "left_out": [dataclasses.asdict(key) for key in recipe.left_out],
        "notes": list(recipe.notes),
        "settings": recipe.settings,
    }


def _lines(recipe: Imported, preset: str) -> list[str]:
    """The report for people: keys by what became of them, then what the recipe leaves out, then notes."""
    lines = [f"preset {preset}, from a recipe of {recipe.tool}"]
    for status in STATUSES:
        keys = [key for key in recipe.keys if key.status == status]
        lines += [f"\n{status} ({len(keys)})"] if keys else []
        for key in keys:
            became, why = f" -> {key.became}" if key.became else "", f"; {key.why}" if key.why else ""
            lines.append(f"  {key.key} = {key.value}{became}{why}")
    if recipe.left_out:
        lines += ["\nleft out, so as the tool does by itself"]
        lines += [f"  {key.key} -> {key.became}" for key in recipe.left_out]
    return [*lines, *(["", *recipe.notes] if recipe.notes else [])]
