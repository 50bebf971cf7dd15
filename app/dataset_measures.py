"""What the pictures of a dataset look like by numbers, and their thumbnails: each picture is looked at once.

Looking takes up to a tenth of a second a picture. The page shows what is known and asks again for the rest, so that
a large set is there at once. What was found lies beside the thumbnail, for the next start of the server.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from app.context import Context
from app.texts import say
from trainer import files
from trainer.data.picture_file import PictureFile
from trainer.errors import DataError

_AT_ONCE = 8


@dataclass(frozen=True)
class Look:
    """A picture by numbers; `problem` says why it doesn't open."""

    thumbnail: str
    width_px: int = 0
    height_px: int = 0
    sha256: str = ""
    sharpness: float = 1.0
    phash: int = 0
    problem: str = ""


class Looks:
    """What is known of the pictures of a workspace; safe to use from many requests at once."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[tuple[str, int, int], Look] = {}

    def of(self, paths: Sequence[Path], budget_s: float) -> dict[Path, Look]:
        """Those of the pictures that are known, having looked at more for about this long."""
        # What is known of the files as they are now.
        looks: dict[Path, Look] = {}
        unknown: list[tuple[Path, tuple[str, int, int]]] = []
        for path in paths:
            with suppress(OSError):
                status = path.stat()
                key = (str(path), status.st_mtime_ns, status.st_size)
                if known := self._known.get(key):
                    looks[path] = known
                else:
                    unknown.append((path, key))

        # More of them, a few at a time, until the time is over.
        end = time.monotonic() + budget_s
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while unknown and time.monotonic() < end:
                group, unknown = unknown[:_AT_ONCE], unknown[_AT_ONCE:]
                found = pool.map(self._look, [path for path, _ in group])
                for (path, key), look in zip(group, found, strict=True):
                    looks[path] = self._known[key] = look
        return looks

    def _look(self, path: Path) -> Look:
        """The picture looked at, or what was found when it was."""
        try:
            thumbnail = self._context.thumbnail(path)
        except DataError as error:
            return Look("", problem=str(error))
        # What was found before the server was started last.
        kept = thumbnail.with_suffix(".json")
        with suppress(OSError, ValueError, TypeError):
            return Look(thumbnail=str(thumbnail), **json.loads(kept.read_bytes()))

        from trainer.data import dataset_check  # loads much that the page itself does not need

        measured = dataset_check.measure(PictureFile(path, path.name, ""), dataset_check.MEASURED_PX)
        if isinstance(measured, str):
            return Look("", problem=say("problems.cannot_open"))
        look = Look(str(thumbnail), *measured.size, measured.sha256, measured.sharpness, measured.phash)
        facts = {key: value for key, value in asdict(look).items() if key not in ("thumbnail", "problem")}
        with suppress(OSError):
            files.write(kept, json.dumps(facts).encode())
        return look
