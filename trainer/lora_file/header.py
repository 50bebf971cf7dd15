"""A LoRA file's header: what it says of itself before any tensor is read, and how its tensors' names come apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import AdapterError
from trainer.lora_file import foreign
from trainer.lora_file.locating import CONFIG_KEY, config_beside, located

RECIPE_KEY = "velatura.recipe"
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_SIDES = 64  # of a tensor, as torch has it
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # alphas, mostly
DTYPES = FLOATS | WHOLE
_SUFFIX = re.compile(r"^(?P<module>.+?)\.(?P<suffix>(lora_|lora\.|hada_|lokr_|oft_|dora_scale|diff(?!usion)|alpha|w_norm|b_norm|set_weight).*)$", re.DOTALL)
_OLD = re.compile(r"^(?P<module>.+)_lora\.(?P<suffix>(down|up)\.weight)$")  # diffusers before 2024: `attn1.processor.to_q_lora.down.weight`
_XLABS = re.compile(r"^(?P<module>.+\.processor\.(qkv|proj)_lora\d?)\.(?P<suffix>(down|up)\.weight)$")
_NORM = re.compile(r"^(?P<module>.+_norm)\.(?P<suffix>scale)$")  # BFL's control files
EMBEDDING = re.compile(r"^bundle_emb\.(?P<word>.+)\.(?P<key>string_to_param\.\*|clip_[lg])$")
_PLAIN = {
    "lora_linear_layer.down.weight": "lora_down.weight", "lora_linear_layer.up.weight": "lora_up.weight",
    "down.weight": "lora_down.weight", "up.weight": "lora_up.weight",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of itself before any tensor is read."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]
    data_start: int  # byte offset of the tensors
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # of each tensor: dtype, first byte, and the one after its last, from there


def read_header(path: Path) -> Header:
    """The header, checked before any tensor is read. Raises: AdapterError with what was found and allowed."""
    path = located(path)
    try:
        with path.open("rb") as file:
            return beside(path, header_of(file, path.name))
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None


def beside(path: Path, header: Header) -> Header:
    """The header of a file, with PEFT's config that lies beside it among what it says. Raises: AdapterError."""
    config = config_beside(path)
    return header if config is None else replace(header, metadata={**header.metadata, CONFIG_KEY: config})


def header_of(file: BinaryIO, name: str) -> Header:
    """The header of a file that is open at its start, which is then read up to the tensors. Raises: AdapterError, OSError."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        raise AdapterError(foreign.said(name, size, _start(file), length, MAX_HEADER_BYTES))
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise AdapterError(foreign.said(name, size, _start(file), length, MAX_HEADER_BYTES))
    try:
        fields = json.loads(raw, object_pairs_hook=_no_twins)
        metadata = fields.pop("__metadata__", {})
        json.dumps(fields, ensure_ascii=False).encode()  # refuses halves of characters, which nobody could print
        shapes = {tensor: _numbers(entry["shape"]) for tensor, entry in fields.items()}
        ends = {tensor: _numbers(entry["data_offsets"]) for tensor, entry in fields.items()}
        places = {tensor: (entry["dtype"], *_pair(ends[tensor])) for tensor, entry in fields.items()}
        dtypes = {dtype for dtype, _, _ in places.values()}
    except UnicodeError:
        raise AdapterError(f"{name} is not a safetensors file: its header isn't text.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{name} is not a safetensors file: {str(error)[:300]}") from None
    if len(shapes) > MAX_TENSORS:
        raise AdapterError(f"{name} has {len(shapes)} tensors; allowed: up to {MAX_TENSORS}.")
    if not dtypes <= set(DTYPES):
        raise AdapterError(f"{name} has tensors of {', '.join(sorted(map(str, dtypes - set(DTYPES))))}; allowed: {', '.join(DTYPES)}.")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{name} has metadata that isn't text.")
    return Header(shapes, {whole(key): whole(value) for key, value in metadata.items()}, 8 + length, places)


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(foreign.MOST_BYTES)


def whole(text: str) -> str:
    """Text that can be printed and written: JSON may have halves of characters, which become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _numbers(values: Any) -> tuple[int, ...]:
    """Sizes or offsets. A product of thousands takes minutes, and no tensor has so many sides. Raises: ValueError."""
    if not isinstance(values, list) or len(values) > MAX_SIDES:
        raise ValueError(f"a shape or place is no list of up to {MAX_SIDES} numbers")
    if wrong := [one for one in values if type(one) is not int or not 0 <= one < 1 << 63]:
        raise ValueError(f"a size or offset is {str(wrong[0])[:80]}")
    return tuple(values)


def _pair(ends: tuple[int, ...]) -> tuple[int, int]:
    start, end = ends
    return start, end


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def split(name: str) -> tuple[str, str] | None:
    """A tensor's module and suffix (`lora_down.weight`), whichever tool wrote it; None if it follows no known scheme."""
    match = _OLD.match(name) or _XLABS.match(name) or _SUFFIX.match(name) or _NORM.match(name)
    if match is None:
        return None
    suffix = match["suffix"].replace(".default", "")
    return match["module"], _PLAIN.get(suffix, suffix)


def by_module(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """`{module as the file spells it: {suffix: the tensor's whole name}}`, and the names that follow no known scheme; new words are left out."""
    grouped: dict[str, dict[str, str]] = {}
    strange = []
    for name in names:
        if EMBEDDING.match(name):
            continue
        parts = split(name)
        if parts and parts[1] not in grouped.get(parts[0], {}):
            grouped.setdefault(parts[0], {})[parts[1]] = name
        else:
            strange.append(name)
    return grouped, strange


def recipe_of(metadata: dict[str, str]) -> dict[str, Any] | None:
    """Our recipe in a header, or None if there is none or it is damaged."""
    try:
        found = json.loads(metadata.get(RECIPE_KEY, "null"))
        json.dumps(found, ensure_ascii=False).encode()  # halves of characters are damage
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("config"), dict) else None
