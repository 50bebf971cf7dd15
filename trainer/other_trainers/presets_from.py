"""An imported recipe as a preset of the user's own.

It has a head that says where it came from, the settings, and at the end, as comments, what became of each key. Nothing
of the end goes into cards: values may name places.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import tomli_w

from trainer import __version__, presets
from trainer.config import TrainConfig
from trainer.other_trainers.contract import Imported
from trainer.other_trainers.rows import STATUSES, Key
from trainer.printing import printable

_REPORT = "# What became of each key of the recipe:"
_MOST_KEYS, _MOST_CHARS = 1000, 200  # in the report, and of each text there


def name_of(imported: Imported, path: Path) -> str:
    """A name for the preset, in the signs that a name may have: what the recipe calls itself, else the file's."""
    for text in (imported.name, path.stem, imported.tool):
        name = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:60].strip("-._")
        if name:
            return name
    return "imported"


def keep(imported: Imported, path: Path, name: str = "") -> Path:
    """Keep a recipe as a preset of the user's own; its file. Raises: ConfigError."""
    return presets.add(name or name_of(imported, path), text_of(imported, path))


def in_short(keys: tuple[Key, ...]) -> str:
    """How many keys became what."""
    counts = Counter(key.status for key in keys)
    return ", ".join(f"{counts[status]} {status}" for status in STATUSES)


def report_of(preset: Path) -> list[Key]:
    """What became of each key of the recipe that a preset was made of; [] for any other preset. Raises: OSError."""
    lines = preset.read_text(encoding="utf-8", errors="replace").partition(f"\n{_REPORT}\n")[2].splitlines()
    keys = []
    for line in lines:
        try:
            status, *texts = json.loads(line.removeprefix("# "))
        except (ValueError, TypeError, RecursionError):  # edited by hand
            continue
        if status in STATUSES and len(texts) == 4 and all(isinstance(text, str) for text in texts):
            key, value, became, why = texts
            keys.append(Key(key, value, became, status, why))
    return keys


def text_of(imported: Imported, path: Path) -> str:
    """The preset's text: its head, a title, the settings in the order in which a preset has them, and the report."""
    head = [
        f"From {printable(path.name[:80])}, a recipe of {imported.tool} (keys as of {imported.version}), imported by "
        f"Velatura {__version__}.",
        f"Of its {len(imported.keys)} keys: {in_short(imported.keys)}.",
        *(f"Note: {printable(note[:300])}." for note in imported.notes[:12]),
        "Not run at this size: it was imported.",
    ]
    title = imported.name or path.stem
    values = {"title": printable(title[:80]), "version": 1, **_ordered(imported.settings)}
    texts = [(key.status, key.key, str(key.value), key.became, key.why) for key in imported.keys[:_MOST_KEYS]]
    report = [_REPORT, *(f"# {json.dumps([text[:_MOST_CHARS] for text in line])}" for line in texts)]
    return "".join(f"# {line}\n" for line in head) + tomli_w.dumps(values) + "\n" + "\n".join(report) + "\n"


def _ordered(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings by the order of our fields, plain values before tables."""
    order = list(TrainConfig.model_fields)
    names = sorted(settings, key=lambda name: (isinstance(settings[name], dict), order.index(name)))
    return {name: settings[name] for name in names}
