"""A LoRA file's header: what it says of itself before any tensor is read, and how its tensors' names come apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from trainer.errors import AdapterError

RECIPE_KEY = "velatura.recipe"
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_SUFFIX = re.compile(r"^(?P<module>.+?)\.(?P<suffix>(lora_|lora\.|hada_|lokr_|oft_|dora_scale|diff|alpha|w_norm|b_norm|set_weight).*)$")
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
    try:
        with path.open("rb") as file:
            return header_of(file, path.name)
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None


def header_of(file: BinaryIO, name: str) -> Header:
    """The header of a file that is open at its start, which is then read up to the tensors. Raises: AdapterError, OSError."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        raise AdapterError(f"{name} is not a safetensors file: its header claims {length} bytes of {size}; allowed: up to {MAX_HEADER_BYTES}.")
    raw = file.read(length)
    try:
        fields = json.loads(raw, object_pairs_hook=_no_twins)
        metadata = fields.pop("__metadata__", {})
        shapes = {tensor: tuple(map(_whole, entry["shape"])) for tensor, entry in fields.items()}
        ends = {tensor: tuple(map(_whole, entry["data_offsets"])) for tensor, entry in fields.items()}
        places = {tensor: (entry["dtype"], *_pair(ends[tensor])) for tensor, entry in fields.items()}
        dtypes = {dtype for dtype, _, _ in places.values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{name} is not a safetensors file: {error}") from None
    if len(shapes) > MAX_TENSORS:
        raise AdapterError(f"{name} has {len(shapes)} tensors; allowed: up to {MAX_TENSORS}.")
    if not dtypes <= set(DTYPES):
        raise AdapterError(f"{name} has tensors of {', '.join(sorted(map(str, dtypes - set(DTYPES))))}; allowed: {', '.join(DTYPES)}.")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{name} has metadata that isn't text.")
    return Header(shapes, metadata, 8 + length, places)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a size or offset is {value!r}")
    return value


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
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("config"), dict) else None
