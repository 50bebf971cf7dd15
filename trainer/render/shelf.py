"""Adapters that were read, kept by content under a memory budget: the one longest unused goes first and is read from disk again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import cache, lora_file
from trainer.deltas import Update
from trainer.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

KEPT_BYTES = 4 << 30


@dataclass(frozen=True)
class Adapter:
    """What a file holds."""

    key: str  # by its content: names and numbers
    sha256: str  # of the numbers alone, as sshs_model_hash
    trigger: str
    updates: dict[str, Update]  # by component.module.path
    words: dict[str, dict[str, Tensor]]  # new ones for the text encoders
    num_bytes: int


class Shelf:
    """Reads LoRA files for one base; `check` may refuse a file's new words."""

    def __init__(
        self,
        file_keys: dict[str, str],
        shapes: dict[str, tuple[int, ...]],
        check: Callable[[dict[str, dict[str, Tensor]], str], None],
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.file_keys, self.shapes, self.check, self.kept_bytes = file_keys, shapes, check, kept_bytes
        self._stamps: dict[str, tuple[tuple[int, int], str]] = {}  # by file: mtime and size, and the key it had then
        self._kept: OrderedDict[str, Adapter] = OrderedDict()  # by key, the last used at the end

    def get(self, path: Path) -> Adapter:
        """The adapter in a file, read if it isn't here or has changed. Raises: AdapterError."""
        try:
            status = path.stat()
        except OSError as error:
            raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
        stamp = (status.st_mtime_ns, status.st_size)
        known, key = self._stamps.get(str(path), (None, ""))
        if known != stamp or key not in self._kept:
            info = lora_file.inspect(path)
            key = cache.key(info.sha256, info.trigger, *sorted(lora_file.read_header(path).shapes.items()))
            if key not in self._kept:
                self._kept[key] = self._read(path, info, key)
            self._stamps[str(path)] = (stamp, key)
        self._kept.move_to_end(key)
        found = self._kept[key]
        while len(self._kept) > 1 and sum(adapter.num_bytes for adapter in self._kept.values()) > self.kept_bytes:
            self._kept.popitem(last=False)
        return found

    def _read(self, path: Path, info: lora_file.LoraInfo, key: str) -> Adapter:
        words = lora_file.embeddings(path)
        self.check(words, path.name)
        return Adapter(key, info.sha256, info.trigger, lora_file.read(path, self.file_keys, self.shapes), words, path.stat().st_size)

    @property
    def num_bytes(self) -> int:
        """Of what is kept now."""
        return sum(adapter.num_bytes for adapter in self._kept.values())
