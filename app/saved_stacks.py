"""Stacks that were put by: `stacks/<name>.toml` in the workspace, with a small picture of the same name beside it.

LoRAs stand there by hash and name, as in a picture: no path of this machine is in the file.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import path_gate
from app.context import Context, newest_first
from app.texts import say
from trainer import files, unique_names
from trainer.config import StackConfig, parse
from trainer.config.parsing import from_toml
from trainer.data import open_image
from trainer.data.uploads import safe_stem
from trainer.errors import ConfigError

PICTURE = ".webp"
_PICTURE_PX = 768
_MAX_BYTES = 1 << 20


def folder(context: Context) -> Path:
    return context.workspace / "stacks"


def every(context: Context) -> list[Path]:
    """The files of the saved stacks, the newest first, whatever is in them."""
    return newest_first([path for path in folder(context).glob("*.toml") if not path.name.startswith(".")])


def save(context: Context, stack: StackConfig, name: str, picture: Path | None = None) -> Path:
    """The stack's new file; `picture`, of any tool, becomes a small one beside it.

    Raises: DataError for a picture that doesn't open, ConfigError where nothing can be written.
    """
    text = text_of(stack)
    # Opened before anything is written, as it may be refused.
    image = open_image(picture) if picture else None
    try:
        with unique_names.temporary(folder(context)) as unnamed:
            files.write_synced(unnamed, text.encode())
            path = unique_names.put(unnamed, unique_names.numbered(folder(context), safe_stem(f"{name}.x"), ".toml"))
        if image is not None:
            put_picture(image, path)
    except OSError as error:
        raise ConfigError(say("stack.unwritable", reason=error.strerror or error)) from None
    return path


def text_of(stack: StackConfig) -> str:
    """What a stack's file says: its LoRAs by hash and name, no path of this machine."""
    from trainer.render.picture_metadata import travelling  # loads torch

    return tomli_w.dumps(_without_none(travelling(stack)))


def put_picture(image: Image.Image, path: Path) -> None:
    """Write a small picture beside a stack's file. Raises: OSError."""
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    with files.replacing(path.with_suffix(PICTURE)) as unnamed:
        image.save(unnamed, "WEBP", quality=85)


def settings(path: Path) -> StackConfig:
    """What the file says, whether its LoRAs are here or not. Raises: ConfigError."""
    try:
        # A file that is too large counts as one that is no text.
        raw = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b"\xff"
    except OSError as error:
        raise ConfigError(say("stack.unreadable", name=path.name, reason=error.strerror)) from None
    return parse(StackConfig, from_toml(raw, path.name), path.name)


def read(context: Context, path: Path) -> StackConfig:
    """The stack with its LoRAs found here by hash. Raises: ConfigError, AdapterError."""
    return path_gate.checked(context, settings(path))


def carrier(context: Context, path: Path) -> Path:
    """A picture that carries the saved stack, as dropping one does; in the folder that the browser may fetch from.

    Raises: ConfigError.
    """
    return carrying(context, settings(path), path.name)


def carrying(context: Context, stack: StackConfig, name: str) -> Path:
    """A picture that carries a stack, in the folder that the browser may fetch from."""
    from trainer.render.picture_metadata import RECIPE_KEY

    # The recipe is all that is read of it: the picture itself is black and eight pixels wide.
    carried = PngInfo()
    carried.add_text(RECIPE_KEY, stack.model_dump_json())
    place = context.cache / "files" / f"{safe_stem(name)}.png"
    with files.replacing(place) as unnamed:
        Image.new("RGB", (8, 8)).save(unnamed, "PNG", pnginfo=carried)
    return place


def is_carrier(context: Context, path: Path) -> bool:
    """Whether a file is such a picture, which shows nothing."""
    return path.parent == context.cache / "files"


def picture(path: Path) -> Path | None:
    """The small picture beside a saved stack."""
    beside = path.with_suffix(PICTURE)
    return beside if beside.is_file() else None


def _without_none(value: object) -> dict[str, object]:
    """The same without what is None, which TOML can't say."""
    return {key: _bare(inner) for key, inner in dict(value).items() if inner is not None}  # type: ignore[call-overload]


def _bare(value: object) -> object:
    if isinstance(value, dict):
        return _without_none(value)
    return [_bare(inner) for inner in value] if isinstance(value, list | tuple) else value
