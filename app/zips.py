"""Zips that a browser fetches: each file goes from disk to disk in pieces, as pictures don't pack smaller."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from trainer import files

Entry = tuple[str, Path | Iterable[str]]  # its name in the zip, with the file or the lines that it holds
PartDone = Callable[[int, int], None]


def write(target: Path, entries: Sequence[Entry], part_done: PartDone | None = None) -> Path:
    """The zip of these entries, as `target`; `part_done` is told how many of them are done, and of how many."""
    with files.replacing(target) as unnamed, zipfile.ZipFile(unnamed, "w") as archive:
        for num, (name, content) in enumerate(entries):
            # Told before each file: this is also where a zip that nobody wants any more is given up.
            if part_done:
                part_done(num, len(entries))
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                with archive.open(name, "w") as file:
                    for line in content:
                        file.write(line.encode("utf-8", "replace"))
    return target
