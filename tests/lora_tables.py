"""Key tables of real LoRA files (names and shapes, no weights), and files made of them with small random numbers.

The tables of SD 1.5 and SDXL were listed by running sd-scripts' own network code; the others were published with
InvokeAI's tests, some of them cut down by hand there. `source` in each says where it is from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FOLDER = Path(__file__).parent / "key_tables"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "sd15_kohya")
_BLOCK = re.compile(r"(?:blocks|layers|block)[._](\d+)")
_DOWN = ("lora_down.weight", "lora_A.weight", "down.weight")
_UP = ("lora_up.weight", "lora_B.weight", "up.weight")


def modules(name: str, blocks: int = 1000) -> dict[str, dict[str, tuple[int, ...]]]:
    """`{module: {suffix: shape}}` of a table, of the first so many blocks of each kind."""
    modules = json.loads((FOLDER / f"{name}.json").read_text())["modules"]
    kept = {
        module: parts
        for module, parts in modules.items()
        if all(int(number) < blocks for number in _BLOCK.findall(module)[:1])
    }
    kept = kept if len(kept) > 20 or blocks > 900 else dict([*kept.items(), *list(modules.items())[-8:]])
    return {module: {suffix: tuple(shape) for suffix, shape in parts.items()} for module, parts in kept.items()}


def fill(
    parts: dict[str, dict[str, tuple[int, ...]]], rank: int | None = None, alpha: float | None = 8.0, seed: int = 0
) -> dict[str, Tensor]:
    """Small random numbers for every tensor of a table; plain LoRAs at another rank, if one is given."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, shapes in parts.items():
        low = set(shapes) & set(_DOWN)
        for suffix, shape in shapes.items():
            size = shape
            if rank and low and suffix in _DOWN:
                size = (rank, *shape[1:])
            if rank and low and suffix in _UP:
                size = (shape[0], rank, *shape[2:])
            number = torch.randn(size, generator=generator) * 0.02
            tensors[f"{module}.{suffix}"] = (
                torch.tensor(8.0 if alpha is None else alpha)
                if suffix == "alpha"
                else number.abs()
                if "dora" in suffix
                else number
            )
    return tensors


def write(name: str, folder: Path, blocks: int = 2, rank: int | None = 4, alpha: float = 8.0) -> Path:
    """A file of the first blocks of a table."""
    path = folder / f"{name}.safetensors"
    save_file(fill(modules(name, blocks), rank, alpha), path)
    return path
