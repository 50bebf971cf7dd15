"""What makes a batch's picture what it is: the digest of its recipe, by content throughout; and how its file is called."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from trainer import bases, cache, files, lora_file, runs, system
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import AdapterError, ConfigError

ENDINGS = (".png", ".webp", ".jpg", ".jpeg")
Library = Callable[[], dict[str, lora_file.LoraInfo]]


def identified(stack: StackConfig, base_hash: str, library: Library) -> tuple[str, StackConfig]:
    """The recipe's digest, and the stack with the hashes of its LoRAs, which the engine then holds them to. Raises: UserError if a file can't be read."""
    found = [_hashed(one, library) for one in stack.adapters]
    adapters = tuple(one for one, _ in found)
    values = stack.model_dump(mode="json") | {"base": base_hash}
    values["adapters"] = [one.model_dump(mode="json", exclude={"file", "name"}) | {"region": _region(one), "said": said} for one, said in found]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32], stack.model_copy(update={"adapters": adapters})


def _hashed(one: AdapterChoice, library: Library) -> tuple[AdapterChoice, str]:
    """The LoRA with its tensors' hash, and that of what its header or config says of their strength."""
    if not one.file and one.sha256 and (here := library().get(one.sha256)):
        one = one.model_copy(update={"file": str(here.path)})
    if not one.file:
        raise AdapterError(f"LoRA {one.name or '(no name)'} names no file.")
    try:
        found, said = _read(one.file, lora_file.stamp(Path(one.file)))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise AdapterError(f"LoRA file {one.file[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    if one.sha256 not in ("", found):
        raise AdapterError(f"{one.file} has hash {found[:12]}; the row asks for {one.sha256[:12]}: it is another file by that name.")
    return one.model_copy(update={"sha256": found}), said


@lru_cache(4096)
def _read(file: str, stamp: tuple[int, ...]) -> tuple[str, str]:
    header = lora_file.read_header(Path(file))
    said = sorted((name, text) for name, text in header.metadata.items() if name in lora_file.MEANING)
    return files.sha256(lora_file.located(Path(file)), header.data_start), cache.key(*said)


def base_hash(folder: Path, quantise: str = "none") -> str:
    """Of all that a picture goes through: the denoiser and its bits, the encoders, the autoencoder, the tokenizers' and the sampler's settings."""
    parts = [(path.name, bases.digest(folder, path.name)) for path in sorted(folder.iterdir()) if path.is_dir()]
    return hashlib.sha256(json.dumps(parts if quantise == "none" else [*parts, ("quantise", quantise)]).encode()).hexdigest()


def _region(one: AdapterChoice) -> str:
    kind, _, mask = one.region.strip().partition(" ")
    if kind != "mask" or mask.startswith("data:"):
        return one.region.strip()
    try:
        return f"mask sha256:{files.sha256(Path(mask.strip()))}"
    except (OSError, ValueError) as error:
        raise ConfigError(f"the mask {mask.strip()[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}.") from None


def file_name(template: str, number: int, stack: StackConfig, digest: str) -> str:
    """The path below the folder that a template of `check_name` means: no value can bring a slash or a leading dot, and Windows takes it too."""
    loras = "-".join(f"{Path(one.name).stem}{one.weight:g}" for one in stack.adapters)
    values = {
        "number": f"{number:05d}", "seed": str(stack.seed), "digest": digest[:8], "prompt": _plain(stack.prompt, "no-prompt"),
        "stack": _plain(loras, "no-lora"), "base": _plain(Path(stack.base).name, "base"),
    }  # fmt: skip
    name = re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
    stem, ending = os.path.splitext(name)
    if ending.lower() not in ENDINGS:
        stem, ending = name, ".png"
    parts = [part.encode()[:200].decode(errors="ignore").rstrip(". ") for part in stem.split("/")]
    return "/".join(f"{part}_" if part.split(".")[0].lower() in system.RESERVED else part for part in parts) + ending


def _plain(text: str, otherwise: str) -> str:
    return runs.slug(text[:60])[:40].strip("-.") or otherwise if re.search(r"\w", text[:60]) else otherwise
