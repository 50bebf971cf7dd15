"""What travels between the process that keeps a batch and its workers: recipes as JSON, files by their content.

No path means anything on the other side. A LoRA or a mask is named by a key in a stack's own fields, and its content
travels under its sha256. A worker gives back pixels and the resolved stack; the picture's file is made by the process
that keeps the batch, which puts its own paths back first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer import lora_file
from trainer.config import StackConfig
from trainer.errors import AdapterError, ConfigError, RunError
from trainer.lora_file import locating
from trainer.render import picture_metadata
from trainer.render.batch_chunks import Result

_MASK = "mask "


@dataclass(frozen=True)
class Part:
    """One file by its content; `name` is how it is called in messages to people."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Request:
    """A chunk to be drawn. A file stands in the stacks by its key in `parts`."""

    stacks: tuple[str, ...]  # JSON
    parts: dict[str, tuple[Part, ...]]
    base_sha256: str  # `batch_recipe.base_hash` of the base that all of them have


@dataclass(frozen=True)
class Drawn:
    """A picture as it comes back."""

    mode: str  # Pillow's
    size: tuple[int, int]  # width and height in px
    pixels: bytes
    stack: str  # JSON, resolved
    base: str
    base_sha256: str
    sampler: str


@dataclass(frozen=True)
class Answer:
    """What became of a request: a picture or the problem with it for each stack, or why this worker can't draw it."""

    results: tuple[Drawn | str, ...] = ()
    lacks: str = ""  # "base" or "files"
    why: str = ""


@dataclass(frozen=True)
class Hello:
    """What a worker says of itself."""

    host: str
    versions: dict[str, str]


# A chunk on its way.


@dataclass(frozen=True)
class Outgoing:
    """A stack as it travels, and where its files are here, by the sha256 of their content."""

    stack: str
    parts: dict[str, tuple[Part, ...]]
    places: dict[str, Path]


def outgoing(stack: StackConfig, digest_of: Callable[[Path], str]) -> Outgoing:
    """A planned stack as it travels. Raises: AdapterError, ConfigError if a file of it can't be read."""
    parts: dict[str, tuple[Part, ...]] = {}
    places: dict[str, Path] = {}

    def sent(paths: list[Path]) -> str:
        listed = tuple(Part(path.name, digest_of(path)) for path in paths)
        key = hashlib.sha256("\n".join(f"{part.sha256} {part.name}" for part in listed).encode()).hexdigest()[:32]
        parts[key] = listed
        places.update({part.sha256: path for part, path in zip(listed, paths, strict=True)})
        return key

    # Each adapter's file, and its mask if there is one, by the key under which it travels.
    adapters = []
    for adapter in stack.adapters:
        path = Path(adapter.file)
        try:
            changes = {"file": sent(_files_of(path)), "name": adapter.name or lora_file.name_of(path)}
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"LoRA file {adapter.file[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}."
            ) from None
        if mask := mask_file(adapter.region):
            try:
                changes["region"] = f"{_MASK}{sent([Path(mask)])}"
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"the mask {mask[:200]!r} can't be read: {getattr(error, 'strerror', None) or error}."
                ) from None
        adapters.append(adapter.model_copy(update=changes))
    return Outgoing(stack.model_copy(update={"adapters": tuple(adapters)}).model_dump_json(), parts, places)


def _files_of(path: Path) -> list[Path]:
    """The file of a LoRA, and PEFT's config beside it, which says how strong it is."""
    file = lora_file.located(path)
    config = file.with_name(locating.PEFT_CONFIG)
    return [file, config] if file.name == locating.PEFT_FILE and config.is_file() else [file]


def mask_file(region: str) -> str:
    """The file that a region names; empty for a box, no region, or a mask that is in the text itself."""
    region = region.strip()
    return region[len(_MASK) :].strip() if region.startswith(_MASK) and not region.startswith(f"{_MASK}data:") else ""


def arrived(stack: str, places: dict[str, Path]) -> StackConfig:
    """A stack on a worker, its keys replaced by where the files lie here. Raises: RunError for a key without a file."""
    config = StackConfig.model_validate_json(stack)
    adapters = []
    for adapter in config.adapters:
        changes = {"file": _place(adapter.file, places)}
        if mask := mask_file(adapter.region):
            changes["region"] = f"{_MASK}{_place(mask, places)}"
        adapters.append(adapter.model_copy(update=changes))
    return config.model_copy(update={"adapters": tuple(adapters)})


def _place(key: str, places: dict[str, Path]) -> str:
    if key not in places:
        raise RunError(f"a stack names the file {key[:80]!r}, which was not sent with it; nothing else is opened here.")
    return str(places[key])


# A picture on its way back.


def drawn(result: Result) -> Drawn | str:
    """A picture or problem as it travels."""
    if not isinstance(result, picture_metadata.Picture):
        return str(result)
    image = result.image
    return Drawn(
        image.mode,
        image.size,
        image.tobytes(),
        result.stack.model_dump_json(),
        result.base,
        result.base_sha256,
        result.sampler,
    )


def returned(result: Drawn | str, asked: StackConfig) -> Result:
    """The picture of a stack that was asked for, with this machine's paths; or the problem with it."""
    if isinstance(result, str):
        return RunError(result)
    resolved = StackConfig.model_validate_json(result.stack)
    if len(resolved.adapters) != len(asked.adapters):
        return RunError(
            f"a worker drew {len(resolved.adapters)} LoRAs where {len(asked.adapters)} were asked for; it was not kept."
        )
    adapters = tuple(
        there.model_copy(update={"file": here.file})
        for there, here in zip(resolved.adapters, asked.adapters, strict=True)
    )
    image = Image.frombytes(result.mode, result.size, result.pixels)
    stack = resolved.model_copy(update={"adapters": adapters})
    return picture_metadata.Picture(image, stack, result.base, result.base_sha256, result.sampler)
