"""An imported recipe -> the text of a preset of ours, with a head that says where it came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli_w

from trainer import __version__
from trainer.config import TrainConfig
from trainer.other_trainers.contract import STATUSES, Imported
from trainer.printing import printable


def name_of(imported: Imported, path: Path) -> str:
    """A name for the preset, in the signs that one may have: what the recipe calls itself, else the file's."""
    for text in (imported.name, path.stem, imported.tool):
        name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60].strip("-._")
        if name:
            return name
    return "imported"


def text_of(imported: Imported, path: Path) -> str:
    """The preset's text: its head, a title, and the settings in the order in which a preset has them."""
    counts = ", ".join(f"{sum(key.status == status for key in imported.keys)} {status}" for status in STATUSES)
    head = [
        f"From {printable(path.name[:80])}, a recipe of {imported.tool} (keys as of {imported.version}), imported by "
        f"Velatura {__version__}.",
        f"Of its {len(imported.keys)} keys: {counts}.",
        *(f"Note: {printable(note[:300])}." for note in imported.notes[:12]),
        "Not run at this size: it was imported.",
    ]
    title = imported.name or path.stem
    values = {"title": printable(title[:80]), "version": 1, **_ordered(imported.settings)}
    return "".join(f"# {line}\n" for line in head) + tomli_w.dumps(values)


def _ordered(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings by the order of our fields, plain values before tables."""
    order = list(TrainConfig.model_fields)
    names = sorted(settings, key=lambda name: (isinstance(settings[name], dict), order.index(name)))
    return {name: settings[name] for name in names}
