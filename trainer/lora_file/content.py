"""A LoRA file read once: its header, its tensors as views of one buffer, and their hash.

`safetensors.torch.load` copies every tensor into memory of its own, which takes longer than reading the file. The file isn't mapped:
one that is written anew in its place would change, or end, under the tensors.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import AdapterError
from trainer.lora_file.header import DTYPES, Header, beside, header_of
from trainer.lora_file.locating import located

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_OVERFLOW = 1 << 62  # numbers of a tensor that can't be counted


@dataclass(frozen=True)
class Content:
    """All of a file; the tensors are finite."""

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
    import torch

    path = located(path)
    try:
        with path.open("rb") as file:
            header = beside(path, header_of(file, path.name))
            data = torch.empty(max(0, os.fstat(file.fileno()).st_size - header.data_start), dtype=torch.uint8)
            data = data[: file.readinto(data.numpy().data)]
    except OSError as error:
        raise AdapterError(f"LoRA file {str(path)!r} can't be read: {error.strerror}.") from None
    _check(path, header, len(data))
    tensors = {}
    for name, shape in header.shapes.items():
        dtype, start, end = header.places[name]
        tensors[name] = _typed(data[start:end], dtype).view(shape)
    if bad := _not_finite(data, header, tensors):
        raise AdapterError(f"{path.name} has NaN or infinity in {len(bad)} of {len(tensors)} tensors, the first is {bad[0]!r}; it can't be used.")
    return Content(path, header, tensors, data)


def _check(path: Path, header: Header, size: int) -> None:
    """Refuse tensors that don't lie one behind the other over all of the data, each as long as its shape and type."""
    after = 0
    for name, (dtype, start, end) in sorted(header.places.items(), key=lambda item: item[1][1:]):
        shape = header.shapes[name]
        if start != after or end - start != math.prod(shape) * DTYPES[dtype] or math.prod(max(1, side) for side in shape) >= _OVERFLOW:
            raise AdapterError(f"{path.name} is damaged: {name[:200]!r} is {str(shape)[:100]} of {dtype} in bytes {start} to {end}, which don't fit.")
        after = end
    if size < after:
        raise AdapterError(f"{path.name} is cut off: {size} bytes of its {after} are there. Its download was not finished; download it again.")
    if after != size:
        raise AdapterError(f"{path.name} is damaged: its header tells of {after} bytes, and {size} follow.")


def _typed(raw: Tensor, dtype: str) -> Tensor:
    """Bytes as numbers; moved where they don't lie at a multiple of the numbers' size. Those of 8 bits become float16, which has them all."""
    import torch

    kind: torch.dtype = getattr(torch, _NAMES[dtype])
    found = (raw if raw.storage_offset() % DTYPES[dtype] == 0 else raw.clone()).view(kind)
    return found.to(torch.float16) if dtype.startswith("F8") else found


def _not_finite(whole: Tensor, header: Header, tensors: dict[str, Tensor]) -> list[str]:
    """Names of tensors with NaN or infinity. Those of one type mostly lie together and are looked at together."""
    by_type: dict[str, list[str]] = {}
    for name, (dtype, _, _) in header.places.items():
        by_type.setdefault(dtype, []).append(name)
    found: list[str] = []
    for dtype, names in by_type.items():
        start, end = min(header.places[name][1] for name in names), max(header.places[name][2] for name in names)
        is_together = sum(header.places[name][2] - header.places[name][1] for name in names) == end - start
        if not (is_together and _is_finite(_typed(whole[start:end], dtype))):
            found += [name for name in names if not _is_finite(tensors[name])]
    return found


def _is_finite(tensor: Tensor) -> bool:
    """By the least and the largest number, which is ten times as fast as asking each: NaN is both where there is one."""
    import torch

    return not tensor.numel() or not tensor.is_floating_point() or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
