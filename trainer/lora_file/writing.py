"""LoRA files written: whole or not at all, and the same bytes for the same content.

The header is sorted here because the safetensors library writes metadata in random order: one recipe on one dataset
gives the same bytes. For the same reason nothing in it tells when, where or under which name a run was made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import files
from trainer.lazy import torch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Kept in float32: their rounding would change a weight by more than the whole update.
_EXACT = ("alpha", "dora_scale", "lora_magnitude_vector")


def save(
    path: Path,
    modules: dict[str, dict[str, Tensor]],
    metadata: dict[str, str],
    dtype: torch.dtype,
    embeddings: dict[str, dict[str, Tensor]] | None = None,
) -> str:
    """The sha256 of the tensors' bytes, once `{module as the file spells it: {suffix: tensor}}` is written.

    The file is written whole or not at all. `embeddings` are new words for the text encoders,
    `{word: {key: (vectors, dim)}}`, the keys a family's (`words`).
    """
    from safetensors.torch import save as serialize

    # Tensors, sorted.
    tensors = {
        f"{key}.{suffix}": tensor.detach().to("cpu", torch.float32 if suffix in _EXACT else dtype).contiguous()
        for key, parts in sorted(modules.items())
        for suffix, tensor in sorted(parts.items())
    } | {
        f"bundle_emb.{word}.{key}": vectors.detach().to("cpu", dtype).contiguous()
        for word, parts in sorted((embeddings or {}).items())
        for key, vectors in sorted(parts.items())
    }
    serialized = serialize(tensors)
    start = 8 + int.from_bytes(serialized[:8], "little")
    body = serialized[start:]
    digest = hashlib.sha256(body).hexdigest()
    # The header, and the two hashes that kohya's tools and A1111 know a file by. The old hash is of 64 KiB after the
    # first MiB of the file as kohya would have written it, with the `ss_` keys alone.
    fields = json.loads(serialized[8:start])
    kohya = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    legacy = hashlib.sha256(_file(fields, kohya, body)[0x100000:0x110000]).hexdigest()[:8]
    whole = _file(fields, metadata | {"sshs_model_hash": digest, "sshs_legacy_hash": legacy}, body)
    files.write(path, whole)
    return digest


def _file(fields: dict[str, Any], metadata: dict[str, str], body: bytes) -> bytes:
    """A safetensors file's bytes; the header is padded to 8, as the library does."""
    header = json.dumps(
        {"__metadata__": dict(sorted(metadata.items())), **fields}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body
