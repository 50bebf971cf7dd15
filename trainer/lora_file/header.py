"""A LoRA file's header: what it says of itself before any tensor is read, and how its tensors' names come apart."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from trainer import methods
from trainer.errors import AdapterError
from trainer.lora_file import not_safetensors
from trainer.lora_file.locating import CONFIG_KEY, config_beside, located

RECIPE_KEY = "velatura.recipe"
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 20_000
MAX_SIDES = 64  # of a tensor, as torch has it
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1}
WHOLE = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # alphas, mostly
DTYPES = FLOATS | WHOLE
_SHARED_SUFFIXES = ("diff(?!usion)", "alpha", "w_norm", "b_norm", "set_weight")  # of no method alone, as patterns
# diffusers before 2024: `attn1.processor.to_q_lora.down.weight`.
_OLD = re.compile(r"^(?P<module>.+)_lora\.(?P<suffix>(down|up)\.weight)$")
_XLABS = re.compile(r"^(?P<module>.+\.processor\.(qkv|proj)_lora\d?)\.(?P<suffix>(down|up)\.weight)$")
_NORM = re.compile(r"^(?P<module>.+_norm)\.(?P<suffix>scale)$")  # BFL's control files
EMBEDDING = re.compile(r"^bundle_emb\.(?P<word>.+)\.(?P<key>string_to_param\.\*|clip_[lg])$")
# Suffixes of other spellings -> the common suffixes.
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
    # Of each tensor: dtype, its first byte and the byte after its last, counted from `data_start`.
    places: dict[str, tuple[str, int, int]] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The header, checked before any tensor is read. Raises: AdapterError with what was found and allowed."""
    path = located(path)
    try:
        with path.open("rb") as file:
            return beside(path, header_of(file, path.name))
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None


def beside(path: Path, header: Header) -> Header:
    """The header of a file, with PEFT's config beside the file added to its metadata. Raises: AdapterError."""
    config = config_beside(path)
    return header if config is None else replace(header, metadata={**header.metadata, CONFIG_KEY: config})


def header_of(file: BinaryIO, name: str) -> Header:
    """The header of a file that is open at its start; the file is then read up to the tensors.

    Raises: AdapterError, OSError.
    """
    # Length.
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
        raise AdapterError(not_safetensors.explain(name, size, _start(file), length, MAX_HEADER_BYTES))
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise AdapterError(not_safetensors.explain(name, size, _start(file), length, MAX_HEADER_BYTES))
    # Fields, which whoever made the file chose.
    try:
        fields = json.loads(raw, object_pairs_hook=_no_twins)
        metadata = fields.pop("__metadata__", {})
        json.dumps(fields, ensure_ascii=False).encode()  # refuses lone surrogates, which can't be printed
        shapes = {tensor: _numbers(entry["shape"]) for tensor, entry in fields.items()}
        ends = {tensor: _numbers(entry["data_offsets"]) for tensor, entry in fields.items()}
        places = {tensor: (entry["dtype"], *_pair(ends[tensor])) for tensor, entry in fields.items()}
        dtypes = {dtype for dtype, _, _ in places.values()}
    except UnicodeError:
        raise AdapterError(f"{name} is not a safetensors file: its header isn't text.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{name} is not a safetensors file: {str(error)[:300]}") from None
    # Limits.
    if len(shapes) > MAX_TENSORS:
        raise AdapterError(f"{name} has {len(shapes)} tensors; allowed: up to {MAX_TENSORS}.")
    if not dtypes <= set(DTYPES):
        raise AdapterError(
            f"{name} has tensors of {', '.join(sorted(map(str, dtypes - set(DTYPES))))}; allowed: {', '.join(DTYPES)}."
        )
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterError(f"{name} has metadata that isn't text.")
    return Header(shapes, {whole(key): whole(value) for key, value in metadata.items()}, 8 + length, places)


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(not_safetensors.MOST_BYTES)


def whole(text: str) -> str:
    """Text that can be printed and written: JSON may have lone surrogates, which become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _numbers(values: Any) -> tuple[int, ...]:
    """Sizes or offsets. Raises: ValueError.

    Their number has a limit, since the product of thousands of long numbers takes minutes.
    """
    if not isinstance(values, list) or len(values) > MAX_SIDES:
        raise ValueError(f"a shape or place is no list of up to {MAX_SIDES} numbers")
    if refused := [value for value in values if type(value) is not int or not 0 <= value < 1 << 63]:
        raise ValueError(f"a size or offset is {str(refused[0])[:80]}")
    return tuple(values)


def _pair(ends: tuple[int, ...]) -> tuple[int, int]:
    start, end = ends
    return start, end


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict. Raises: ValueError if a name stands twice, of which json would silently keep one."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return fields


@cache
def _of_a_method() -> re.Pattern[str]:
    """The pattern of tensors' names that any method's files have."""
    own = [re.escape(suffix) for method in methods.registry().values() for suffix in method.suffixes]
    return re.compile(rf"^(?P<module>.+?)\.(?P<suffix>({'|'.join([*own, *_SHARED_SUFFIXES])}).*)$", re.DOTALL)


def split(name: str) -> tuple[str, str] | None:
    """A tensor's module and suffix (`lora_down.weight`), whichever tool wrote it; None if no scheme has the name."""
    match = _OLD.match(name) or _XLABS.match(name) or _of_a_method().match(name) or _NORM.match(name)
    if match is None:
        return None
    suffix = match["suffix"].replace(".default", "")
    return match["module"], _PLAIN.get(suffix, suffix)


def by_module(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """`{module as the file spells it: {suffix: the tensor's whole name}}`, and the names that follow no known scheme.

    Vectors of new words are in neither.
    """
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
        recipe = json.loads(metadata.get(RECIPE_KEY, "null"))
        json.dumps(recipe, ensure_ascii=False).encode()  # lone surrogates are damage
    except (ValueError, RecursionError):
        return None
    return recipe if isinstance(recipe, dict) and isinstance(recipe.get("config"), dict) else None
