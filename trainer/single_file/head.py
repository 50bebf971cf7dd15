"""A checkpoint file's header: names, types and shapes of its tensors, before any of them is read.

LoRA files have a reader of their own (`lora_file.header`), with tighter bounds and no float8.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ModelError

MAX_HEADER_BYTES = 64 << 20  # FLUX.1's whole checkpoint has less than 1 MB
MAX_TENSORS = 50_000
MAX_SIDES = 64  # of a tensor, as torch has it
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


@dataclass(frozen=True)
class Head:
    """Names, types and shapes of a checkpoint's tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # as safetensors spells them: F16, BF16, F8_E4M3 ...
    metadata: dict[str, str]
    size_bytes: int

    def under(self, prefix: str) -> list[str]:
        """Names that begin so."""
        return [name for name in self.shapes if name.startswith(prefix)]

    def num_parameters(self, names: list[str]) -> int:
        return sum(math.prod(self.shapes[name]) for name in names)


def read_head(path: Path) -> Head:
    """The head of a safetensors file. Raises: ModelError, which for GGUF and pickle files says how to convert them."""
    # The header's bytes.
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = int.from_bytes(first, "little")
            # A true header's length may look like a pickle's first bytes, so that only impossible lengths are looked
            # at.
            if path.suffix.lower() in _PICKLES or length > min(size, MAX_HEADER_BYTES):
                _refuse_others(path, first)
            if size < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
                raise ModelError(
                    f"{path} is not a safetensors file: its header claims {length} bytes of {size}; allowed: up to "
                    f"{MAX_HEADER_BYTES}."
                )
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"model file {str(path)!r} can't be read: {error.strerror}.") from None
    # Its fields.
    try:
        fields = json.loads(raw, object_pairs_hook=_no_twins)
        metadata = fields.pop("__metadata__", {})
        shapes = {name: _whole(entry["shape"], MAX_SIDES) for name, entry in fields.items()}
        dtypes = {name: str(entry["dtype"]) for name, entry in fields.items()}
        ends = {name: _whole(entry["data_offsets"], 2) for name, entry in fields.items()}
        if any(len(places) != 2 for places in ends.values()):
            raise ValueError("a tensor's place is not where it starts and ends")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}") from None
    # Limits.
    if len(shapes) > MAX_TENSORS:
        raise ModelError(f"{path} has {len(shapes)} tensors; allowed: up to {MAX_TENSORS}.")
    if strange := set(dtypes.values()) - set(_BITS):
        raise ModelError(f"{path} has tensors of {', '.join(sorted(strange))}; allowed: {', '.join(_BITS)}.")
    # Each tensor lies within the file, in as many bytes as its shape and type take.
    num_data = size - 8 - length
    for name, (start, end) in ends.items():
        if (
            not 0 <= start <= end <= num_data
            or any(side < 0 for side in shapes[name])
            or end - start != math.prod(shapes[name]) * _BITS[dtypes[name]] // 8
        ):
            raise ModelError(
                f"{path} is cut short or damaged: tensor {name[:100]!r} should lie at bytes {start} to {end} of "
                f"{num_data}; copy the file again."
            )
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path} has metadata that isn't text.")
    return Head(path, shapes, dtypes, metadata, size)


def _refuse_others(path: Path, first: bytes) -> None:
    """Raises: ModelError for a GGUF file or a pickle."""
    if first[:4] == b"GGUF":
        raise ModelError(
            f"{path} is a GGUF file, whose weights are quantised for drawing only; allowed: .safetensors. Take the "
            f"model's bfloat16 or float16 file instead."
        )
    # By its ending, or by how it begins: a zip, as torch.save writes it, or a pickle of protocol 2 to 5.
    if (
        path.suffix.lower() in _PICKLES
        or first[:4] == b"PK\x03\x04"
        or first[:1] == b"\x80"
        and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    ):
        raise ModelError(
            f"{path} is a pickle, which can run any program when it is opened; allowed: .safetensors. Convert it in a "
            f"Python without network:\n"
            "    import torch, safetensors.torch\n"
            f'    weights = torch.load("{path.name}", map_location="cpu", weights_only=True)\n'
            '    weights = {name: one.contiguous() for name, one in weights.get("state_dict", weights).items() if '
            'hasattr(one, "contiguous")}\n'
            f'    safetensors.torch.save_file(weights, "{path.stem}-converted.safetensors")'
        )


def _whole(values: Any, most: int) -> tuple[int, ...]:
    """Whole numbers, no more than so many. Raises: ValueError."""
    if (
        not isinstance(values, list)
        or len(values) > most
        or not all(type(value) is int and abs(value) < 1 << 63 for value in values)
    ):
        raise ValueError(f"a shape or place is {str(values)[:80]}")
    return tuple(values)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as a dict. Raises: ValueError if a name stands twice, of which json would silently keep one."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return fields
