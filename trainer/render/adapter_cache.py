"""Adapters that were read, kept by content up to a limit of memory.

The one that was unused for longest goes first, and is read from disk again when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import cache, last_used, lora_file
from trainer.deltas import Update
from trainer.render.packing import Packed, pack

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
    components: dict[str, Packed]  # the same as they are folded
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
        self.file_keys, self.shapes, self.check = file_keys, shapes, check
        self._stamps: dict[str, tuple[tuple[int, ...], str]] = {}  # by file: mtime and size, and the key it had then
        self._kept = last_used.kept(kept_bytes, lambda adapter: adapter.num_bytes)  # by key

    def get(self, path: Path) -> Adapter:
        """The adapter in a file, read if it isn't here or has changed. Raises: AdapterError."""
        stamp = lora_file.stamp(path)
        last_stamp, key = self._stamps.get(str(path), (None, ""))
        if last_stamp != stamp or key not in self._kept:
            content = lora_file.content(path)
            trigger, sha256 = content.header.metadata.get("modelspec.trigger_phrase", ""), content.sha256
            # Some of a header changes what the tensors mean.
            meaning = sorted(item for item in content.header.metadata.items() if item[0] in lora_file.MEANING)
            key = cache.key(sha256, trigger, *sorted(content.header.shapes.items()), *meaning)
            if key not in self._kept:
                self._kept[key] = self._read(content, key, sha256, trigger)
            self._stamps[str(path)] = (stamp, key)
        adapter: Adapter = self._kept[key]
        return adapter

    def _read(self, content: lora_file.Content, key: str, sha256: str, trigger: str) -> Adapter:
        words = {
            word: {name: vectors.clone() for name, vectors in parts.items()}
            for word, parts in lora_file.words(content).items()
        }
        self.check(words, content.path.name)
        updates, components = pack(lora_file.matched(content, self.file_keys, self.shapes))
        # Packs have memory of their own; what isn't low-rank lies in the file's.
        num_bytes = sum(pack.num_bytes for packed in components.values() for pack in packed.packs)
        if any(packed.others for packed in components.values()):
            num_bytes += len(content.data)
        return Adapter(key, sha256, trigger, updates, components, words, num_bytes)

    @property
    def num_bytes(self) -> int:
        """Of what is kept now, as it is counted."""
        return int(self._kept.currsize)
