"""Pictures that tell their story: PNG with the A1111 text every tool reads and our own exact recipe.

The recipe names LoRAs by the hash of their tensors, never by path: nothing of this machine travels, and a file that
was renamed or moved is found again.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trainer import __version__
from trainer.config import StackConfig, digest, parse
from trainer.errors import AdapterError, DataError
from trainer.lora_file import LoraInfo

if TYPE_CHECKING:
    from PIL.Image import Image

RECIPE_KEY = "velatura_recipe"
_MAX_RECIPE_CHARS = 1 << 18


@dataclass(frozen=True)
class Picture:
    """A rendered picture, what it was rendered from, and the A1111 text."""

    image: Image
    stack: StackConfig
    infotext: str


def infotext(stack: StackConfig, base_name: str, base_hash: str, sampler: str) -> str:
    """A1111's `parameters` text: prompt with `<lora:name:weight>`, then one line of `key: value` pairs."""
    tags = "".join(f" <lora:{adapter.name}:{adapter.weight:g}>" for adapter in stack.adapters)
    hashes = ", ".join(f"{re.sub('[:,]', '', adapter.name)}: {adapter.sha256[:12]}" for adapter in stack.adapters)
    pairs = {
        "Steps": stack.steps, "Sampler": sampler, "CFG scale": f"{stack.guidance_scale:g}", "Seed": stack.seed, "Size": f"{stack.width_px}x{stack.height_px}",
        "Model hash": base_hash[:10], "Model": _quoted(base_name), "CFG Rescale": f"{stack.guidance_rescale:g}",
    } | ({"Lora hashes": json.dumps(hashes, ensure_ascii=False)} if hashes else {}) | {"Version": f"velatura {__version__}"}  # fmt: skip
    negative = f"Negative prompt: {stack.negative_prompt}\n" if stack.negative_prompt else ""
    return f"{stack.prompt}{tags}\n{negative}" + ", ".join(f"{key}: {value}" for key, value in pairs.items())


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def travelling(stack: StackConfig) -> dict[str, Any]:
    """The stack as it stands in a picture: no paths."""
    values = stack.model_dump(mode="json")
    for adapter in values["adapters"]:
        del adapter["file"]
    values["base"] = Path(values["base"]).name if Path(values["base"]).is_dir() else values["base"]
    return values


def save(picture: Picture, path: Path) -> Path:
    """The file written, whole or not at all: `path` itself if it ends in .png, else a new name in the folder `path`."""
    from PIL.PngImagePlugin import PngInfo

    if path.suffix.lower() != ".png":
        path = free_name(path, f"{picture.stack.seed}-{digest(picture.stack)[:8]}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngInfo()
    info.add_itxt("parameters", picture.infotext) if not picture.infotext.isascii() else info.add_text("parameters", picture.infotext)
    info.add_text(RECIPE_KEY, json.dumps(travelling(picture.stack), sort_keys=True))
    temporary = path.with_name(f".{path.name}.tmp")
    picture.image.save(temporary, "PNG", pnginfo=info)
    os.replace(temporary, path)
    return path


def free_name(folder: Path, name: str) -> Path:
    """`folder/name`, or with -2, -3 ... if it is taken."""
    stem, suffix = os.path.splitext(name)
    number, path = 1, folder / name
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def read_stack(source: Path | IO[bytes], library: dict[str, LoraInfo]) -> StackConfig:
    """The stack a picture was made from, its LoRAs found by hash in `library`.

    Raises: DataError if it isn't a PNG of ours, AdapterError naming every LoRA that isn't here.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=("PNG",)) as image:
            text = image.info.get(RECIPE_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"the picture can't be read as PNG: {error}") from None
    if not isinstance(text, str) or len(text) > _MAX_RECIPE_CHARS:
        raise DataError("the picture carries no Velatura recipe; it is from another tool, or was re-encoded on its way.")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError("the picture's Velatura recipe is damaged.") from None
    if not isinstance(values, dict):
        raise DataError("the picture's Velatura recipe is damaged.")
    stack = parse(StackConfig, values, "the picture's recipe")
    if missing := [adapter for adapter in stack.adapters if adapter.sha256 not in library]:
        raise AdapterError(
            "the picture needs LoRAs that aren't here: " + ", ".join(f"{adapter.name} (hash {adapter.sha256[:12]})" for adapter in missing) + "."
        )
    adapters = [adapter.model_copy(update={"file": str(library[adapter.sha256].path)}) for adapter in stack.adapters]
    return stack.model_copy(update={"adapters": tuple(adapters)})
