"""How the files of drawn pictures are called: one picture, a sheet and its cells, a row of a batch.

Where a name is taken, who writes the file puts a number behind it (`unique_names`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from trainer import runs, system
from trainer.config import StackConfig, digest

ENDINGS = (".png", ".webp", ".jpg", ".jpeg")


def of_picture(stack: StackConfig) -> str:
    """The name of one picture, without an ending: its seed, and a part of its recipe's digest."""
    return f"{stack.seed}-{digest(stack)[:8]}"


def of_sheet(kind: str, stack: StackConfig) -> str:
    """The name of a sheet, without an ending, such as `grid-1f2e3d4c`."""
    return f"{kind}-{digest(stack)[:8]}"


def of_cell(number: int) -> str:
    """The name of a sheet's picture, counted from 1, without an ending."""
    return f"{number:03}"


def of_row(template: str, number: int, stack: StackConfig, recipe_digest: str) -> str:
    """The path below the folder that a template of `check_name` means, which Windows takes too.

    No value can bring a slash or a leading dot.
    """
    loras = "-".join(f"{Path(adapter.name).stem}{adapter.weight:g}" for adapter in stack.adapters)
    values = {
        "number": f"{number:05d}",
        "seed": str(stack.seed),
        "digest": recipe_digest[:8],
        "prompt": _plain(stack.prompt, "no-prompt"),
        "stack": _plain(loras, "no-lora"),
        "base": _plain(Path(stack.base).name, "base"),
    }
    name = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
    stem, ending = os.path.splitext(name)
    if ending.lower() not in ENDINGS:
        stem, ending = name, ".png"
    # Systems allow 255 bytes a name; the rest is for numbers and endings that are put behind it.
    parts = [part.encode()[:200].decode(errors="ignore").rstrip(". ") for part in stem.split("/")]
    return "/".join(f"{part}_" if part.split(".")[0].lower() in system.RESERVED else part for part in parts) + ending


def _plain(text: str, otherwise: str) -> str:
    """The start of a text as a part of a file's name; `otherwise` if nothing of it can be."""
    return runs.slug(text[:60])[:40].strip("-.") or otherwise if re.search(r"\w", text[:60]) else otherwise
