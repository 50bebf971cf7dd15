"""`velatura render` in words a function understands: text of options -> stack and axes -> a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from trainer import bases, families, lora_file
from trainer.config import StackConfig, digest, parse
from trainer.errors import ConfigError
from trainer.render import image

Axes = list[list[float]]


def stack(base: str, loras: list[str], settings: dict[str, Any], size: str | None) -> tuple[StackConfig, Axes]:
    """The stack, and the weights of its grid if any LoRA has several. Raises: ConfigError."""
    split = [_lora(text) for text in loras]
    # A LoRA with several weights is an axis; axes come first in the stack.
    for text, (_, weights) in zip(loras, split, strict=True):
        if bad := [weight for weight in weights if not -2 <= weight <= 2]:
            raise ConfigError(f"--lora {text!r}: weight is {bad[0]:g}; allowed: -2 to 2.")
    split.sort(key=lambda pair: len(pair[1]) == 1)
    axes = [weights for _, weights in split if len(weights) > 1]
    adapters = [{"file": file, "name": Path(file).stem, "weight": weights[0]} for file, weights in split]
    values = settings | {"base": base, "adapters": adapters} | _size(size, base)
    return parse(StackConfig, values, "the command line"), axes


def _lora(text: str) -> tuple[str, list[float]]:
    file, colon, weights = text.rpartition(":")
    if colon and re.fullmatch(r"[-+0-9.,eE ]+", weights):
        try:
            return file, [float(weight) for weight in weights.split(",")]
        except ValueError:
            raise ConfigError(f"--lora {text!r}: weight is {weights!r}; allowed: a number from -2 to 2, or several with commas between.") from None
    if not Path(text).is_file():
        raise ConfigError(f"--lora {text!r}: no such file; write it as FILE:WEIGHT, such as fox.safetensors:0.8.")
    return text, [1.0]


def _size(size: str | None, base: str) -> dict[str, int]:
    if size is None:
        default = 128 if base == "imprimatura" else families.registry()["sd"].default_px
        return {"width_px": default, "height_px": default}
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", size)
    if not match:
        raise ConfigError(f"--size is {size!r}; allowed: WIDTHxHEIGHT in pixels, such as 128x128.")
    return {"width_px": int(match[1]), "height_px": int(match[2])}


def again(picture: Path, folders: list[Path]) -> tuple[StackConfig, Axes]:
    """The stack of a picture of ours, its LoRAs found by hash below `folders`."""
    if not picture.is_file():
        raise ConfigError(f"--from {str(picture)!r}: no such file.")
    return image.read_stack(picture, lora_file.library([folder for folder in folders if folder.is_dir()])), []


def recipe_of(picture: Path) -> dict[str, Any]:
    """The recipe in a picture of ours as it stands there."""
    from PIL import Image

    from trainer.errors import DataError

    try:
        with Image.open(picture, formats=("PNG",)) as opened:
            found: dict[str, Any] = json.loads(opened.info.get(image.RECIPE_KEY, "null"))
            text = opened.info.get("parameters")
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise DataError(f"{picture} can't be read: {error}") from None
    return {"recipe": found, "parameters": text}


def run(stack: StackConfig, axes: Axes, out: Path, download: bool) -> Path:
    """Render the picture, or the grid; the file written. Everything that can be refused is, before the base is loaded."""
    for adapter in stack.adapters:
        lora_file.read_header(Path(adapter.file))
    folder = bases.resolve(stack.base, families.registry()[stack.family], download)
    bases.check_pixels(folder, {"width_px": stack.width_px, "height_px": stack.height_px})
    from trainer.render import grid
    from trainer.render.engine import Engine

    engine = Engine(stack.base, stack.family, download=download)
    if not axes:
        return image.save(engine.render(stack), out)
    sheet = grid.weight_grid(engine, stack, axes)
    path = out if out.suffix.lower() == ".png" else image.free_name(out, f"grid-{digest(stack)[:8]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path
