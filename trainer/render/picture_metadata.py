"""Pictures as files that carry how they were made: A1111's text, a ComfyUI graph and our own exact recipe.

The recipe names LoRAs by the hash of their tensors, never by path: nothing of this machine travels, and a file that
was renamed or moved is found again. Where what stands:

- PNG: text chunks `parameters`, `prompt` and `workflow` as A1111 and ComfyUI write them, and `velatura_recipe`.
- WebP: EXIF UserComment as A1111 writes it, Model and Make as ComfyUI reads them, ImageDescription for the recipe.
  Lossless.
- JPEG: EXIF UserComment; the recipe in as many APP15 segments of 64 KiB as it takes. ComfyUI reads no JPEG.
"""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO, Any

from trainer import damaged_pictures, families, files, unique_names
from trainer.config import StackConfig, parse
from trainer.errors import AdapterError, ConfigError, DataError
from trainer.lazy import Image
from trainer.lora_file import LoraInfo
from trainer.render import comfy, picture_names
from trainer.render.a1111_text import infotext, known_sampler

RECIPE_KEY = "velatura_recipe"
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
# Endings that would otherwise be taken for a folder's name.
_OTHERS = {".avif", ".bmp", ".gif", ".heic", ".jxl", ".tif", ".tiff"}
_MAX_RECIPE_CHARS = 8 << 20
_MAX_FILE_BYTES = 512 << 20
_MAX_EXIF_BYTES = 16 << 20
_SEGMENT_BYTES = 65_000  # of a JPEG's segment, whose length has two bytes and counts itself
_RECIPE_MARKER, _RECIPE_APP = b"\xff\xef", "APP15"
_GRAPHS = ("prompt", "workflow")
# Tags of EXIF.
_EXIF, _USER_COMMENT, _DESCRIPTION, _MAKE, _MODEL = 0x8769, 0x9286, 0x010E, 0x010F, 0x0110


@dataclass(frozen=True)
class Picture:
    """A rendered picture, and what it was rendered from."""

    image: Image.Image
    stack: StackConfig  # resolved
    # The base's name and hash, and its own sampler: a diffusers scheduler's name without "Scheduler".
    base: str = ""
    base_sha256: str = ""
    sampler: str = ""

    @cached_property
    def infotext(self) -> str:
        """A1111's `parameters` text."""
        return infotext(self.stack, self.base, self.base_sha256, self.sampler)


@dataclass(frozen=True)
class Carried:
    """What a picture file carries."""

    recipe: dict[str, Any] | None  # ours as it stands there
    infotext: str  # A1111's; empty if it carries none
    texts: dict[str, str] = field(default_factory=dict, compare=False)  # every text by its key, those of EXIF by ours


def travelling(stack: StackConfig) -> dict[str, Any]:
    """The stack as it stands in a picture: no path of this machine travels with it."""
    values = stack.model_dump(mode="json")
    for adapter in values["adapters"]:
        del adapter["file"]
        kind, _, mask = adapter["region"].strip().partition(" ")
        if kind == "mask" and not mask.startswith("data:"):
            adapter["region"] = f"mask {Path(mask.strip()).name}"
    base = Path(values["base"])
    values["base"] = base.name if base.is_absolute() or base.is_dir() else values["base"]
    return values


# Writing.


def format_of(path: Path) -> str | None:
    """PNG, WEBP or JPEG by a path's ending; None for a folder.

    Raises: ConfigError for the ending of another kind of picture.
    """
    suffix = path.suffix.lower()
    if suffix in _OTHERS:
        raise ConfigError(f"--out is {path.name!r}; allowed: {', '.join(FORMATS)}, or a folder.")
    return FORMATS.get(suffix)


def save(picture: Picture, path: Path) -> Path:
    """The file written: `path` itself if it ends as one of `FORMATS`, else a new PNG in the folder `path`.

    It is written whole or not at all. Raises: ConfigError if the text is longer than a JPEG can hold (about 32,000
    characters), or for another kind of picture.
    """
    kind = format_of(path)
    if kind is None:
        return save_free(picture, path, picture_names.of_picture(picture.stack))
    options = {"PNG": _png, "WEBP": _webp, "JPEG": _jpeg}[kind](picture)
    with files.replacing(path) as unfinished:
        picture.image.save(unfinished, kind, **options)
    return path


def save_free(picture: Picture, folder: Path, stem: str) -> Path:
    """The picture as a new PNG in the folder, called `stem` or, where that is taken, `stem-2` and so on."""
    with unique_names.temporary(folder, ".tmp") as unfinished:
        picture.image.save(unfinished, "PNG", **_png(picture))
        return unique_names.put(unfinished, unique_names.numbered(folder, stem, ".png"))


def png(picture: Picture) -> bytes:
    """The bytes of the PNG that `save` writes."""
    written = io.BytesIO()
    picture.image.save(written, "PNG", **_png(picture))
    return written.getvalue()


def save_sheet(sheet: Image.Image, path: Path, stem: str) -> Path:
    """The file written: `path` itself if it ends as one of `FORMATS`, else a new PNG called `stem` in that folder.

    It is written whole or not at all. Raises: ConfigError for another kind of picture.
    """
    kind = format_of(path)
    if kind is None:
        return save_free_sheet(sheet, path, stem)
    with files.replacing(path) as unfinished:
        sheet.save(unfinished, kind)
    return path


def save_free_sheet(sheet: Image.Image, folder: Path, stem: str) -> Path:
    """The sheet of pictures as a new PNG in the folder, called `stem` or, where that is taken, `stem-2` and so on."""
    with unique_names.temporary(folder, ".tmp") as unfinished:
        sheet.save(unfinished, "PNG")
        return unique_names.put(unfinished, unique_names.numbered(folder, stem, ".png"))


def _png(picture: Picture) -> dict[str, Any]:
    """Pillow's options for a PNG: the texts as chunks, those of letters beyond ASCII as UTF-8."""
    from PIL.PngImagePlugin import PngInfo

    info, text = PngInfo(), picture.infotext
    info.add_text("parameters", text) if text.isascii() else info.add_itxt("parameters", text)
    for key, value in (_graphs(picture) | {RECIPE_KEY: _recipe(picture)}).items():
        info.add_text(key, value)
    return {"pnginfo": info}


def _webp(picture: Picture) -> dict[str, Any]:
    """Pillow's options for a WebP: all texts in EXIF."""
    tag_of = {"workflow": _MAKE, "prompt": _MODEL}
    tags = {_DESCRIPTION: f"{RECIPE_KEY}:{_recipe(picture)}"}
    tags |= {tag_of[key]: f"{key}:{graph}" for key, graph in _graphs(picture).items()}
    return {"lossless": True, "exif": _exif(picture.infotext, tags)}


def _jpeg(picture: Picture) -> dict[str, Any]:
    """Pillow's options for a JPEG: A1111's text in EXIF, the recipe in segments. Raises: ConfigError if it is long."""
    exif, recipe = _exif(picture.infotext, {}), _recipe(picture).encode("ascii")
    if len(exif) > _SEGMENT_BYTES:
        raise ConfigError(
            f"the picture's text takes {len(exif)} bytes; a JPEG holds {_SEGMENT_BYTES}: save it as .png or .webp."
        )
    segments = b""
    for start in range(0, len(recipe), _SEGMENT_BYTES):
        body = RECIPE_KEY.encode() + b"\0" + recipe[start : start + _SEGMENT_BYTES]
        segments += _RECIPE_MARKER + (len(body) + 2).to_bytes(2, "big") + body
    return {"quality": 95, "subsampling": 0, "exif": exif, "extra": segments}


def _recipe(picture: Picture) -> str:
    """In ASCII, so that every chunk, tag and segment can hold it."""
    return json.dumps(travelling(picture.stack), sort_keys=True)


def _graphs(picture: Picture) -> dict[str, str]:
    """ComfyUI's two JSON texts.

    There are none for a family that ComfyUI's checkpoint loader doesn't open.
    """
    if not families.registry()[picture.stack.family].comfyui_graph:
        return {}
    graphs = comfy.graphs(picture.stack, picture.base, known_sampler(picture.sampler))
    return dict(zip(_GRAPHS, (json.dumps(graph, separators=(",", ":")) for graph in graphs), strict=True))


def _exif(text: str, tags: dict[int, str]) -> bytes:
    """EXIF with these tags in ASCII and the text in UserComment.

    The comment is `UNICODE` and big-endian UTF-16, as A1111's piexif has it. Pillow can't do it: it writes UserComment
    as BYTE, which piexif, and so A1111, doesn't read.
    """
    ascii_, undefined, long = 2, 7, 4
    comment = b"UNICODE\0" + text.encode("utf-16-be")
    main = [(tag, ascii_, value.encode("ascii") + b"\0") for tag, value in tags.items()]
    # The inner directory lies behind the main one, whose length doesn't depend on where that is.
    inner = 8 + len(_directory([*main, (_EXIF, long, b"\0" * 4)], 8))
    whole = _directory([*main, (_EXIF, long, inner.to_bytes(4, "big"))], 8) + _directory(
        [(_USER_COMMENT, undefined, comment)], inner
    )
    return b"Exif\0\0MM\0\x2a\0\0\0\x08" + whole


def _directory(entries: list[tuple[int, int, bytes]], start: int) -> bytes:
    """A TIFF directory that lies at `start`, big-endian: tag, type and value of each entry."""
    rows, values = b"", b""
    values_start = start + 2 + 12 * len(entries) + 4  # count, a row of 12 bytes each, no next directory
    for tag, kind, value in sorted(entries):
        count = 1 if kind == 4 else len(value)
        # Up to four bytes stand in the row itself.
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack(">I", values_start + len(values))
        rows += struct.pack(">HHI", tag, kind, count) + place
        values += b"" if len(value) <= 4 else value + b"\0" * (len(value) % 2)
    return struct.pack(">H", len(entries)) + rows + b"\0" * 4 + values


# Reading.


def read(source: Path | IO[bytes]) -> Carried:
    """What a PNG, WebP or JPEG of any tool carries; nothing is decoded.

    Raises: DataError if it can't be read, or our recipe in it is damaged.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            # Uploads have no path whose size could be asked for.
            size = file.seek(0, os.SEEK_END)
            if size > _MAX_FILE_BYTES:
                raise DataError(f"the picture has {size >> 20} MiB; allowed: up to {_MAX_FILE_BYTES >> 20}.")
            file.seek(0)
            with Image.open(file, formats=_formats()) as image:
                info, segments = dict(image.info), list(getattr(image, "applist", []))
    except damaged_pictures.errors() as error:
        raise DataError(f"the picture can't be read as PNG, WebP or JPEG: {error}") from None
    exif_texts = _exif_texts(info.get("exif"))
    texts = exif_texts | {key: text for key, text in info.items() if isinstance(key, str) and isinstance(text, str)}
    recipe = _raw_recipe(info, segments, exif_texts.get("description", ""))
    return Carried(_parsed(recipe), texts.get("parameters", texts.get("comment", "")), texts)


@cache
def _formats() -> tuple[str, ...]:
    """The formats that Pillow may open, asked for once.

    It is also told not to warn of damage, which must happen once: filters of warnings are not safe in threads.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return tuple(sorted(set(FORMATS.values())))


def _exif_texts(raw: Any) -> dict[str, str]:
    """Texts of EXIF bytes: `comment`, `description`, and what ComfyUI writes as `key:text` by its key."""
    if not isinstance(raw, bytes) or len(raw) > _MAX_EXIF_BYTES:
        return {}
    exif = Image.Exif()
    try:
        exif.load(raw)
        # Fooocus puts UserComment beside the other tags, not into the Exif directory.
        comment = exif.get_ifd(_EXIF).get(_USER_COMMENT) or exif.get(_USER_COMMENT)
        # ComfyUI begins at Model and goes down, a tag for each text.
        values = {tag: exif.get(tag) for tag in (_DESCRIPTION, *range(_MODEL, _MODEL - 16, -1))}
    except damaged_pictures.errors():
        return {}
    description = values[_DESCRIPTION]
    texts: dict[str, str] = {"description": description} if isinstance(description, str) else {}
    if isinstance(comment, bytes | str):
        texts["comment"] = _comment(comment) if isinstance(comment, bytes) else comment
    for text in values.values():
        key, colon, value = text.partition(":") if isinstance(text, str) else ("", "", "")
        if colon and key.lower() in _GRAPHS:
            texts.setdefault(key.lower(), value.strip("\0"))
    return texts


def _comment(raw: bytes) -> str:
    """A UserComment as text; its first eight bytes name the encoding."""
    body = raw[8:]
    if raw.startswith(b"UNICODE\0"):
        # A1111 writes big-endian UTF-16, others little-endian: where the zeros of plain letters stand says which.
        big = body[0::2].count(0) >= body[1::2].count(0)
        return body.decode("utf-16-be" if big else "utf-16-le", "replace").strip("\0")
    return (body if raw.startswith((b"ASCII\0\0\0", b"\0" * 8)) else raw).decode("utf-8", "replace").strip("\0")


def _raw_recipe(info: dict[Any, Any], segments: list[tuple[str, bytes]], description: str) -> str:
    """Our recipe's text from wherever the format has it, or nothing."""
    text = info.get(RECIPE_KEY)
    if isinstance(text, str):
        return text
    if description.startswith(f"{RECIPE_KEY}:"):
        return description[len(RECIPE_KEY) + 1 :]
    head = RECIPE_KEY.encode() + b"\0"
    return b"".join(
        body[len(head) :] for name, body in segments if name == _RECIPE_APP and body.startswith(head)
    ).decode("ascii", "replace")


def _parsed(text: str) -> dict[str, Any] | None:
    """The recipe; None for no text. Raises: DataError if it is damaged."""
    if not text:
        return None
    try:
        values = json.loads(text) if len(text) <= _MAX_RECIPE_CHARS else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DataError("the picture's Velatura recipe is damaged.")
    return values


def read_stack(source: Path | IO[bytes], library: dict[str, LoraInfo]) -> StackConfig:
    """The stack a picture was made from, its LoRAs found by hash in `library`.

    Raises: DataError if it isn't a picture of ours, AdapterError naming every LoRA that isn't here.
    """
    values = read(source).recipe
    if values is None:
        raise DataError(
            "the picture carries no Velatura recipe; it is from another tool, or was re-encoded on its way."
        )
    stack = parse(StackConfig, values, "the picture's recipe")
    # All that are missing at once, so that they can be fetched together.
    if missing := [adapter for adapter in stack.adapters if adapter.sha256 not in library]:
        raise AdapterError(
            "the picture needs LoRAs that aren't here: "
            + ", ".join(f"{adapter.name} (hash {adapter.sha256[:12]})" for adapter in missing)
            + "."
        )
    adapters = [adapter.model_copy(update={"file": str(library[adapter.sha256].path)}) for adapter in stack.adapters]
    return stack.model_copy(update={"adapters": tuple(adapters)})
