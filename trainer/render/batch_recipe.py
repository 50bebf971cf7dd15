"""What makes a batch's picture what it is: the digest of its recipe, by content throughout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from trainer import bases, cache, files, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError

Library = Callable[[], dict[str, lora_file.LoraInfo]]


def identified(stack: StackConfig, base_hash: str, library: Library) -> tuple[str, StackConfig]:
    """The recipe's digest, and the stack with the hashes of its LoRAs, which the engine then holds them to.

    Raises: UserError if a file can't be read.
    """
    hashed = [_hashed(adapter, library) for adapter in stack.adapters]
    values = stack.model_dump(mode="json") | {"base": base_hash}
    # The keys are a part of the digest: another name here would have every batch drawn anew.
    values["adapters"] = [
        adapter.model_dump(mode="json", exclude={"file", "name"}) | {"region": _region(adapter), "said": strength}
        for adapter, strength in hashed
    ]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    adapters = tuple(adapter for adapter, _ in hashed)
    return hashlib.sha256(text.encode()).hexdigest()[:32], stack.model_copy(update={"adapters": adapters})


def _hashed(adapter: AdapterChoice, library: Library) -> tuple[AdapterChoice, str]:
    """The LoRA with its tensors' hash, and that of what its header or config says of their strength."""
    if not adapter.file and adapter.sha256 and (info := library().get(adapter.sha256)):
        adapter = adapter.model_copy(update={"file": str(info.path)})
    if not adapter.file:
        raise AdapterError(f"LoRA {adapter.name or '(no name)'} names no file.")
    try:
        sha256, strength = _read(adapter.file, lora_file.stamp(Path(adapter.file)))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AdapterError(
            f"LoRA file {adapter.file[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    if adapter.sha256 not in ("", sha256):
        raise AdapterError(
            f"{adapter.file} has hash {sha256[:12]}; the row asks for {adapter.sha256[:12]}: it is another file by "
            f"that name."
        )
    return adapter.model_copy(update={"sha256": sha256}), strength


@lru_cache(4096)
def _read(file: str, stamp: tuple[int, ...]) -> tuple[str, str]:
    """The hashes of a file's tensors and of what it says of their strength; `stamp` makes a changed file another."""
    header = lora_file.read_header(Path(file))
    strength = sorted((name, text) for name, text in header.metadata.items() if name in lora_file.MEANING)
    return files.sha256(lora_file.located(Path(file)), header.data_start), cache.key(*strength)


def base_hash(folder: Path, quantise: str = "none") -> str:
    """The hash of all that a picture goes through.

    That is the denoiser and its bits, the encoders, the autoencoder, the tokenizers' and the sampler's settings.
    """
    parts = [(path.name, bases.digest(folder, path.name)) for path in sorted(folder.iterdir()) if path.is_dir()]
    if quantise != "none":
        parts.append(("quantise", quantise))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _region(adapter: AdapterChoice) -> str:
    """An adapter's region, with a mask's file by its content."""
    kind, _, mask = adapter.region.strip().partition(" ")
    if kind != "mask" or mask.startswith("data:"):
        return adapter.region.strip()
    try:
        return f"mask sha256:{files.sha256(Path(mask.strip()))}"
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the mask {mask.strip()[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}."
        ) from None
