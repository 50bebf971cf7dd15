"""`velatura render` as functions: the options' texts become a stack and axes, and those a file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import base_defaults, bases, families, lora_file
from trainer.config import AdapterChoice, StackConfig, parse, weights
from trainer.config.parsing import from_json, from_toml
from trainer.config.stack import USUAL_WEIGHT
from trainer.errors import ConfigError
from trainer.presets import parse_overrides
from trainer.render import axes, opening, picture_metadata, picture_names
from trainer.render import axes as grids
from trainer.render.axes import Axis, axis

__all__ = ["axis", "changed", "from_file", "from_picture", "recipe_of", "run", "stack"]
PRESETS, BATCHES = (Path(__file__).parents[2] / "presets" / kind for kind in ("stack", "batch"))
_MAX_STACK_BYTES = 1 << 20


def stack(base: str, loras: list[str], settings: dict[str, Any], size: str | None) -> tuple[StackConfig, list[Axis]]:
    """The stack, and the axes of its grid if any LoRA has several weights; what isn't given is left to the base.

    Raises: ConfigError.
    """
    split = [_lora(text) for text in loras]
    # A LoRA with several weights is an axis; axes come first in the stack.
    split.sort(key=lambda pair: len(pair[1]) == 1)
    axes = [
        Axis(f"adapters.{number}.weight", tuple(values)) for number, (_, values) in enumerate(split) if len(values) > 1
    ]
    adapters = [{"file": file, "name": lora_file.name_of(Path(file)), "weight": values[0]} for file, values in split]
    return parse(StackConfig, settings | {"base": base, "adapters": adapters} | sides(size), "the command line"), axes


def _lora(text: str) -> tuple[str, list[float]]:
    """File and weights of FILE:WEIGHT,WEIGHT. Raises: ConfigError."""
    file, weight = weights.split(text)
    if weight is not None:
        try:
            return file, weights.numbers(weight, USUAL_WEIGHT)
        except ValueError as error:
            raise ConfigError(f"--lora {text!r}: {error}") from None
    if not lora_file.is_there(Path(text)):
        raise ConfigError(f"--lora {text!r}: no such file; write it as FILE:WEIGHT, such as fox.safetensors:0.8.")
    return text, [1.0]


def sides(size: str | None) -> dict[str, int]:
    """Width and height of `512x768`; nothing for no size. Raises: ConfigError."""
    if size is None:
        return {}
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", size)
    if not match:
        raise ConfigError(f"--size is {size!r}; allowed: WIDTHxHEIGHT in pixels, such as 128x128.")
    return {"width_px": int(match[1]), "height_px": int(match[2])}


def from_picture(
    picture: Path, folders: list[Path], note: Callable[[str], None] = lambda text: None
) -> tuple[StackConfig, list[Axis]]:
    """The stack of a picture of ours or of another tool, its LoRAs found below `folders`.

    `note` is called with each thing of it that could not be used.
    """
    if not os.path.isfile(picture):
        raise ConfigError(f"--from {str(picture)[:400]!r}: no such file.")
    library = lora_file.library([folder for folder in folders if folder.is_dir()])
    stack, notes = opening.stack_of(picture, StackConfig(), library)
    for text in notes:
        note(f"note: {text}")
    return stack, []


def from_file(path: Path) -> StackConfig:
    """The stack of a .toml or .json file, or a preset's by name.

    LoRAs and masks that it names are looked for beside it. A preset's LoRAs are slots without files, which
    `--set adapters.0.file=FILE` fills. Raises: ConfigError.
    """
    # A file of that name goes before a preset.
    if not os.path.exists(path) and path.name == str(path) in presets():
        path = PRESETS / f"{path}.toml"
    try:
        raw = path.read_bytes()
        if len(raw) > _MAX_STACK_BYTES:
            raise ConfigError(f"--stack {str(path)!r} has {len(raw)} bytes; allowed: up to {_MAX_STACK_BYTES}.")
        values = (from_json if path.suffix.lower() == ".json" else from_toml)(raw, f"--stack {str(path)!r}")
    except OSError as error:
        raise ConfigError(
            f"--stack {str(path)!r} can't be read: {error.strerror}; allowed: a .toml, a .json, or one of "
            f"{', '.join(presets())}."
        ) from None
    stack = parse(StackConfig, values, str(path))
    return stack.model_copy(update={"adapters": tuple(_beside(adapter, path.parent) for adapter in stack.adapters)})


def presets() -> list[str]:
    """Names of the stacks that ship, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def batches() -> list[str]:
    """Names of the batch templates that ship, sorted."""
    return sorted(path.stem for path in BATCHES.glob("*.toml"))


def batch_file(path: Path) -> Path:
    """A batch's file, or that of a template by its name; a file of that name goes before it."""
    is_name = not os.path.exists(path) and path.name == str(path) in batches()
    return BATCHES / f"{path}.toml" if is_name else path


def purpose(path: Path) -> str:
    """What a stack or batch that ships is for: the first sentence of its head."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    return first.lstrip("# ").partition(". ")[0].rstrip(".") + "."


def _beside(adapter: AdapterChoice, folder: Path) -> AdapterChoice:
    """The adapter with paths that are not absolute taken from the folder."""
    kind, _, mask = adapter.region.partition(" ")
    is_mask_file = kind == "mask" and mask.strip() and not mask.startswith("data:")
    region = f"mask {folder / mask.strip()}" if is_mask_file else adapter.region
    return adapter.model_copy(update={"file": str(folder / adapter.file) if adapter.file else "", "region": region})


def changed(stack: StackConfig, pairs: list[str]) -> StackConfig:
    """The stack with settings changed by KEY=VALUE, such as `mode=switch` or `adapters.0.schedule=linear 1 0`.

    Raises: ConfigError.
    """
    return axes.changed(stack, parse_overrides(pairs), "--set")


def recipe_of(picture: Path) -> dict[str, Any]:
    """The recipe in a picture of ours as it stands there, and the A1111 text. Raises: DataError."""
    carried = picture_metadata.read(picture)
    return {"recipe": carried.recipe, "parameters": carried.infotext}


def run(
    stack: StackConfig,
    axes: list[Axis],
    out: Path,
    download: bool,
    strip: bool = False,
    note: Callable[[str], None] = lambda text: None,
    quantise: str = "none",
) -> Path:
    """The file written: the picture, the grid with its pictures in a folder beside it, or the attribution strip.

    `note` is called with what was left to the base, and with warnings of LoRAs that are for another base.
    """
    # Everything that can be refused is, before the base is loaded.
    picture_metadata.format_of(out)
    # A preset's slots, and files that are damaged.
    for number, adapter in enumerate(stack.adapters):
        if adapter.enabled and not (adapter.file or adapter.sha256):
            raise ConfigError(
                f"adapters.{number} has no file; name it with --set adapters.{number}.file=FILE, or leave it out with "
                f"adapters.{number}.enabled=false."
            )
        if adapter.file:
            lora_file.read_header(Path(adapter.file))
    if download:
        bases.fetch(stack.base)
    stack, left_out = base_defaults.completed(stack), base_defaults.left_out(stack)
    folder = bases.resolve(stack.base, families.registry()[stack.family])
    bases.check_pixels(folder, {"width_px": stack.width_px, "height_px": stack.height_px})

    # The base, and what the stack means on it.
    from trainer.render import checkpoints, grid
    from trainer.render.engine import Engine

    engine = Engine(
        stack.base,
        stack.family,
        quantise=quantise,
        library=lambda: lora_file.library([Path("outputs")]),
        wildcards=Path("wildcards"),
    )
    resolved = engine.resolve(stack)
    warnings = (f"warning: {warning}" for warning in engine.warnings(resolved))
    for line in (base_defaults.describe(resolved, left_out), *warnings):
        if line:
            note(line)

    # Pictures and files.
    if not axes and not strip:
        return picture_metadata.save(engine.render(stack), out)
    pictures: list[picture_metadata.Picture] = []
    if strip:
        sheet = grid.attribution(engine, stack)
    else:
        sheet, pictures = grids.draw(engine, *checkpoints.spelled_out(engine, stack, axes))
    stem = picture_names.of_sheet("strip" if strip else "grid", stack)
    path = picture_metadata.save_sheet(sheet, out, stem)
    for number, picture in enumerate(pictures, 1):
        picture_metadata.save_free(picture, path.with_suffix(""), picture_names.of_cell(number))
    return path
