"""A warm base and whatever stack is on it: weights folded in once, restored by copy, bit for bit.

The truth is the base plus the sum of `weight_i * delta_i`. The original of every touched weight is kept; a new stack
is computed from the originals, never from what the last stack left, so no error adds up however often weights change.
A step then costs what the base costs, however many adapters. Sums run in float32 in an order fixed by the adapters'
hashes: the order in the stack never matters, and an adapter at weight 0 is absent. New words that a file brings are known
to the text encoder while the file is in the stack at another weight than 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import bases, families, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.deltas import Update
from trainer.errors import AdapterError, ConfigError
from trainer.render import image
from trainer.render.draw import draw
from trainer.render.words import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Adapter:
    """What a file holds, as long as the file is as it was."""

    stamp: tuple[float, int]  # mtime, size
    sha256: str
    updates: dict[str, Update]
    words: dict[str, Tensor]


class Engine:
    """One base, kept warm. Not for two threads at once."""

    def __init__(self, base: str = "imprimatura", family: str = "sd", device: str = "auto", dtype: str = "auto", download: bool = False) -> None:
        self.base = base
        self.family = families.registry()[family]
        self.folder = bases.resolve(base, self.family, download)
        self.pipe = bases.open_pipeline(self.family, self.folder, *bases.hardware(device, dtype))
        self.file_keys: dict[str, str] = self.family.file_keys(self.pipe)
        self.weights: dict[str, Tensor] = {
            f"{component}.{path}": module.weight.data
            for component in self.family.components
            for path, module in getattr(self.pipe, component).named_modules()
            if f"{component}.{path}" in self.file_keys
        }
        self.shapes = {path: tuple(weight.shape) for path, weight in self.weights.items()}
        self.base_hash = bases.digest(self.folder, next(iter(self.family.components)))
        self._originals: dict[str, Tensor] = {}
        self.vocabulary = Vocabulary(self.pipe)
        self._adapters: dict[str, _Adapter] = {}  # by file
        self._folded: list[tuple[str, float]] | None = []  # None: unknown, a fold was broken off

    def resolve(self, stack: StackConfig) -> StackConfig:
        """The same stack with every adapter's hash and name filled in from its file. Raises: AdapterError."""
        if stack.base != self.base or stack.family != self.family.name:
            raise ConfigError(f"the stack is for base {stack.base!r} ({stack.family}), this engine holds {self.base!r} ({self.family.name}).")
        bases.check_pixels(self.folder, {"width_px": stack.width_px, "height_px": stack.height_px})
        adapters = []
        for adapter in stack.adapters:
            digest = self._adapter(Path(adapter.file)).sha256
            if adapter.sha256 and adapter.sha256 != digest:
                raise AdapterError(f"{adapter.file} has hash {digest[:12]}; the stack asks for {adapter.sha256[:12]}: it is another file by that name.")
            adapters.append(AdapterChoice(file=adapter.file, name=adapter.name or Path(adapter.file).stem, sha256=digest, weight=adapter.weight))
        return stack.model_copy(update={"adapters": tuple(adapters)})

    def render(self, stack: StackConfig) -> image.Picture:
        """The stack's picture. Raises: AdapterError before anything is changed; the stack that was on stays on."""
        resolved = self.resolve(stack)
        self.fold(resolved)
        sampler = type(self.pipe.scheduler).__name__.removesuffix("Scheduler")
        text = image.infotext(resolved, Path(self.base).name, self.base_hash, sampler)
        return image.Picture(draw(self.pipe, resolved), resolved, text)

    @torch.no_grad()
    def fold(self, stack: StackConfig) -> None:
        """Put a resolved stack's adapters on the base; a broken-off fold is made good by the next one."""
        assert all(adapter.sha256 for adapter in stack.adapters), "fold takes what `resolve` gave"
        wanted = sorted((adapter.sha256, adapter.weight, adapter.file) for adapter in stack.adapters if adapter.weight != 0)
        key = [(digest, weight) for digest, weight, _ in wanted]
        if key == self._folded:
            return
        adapters = [(weight, self._adapter(Path(file))) for _, weight, file in wanted]
        words = self.vocabulary.together([adapter.words for _, adapter in adapters])
        touched = {path for _, adapter in adapters for path in adapter.updates}
        self._folded = None
        self.vocabulary.show(words)
        for path in [path for path in self._originals if path not in touched]:
            self.weights[path].copy_(self._originals.pop(path))
        for path in touched:
            weight = self.weights[path]
            if path not in self._originals:
                self._originals[path] = weight.clone()
            original = self._originals[path]
            total = original.float()
            for factor, adapter in adapters:
                if path in adapter.updates:
                    total = total + factor * adapter.updates[path].dense(original, torch.float32)
            weight.copy_(total)
        self._folded = key

    def restore(self) -> None:
        """The base as it was loaded, bit for bit."""
        self.fold(StackConfig(family=self.family.name, base=self.base))

    @contextmanager
    def folded(self, stack: StackConfig) -> Iterator[None]:
        """The stack on the base for the body, the base restored after it, also when the body raises."""
        resolved = self.resolve(stack)
        try:
            self.fold(resolved)
            yield
        finally:
            self.restore()

    def _adapter(self, path: Path) -> _Adapter:
        """What a file holds, read once and again when it changes."""
        try:
            status = path.stat()
        except OSError as error:
            raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
        stamp, found = (status.st_mtime, status.st_size), self._adapters.get(str(path))
        if found is None or found.stamp != stamp:
            words = lora_file.embeddings(path)
            self.vocabulary.check(words, path.name)
            found = _Adapter(stamp, lora_file.inspect(path).sha256, lora_file.read(path, self.file_keys, self.shapes), words)
            self._adapters[str(path)] = found
        return found
