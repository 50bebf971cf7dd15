"""Adapters that were read, kept by content up to a limit of memory, and what they are to a stack.

The one that was unused for longest goes first, and is read from disk again when it is needed; a pinned one stays. To
read takes long and changes nothing here, so another thread can do it ahead and hand over what it read. A stack asks by
the content that it was resolved to: what to fold, what runs live, and the words they bring.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import cache, last_used, lora_file
from trainer.deltas import Update
from trainer.render.adapter_content import Adapter
from trainer.render.fold_groups import Share
from trainer.render.folding import Part
from trainer.render.live import Updates
from trainer.render.new_words import Words
from trainer.render.packing import pack

if TYPE_CHECKING:
    from trainer.render.effect import Effect, Weights
    from trainer.render.opened_base import OpenedBase

KEPT_BYTES = 4 << 30


@dataclass(frozen=True)
class Read:
    """An adapter that was read, and its file's stamp then."""

    path: Path
    stamp: tuple[int, ...]
    adapter: Adapter


class Shelf:
    """Reads LoRA files for one base; `check` may refuse a file's new words. `read` and `has` are for any thread."""

    def __init__(
        self, base: OpenedBase, check: Callable[[Words, str], None], kept_bytes: int = KEPT_BYTES
    ) -> None:  # fmt: skip
        self.base, self.check, self.kept_bytes = base, check, kept_bytes
        self._denoiser = base.family.denoiser
        self._stamps: dict[str, tuple[tuple[int, ...], str]] = {}  # by file: mtime and size, and the key it had then
        self._kept = last_used.kept(kept_bytes, lambda adapter: adapter.num_bytes)  # by key
        self._pinned: dict[str, Adapter] = {}
        self._to_pin: set[str] = set()  # files
        self._lock = threading.Lock()  # of the four above; nothing is read under it

    def get(self, path: Path) -> Adapter:
        """The adapter in a file, read if it isn't here or has changed. Raises: AdapterError."""
        adapter = self._unchanged(path, lora_file.stamp(path))
        return adapter if adapter is not None else self.keep(self.read(path))

    def has(self, path: Path) -> bool:
        """Whether the file's adapter is here, as the file is now. Raises: AdapterError if there is no file."""
        return self._unchanged(path, lora_file.stamp(path)) is not None

    def read(self, path: Path) -> Read:
        """The adapter in a file, which isn't kept by that; from memory if it is here. Raises: AdapterError."""
        stamp = lora_file.stamp(path)
        if (here := self._unchanged(path, stamp)) is not None:
            return Read(path, stamp, here)
        content = lora_file.content(path)
        trigger, sha256 = content.header.metadata.get(lora_file.TRIGGER_KEY, ""), content.sha256
        # Some of a header changes what the tensors mean.
        meaning = sorted(item for item in content.header.metadata.items() if item[0] in lora_file.MEANING)
        key = cache.key(sha256, trigger, *sorted(content.header.shapes.items()), *meaning)
        return Read(path, stamp, self._known(key) or self._read(content, key, sha256, trigger))

    def keep(self, read: Read) -> Adapter:
        """The adapter that was read, which is here from now on. Raises: AdapterError for words that can't be shown."""
        key = read.adapter.key
        if self._known(key) is None:
            self.check(read.adapter.words, read.path.name)
        with self._lock:
            if str(read.path) in self._to_pin:
                self._pinned[key] = read.adapter
                self._kept.pop(key, None)
            elif key not in self._pinned:
                self._kept[key] = read.adapter
            self._stamps[str(read.path)] = (read.stamp, key)
        return read.adapter

    def pin(self, path: Path) -> Adapter:
        """The adapter in a file, which stays here whatever else is read. Raises: AdapterError."""
        self.pin_when_read(path)
        return self.keep(self.read(path))

    def pin_when_read(self, path: Path) -> None:
        """Have the adapter in a file stay here once it is."""
        with self._lock:
            self._to_pin.add(str(path))

    def is_pinned(self, key: str) -> bool:
        """Whether an adapter stays here."""
        with self._lock:
            return key in self._pinned

    def _unchanged(self, path: Path, stamp: tuple[int, ...]) -> Adapter | None:
        """The adapter of a file that is as it was when it was read, if it is here."""
        with self._lock:
            last_stamp, key = self._stamps.get(str(path), (None, ""))
        return self._known(key) if last_stamp == stamp else None

    def _known(self, key: str) -> Adapter | None:
        with self._lock:
            adapter: Adapter | None = self._pinned.get(key) or self._kept.get(key)
            return adapter

    def _read(self, content: lora_file.Content, key: str, sha256: str, trigger: str) -> Adapter:
        words = {
            word: {name: vectors.clone() for name, vectors in parts.items()}
            for word, parts in lora_file.words(content).items()
        }
        updates, components = pack(lora_file.matched(content, self.base.file_keys, self.base.shapes))
        # Packs have memory of their own; what isn't low-rank lies in the file's.
        num_bytes = sum(pack.num_bytes for packed in components.values() for pack in packed.packs)
        if any(packed.others for packed in components.values()):
            num_bytes += len(content.data)
        return Adapter(key, sha256, trigger, updates, components, words, num_bytes)

    @property
    def num_bytes(self) -> int:
        """Of what is kept now, as it is counted."""
        with self._lock:
            return int(self._kept.currsize) + sum(adapter.num_bytes for adapter in self._pinned.values())

    # What a stack's adapters are.

    def _of(self, effect: Effect) -> Adapter:
        """The adapter that an effect was resolved to; its file is only looked at if it isn't here any more."""
        return self._known(effect.key) or self.get(Path(effect.choice.file))

    def updates(
        self, effects: Iterable[Effect], of: Callable[[Adapter], Mapping[str, Update]] = attrgetter("updates")
    ) -> Updates:
        """By path, each adapter's number among these, its factor there and its update, where `of` has an adapter's."""
        by_path: Updates = {}
        for number, effect in enumerate(effects):
            for path, update in of(self._of(effect)).items():
                if factor := effect.block_factors.get(path, 1.0):
                    by_path.setdefault(path, []).append((number, factor, update))
        return by_path

    def shares(self, weights: Mapping[Effect, Weights]) -> list[Share]:
        """What constant adapters do to each component of the pipeline, for `folding`."""
        shares = []
        for effect, (weight, text_weight) in weights.items():
            adapter = self._of(effect)
            for component, packed in adapter.components.items():
                if component != self._denoiser and text_weight:
                    shares.append(Share((adapter.key, component, ()), text_weight, packed))
                elif component == self._denoiser and weight:
                    name = adapter.key, component, effect.choice.blocks
                    shares.append(Share(name, weight, packed, effect.block_factors or None))
        return shares

    def parts(self, weights: Mapping[Effect, Weights]) -> dict[str, list[Part]]:
        """What constant adapters add to each weight, by path, for who bakes a stack into a file."""
        by_path: dict[str, list[Part]] = {}
        for effect, (weight, text_weight) in weights.items():
            key = self._of(effect).key
            for path, [(_, block_factor, update)] in self.updates([effect]).items():
                if factor := block_factor * (weight if self.base.is_in_denoiser(path) else text_weight):
                    by_path.setdefault(path, []).append((key, factor, update))
        return by_path

    def words(self, effects: Iterable[Effect]) -> list[Words]:
        """The new words that each file brings, in an order that doesn't depend on the stack's."""
        return [self._of(effect).words for effect in sorted(effects, key=lambda effect: effect.choice.sha256)]
