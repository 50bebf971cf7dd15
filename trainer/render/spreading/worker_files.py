"""Files that were sent to a worker, kept by their content in a folder of limited size.

Workers of one machine share the folder. Each draws from hard links in a folder of its own, so that what another one
throws away to make room stays readable for as long as it is in use here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from trainer import files, system, unique_names
from trainer.errors import RunError
from trainer.render.spreading.messages import Part

_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")
_LONGEST_NAME = 80


class KeptFiles:
    """The folder as one worker sees it."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """`limit_bytes` is of all that is kept; one file that is larger is still taken. Raises: OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        system.let_owner_alone_read(folder)
        unique_names.sweep(folder)
        self.folder, self.limit_bytes = folder, limit_bytes
        self.own = folder / f"{unique_names.unfinished()}{uuid.uuid4().hex}"
        self._checked: set[str] = set()  # digests of what this process has read whole or written

    def place(self, key: str, parts: tuple[Part, ...], content_of: Callable[[str], bytes]) -> Path:
        """Where the first of these files now lies, the others beside it.

        `content_of` a sha256 is asked for what isn't here. Raises: RunError if a content is not what its sha256 says,
        OSError if there is no room.
        """
        if not _KEY.fullmatch(key) or not all(_DIGEST.fullmatch(part.sha256) for part in parts):
            raise RunError(f"a file was sent under {key[:80]!r}, which is no digest; it was not kept.")
        target = self.own / key
        target.mkdir(parents=True, exist_ok=True)
        for part in parts:
            self._put(part, target / harmless_name(part.name), content_of)
        return target / harmless_name(parts[0].name)

    def _put(self, part: Part, target: Path, content_of: Callable[[str], bytes]) -> None:
        kept = self.folder / part.sha256
        if target.exists():
            return
        if part.sha256 not in self._checked or not kept.exists():
            # What lies there since another batch may have been spoilt.
            if not kept.exists() or files.sha256(kept) != part.sha256:
                content = content_of(part.sha256)
                if hashlib.sha256(content).hexdigest() != part.sha256:
                    raise RunError(f"{part.name[:200]} arrived as something else than was sent; it was not kept.")
                self._make_room(len(content))
                files.write(kept, content)
            self._checked.add(part.sha256)
        status = kept.stat()
        os.utime(kept, ns=(time.time_ns(), status.st_mtime_ns))  # used last by the time of access alone
        system.link_or_copy(kept, target)

    def _make_room(self, num_bytes: int) -> None:
        """Throw away what was unused for longest, until so many bytes more are within the limit."""
        kept = []
        for path in self.folder.iterdir():
            if _DIGEST.fullmatch(path.name):
                try:
                    status = path.stat()
                except FileNotFoundError:  # another worker's doing
                    continue
                kept.append((status.st_atime_ns, status.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total + num_bytes <= self.limit_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def let_go(self, keys: set[str]) -> None:
        """Drop this worker's own links to all but these keys."""
        if self.own.is_dir():
            for path in self.own.iterdir():
                if path.name not in keys:
                    shutil.rmtree(path, ignore_errors=True)


def harmless_name(name: str) -> str:
    """A file's name that no system takes for anything else than a file in the folder."""
    plain = re.sub(r"[^\w.-]", "_", name)[-_LONGEST_NAME:].lstrip(".") or "file"
    return system.usable_name(plain)
