"""A LoRA file read once: its header, its tensors as views of one buffer, and their hash.

`safetensors.torch.load` copies every tensor into memory of its own, which takes longer than reading the file. The file
isn't mapped into memory: were it written anew meanwhile, the tensors would change, or end.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import AdapterError
from trainer.lazy import torch
from trainer.lora_file.header import DTYPES, Header, beside, header_of
from trainer.lora_file.locating import located

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_OVERFLOW = 1 << 62  # numbers of a tensor that can't be counted


@dataclass(frozen=True)
class Content:
    """All of a file, whose tensors are views of `data` and finite."""

    path: Path
    header: Header
    tensors: dict[str, Tensor]
    data: Tensor  # bytes of all tensors

    @property
    def sha256(self) -> str:
        """Of the tensor bytes: `sshs_model_hash`, computed, never trusted."""
        return hashlib.sha256(self.data.numpy().data).hexdigest()


def content(path: Path) -> Content:
    """A file's content. Raises: AdapterError."""
    # Header and data.
    path = located(path)
    try:
        with path.open("rb") as file:
            header = beside(path, header_of(file, path.name))
            data = torch.empty(max(0, os.fstat(file.fileno()).st_size - header.data_start), dtype=torch.uint8)
            data = data[: file.readinto(data.numpy().data)]
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
    _check(path, header, len(data))
    # Tensors.
    tensors = {}
    for name, shape in header.shapes.items():
        dtype, start, end = header.places[name]
        tensors[name] = _typed(data[start:end], dtype).view(shape)
    if names := _not_finite(data, header, tensors):
        raise AdapterError(
            f"{path.name} has NaN or infinity in {len(names)} of {len(tensors)} tensors, the first is "
            f"{names[0]!r}; it can't be used."
        )
    return Content(path, header, tensors, data)


def _check(path: Path, header: Header, size: int) -> None:
    """Refuse tensors that don't lie one behind the other over all of the data, each as long as its shape and type."""
    next_start = 0
    for name, (dtype, start, end) in sorted(header.places.items(), key=lambda item: item[1][1:]):
        shape = header.shapes[name]
        # Sides of 0 count as 1: they mustn't hide that the others overflow.
        if (
            start != next_start
            or end - start != math.prod(shape) * DTYPES[dtype]
            or math.prod(max(1, side) for side in shape) >= _OVERFLOW
        ):
            raise AdapterError(
                f"{path.name} is damaged: {name[:200]!r} is {str(shape)[:100]} of {dtype} in bytes {start} to {end}, "
                f"which don't fit."
            )
        next_start = end
    if size < next_start:
        raise AdapterError(
            f"{path.name} is cut off: {size} bytes of its {next_start} are there. Its download was not finished; "
            f"download it again."
        )
    if next_start != size:
        raise AdapterError(f"{path.name} is damaged: its header tells of {next_start} bytes, and {size} follow.")


def _typed(raw: Tensor, dtype: str) -> Tensor:
    """Bytes (N,) as numbers of a type; float8 becomes float16, which holds all of its values."""
    kind: torch.dtype = getattr(torch, _NAMES[dtype])
    # torch views bytes as wider numbers only where they start at a multiple of the width.
    aligned = raw if raw.storage_offset() % DTYPES[dtype] == 0 else raw.clone()
    numbers = aligned.view(kind)
    return numbers.to(torch.float16) if dtype.startswith("F8") else numbers


def _not_finite(whole: Tensor, header: Header, tensors: dict[str, Tensor]) -> list[str]:
    """Names of tensors with NaN or infinity.

    Tensors of one type mostly lie together, and are then checked at once, which is much faster for thousands of them.
    """
    by_type: dict[str, list[str]] = {}
    for name, (dtype, _, _) in header.places.items():
        by_type.setdefault(dtype, []).append(name)
    not_finite: list[str] = []
    for dtype, names in by_type.items():
        start, end = min(header.places[name][1] for name in names), max(header.places[name][2] for name in names)
        is_together = sum(header.places[name][2] - header.places[name][1] for name in names) == end - start
        if not (is_together and _is_finite(_typed(whole[start:end], dtype))):
            not_finite += [name for name in names if not _is_finite(tensors[name])]
    return not_finite


def _is_finite(tensor: Tensor) -> bool:
    """True if no number is NaN or infinity.

    The least and the largest number show it, which is ten times as fast as testing each; a NaN makes both NaN.
    """
    return (
        not tensor.numel()
        or not tensor.is_floating_point()
        or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
    )
