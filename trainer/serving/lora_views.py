"""The LoRAs that each key may name: those of the workspace, which all share, and the key's own uploads.

A name is compared with what is here and never opened as a path. What was read of a file is kept by its path, time and
size, since each file is read whole for its hash; new files are looked for when a name isn't found.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import file_names, lora_file
from trainer.errors import AdapterError
from trainer.lora_file import LoraInfo
from trainer.render import lora_lookup

_Stamp = tuple[int, int]  # time of change in nanoseconds, and size in bytes


@dataclass(frozen=True)
class View:
    """What one key sees: a name means its own LoRA before one that all share."""

    own: dict[str, LoraInfo]
    shared: dict[str, LoraInfo]

    @property
    def all(self) -> dict[str, LoraInfo]:
        """By hash."""
        return self.shared | self.own

    def named(self, name: str, where: str) -> LoraInfo:
        """The LoRA of that name. Raises: AdapterError naming those there are."""
        # An upload may have the very content of a shared LoRA, and another name.
        known = (infos for infos in (self.own, self.shared) if lora_lookup.matches(name, infos.values()))
        return lora_lookup.one(name, next(known, self.all).values(), where)

    def hashed(self, sha256: str, where: str) -> LoraInfo:
        """The LoRA of that hash. Raises: AdapterError."""
        if (info := self.all.get(sha256)) is None:
            raise AdapterError(
                f"{where} names the hash {sha256[:12]}, which isn't here; allowed: one of GET /v1/loras."
            )
        return info

    def for_tags(self, names: Sequence[str]) -> dict[str, LoraInfo]:
        """What tags in a prompt are looked up in: those of these names that are the key's own hide shared ones."""
        infos = self.all
        for name in names:
            is_own = bool(lora_lookup.matches(name, self.own.values()))
            for sha256, info in self.shared.items():
                if lora_lookup.matches(name, [info]):
                    if not is_own:
                        infos[sha256] = info  # also where an upload has its content, and another name
                    elif sha256 not in self.own:
                        infos.pop(sha256, None)
        return infos


class LoraViews:
    """Finds LoRAs below some folders. For any thread."""

    def __init__(self, folders: Sequence[Path], uploads: Path) -> None:
        # By their real places, so that no other way to an upload makes it everybody's.
        self.folders, self.uploads = tuple(folder.resolve() for folder in folders), uploads.resolve()
        self._read: dict[Path, tuple[_Stamp, LoraInfo | None]] = {}
        self._shared: dict[str, LoraInfo] = {}
        self._own: dict[str, dict[str, LoraInfo]] = {}
        self._lock = threading.Lock()
        self._looked = float("-inf")  # when the last look began

    def view(self, owner: str) -> View:
        """What a key sees, by its `owner`, as last looked for."""
        return View(self._own.get(owner, {}), self._shared)

    def folder(self, owner: str) -> Path:
        """Where a key's uploads lie."""
        return self.uploads / owner

    def look(self, owners: Sequence[str] = ()) -> None:
        """Look for new and changed files; who asks while another looks waits, and shares what the next look finds."""
        asked = time.monotonic()
        with self._lock:
            if self._looked < asked:
                self._looked = time.monotonic()
                self._shared = self._below(self.folders)
            for owner in owners:
                self._own = {**self._own, owner: self._below([self.folder(owner)], are_uploads=True)}

    def _below(self, folders: Sequence[Path], are_uploads: bool = False) -> dict[str, LoraInfo]:
        """By hash, the newest file of each content, a run's own before its best; either uploads or none."""
        infos: list[tuple[_Stamp, LoraInfo]] = []
        for folder in folders:
            for path in folder.rglob("*.safetensors"):
                parts = path.relative_to(folder).parts
                # Caches and checkpoints are no LoRAs to choose from.
                if any(part.startswith(".") or part == file_names.CHECKPOINTS for part in parts):
                    continue
                if path.resolve().is_relative_to(self.uploads) == are_uploads and (found := self._inspected(path)):
                    infos.append(found)
        found_by_hash: dict[str, LoraInfo] = {}
        for _, info in sorted(infos, key=lambda pair: pair[0]):
            before = found_by_hash.get(info.sha256)
            if before is None or not file_names.is_earlier(info.path):
                found_by_hash[info.sha256] = info
        return found_by_hash

    def _inspected(self, path: Path) -> tuple[_Stamp, LoraInfo] | None:
        """A file's stamp and what is known of it; None if it is no LoRA or gone."""
        try:
            status = os.stat(path)
            stamp = (status.st_mtime_ns, status.st_size)
            if self._read.get(path, (None, None))[0] != stamp:
                try:
                    info = dataclasses.replace(lora_file.inspect(path), blocks={}, places=())
                except AdapterError:
                    info = None
                self._read[path] = (stamp, info)
            known = self._read[path][1]
        except OSError:
            return None
        return None if known is None else (stamp, known)
