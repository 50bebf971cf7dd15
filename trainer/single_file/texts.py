"""Text encoders and tokenizers of single files: OpenCLIP's names as Hugging Face's, and CLIP's tokenizer built.

Written here because diffusers' own conversion is private and builds the model first, where renaming tensors is enough.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.lazy import torch, transformers

if TYPE_CHECKING:
    from torch import Tensor

_VOCABULARY = Path(__file__).parent / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # lines of it that CLIP uses; the file has more
_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight", "ln_final.bias": "text_model.final_layer_norm.bias",
}  # fmt: skip


def clip_tensors(tensors: dict[str, Tensor], num_layers: int, projects: bool) -> dict[str, Tensor]:
    """A CLIP text encoder's tensors by the names that transformers reads.

    OpenCLIP's layers beyond `num_layers` are left out, as SD 2.x wants. `projects`: the class has a text projection.
    """
    if any(name.startswith("transformer.resblocks.") for name in tensors):
        renamed = _from_open_clip(tensors, num_layers, projects)
    else:
        renamed = {
            name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
            for name, tensor in tensors.items()
            if not name.endswith(("position_ids", "logit_scale"))
        }
        if not projects:
            renamed.pop("text_projection.weight", None)
    # SD 3's files leave the projection out of CLIP-L, where it changes nothing.
    if projects and "text_projection.weight" not in renamed:
        width = renamed["text_model.final_layer_norm.weight"]
        renamed["text_projection.weight"] = torch.eye(len(width), dtype=width.dtype)
    return renamed


def _from_open_clip(tensors: dict[str, Tensor], num_layers: int, projects: bool) -> dict[str, Tensor]:
    """OpenCLIP's tensors renamed; it keeps query, key and value in one matrix, and its projection transposed."""
    renamed = {new: tensors[old] for old, new in _OUTSIDE.items() if old in tensors}
    if projects and "text_projection" in tensors:
        renamed["text_projection.weight"] = tensors["text_projection"].T.contiguous()
    elif projects and "text_projection.weight" in tensors:
        renamed["text_projection.weight"] = tensors["text_projection.weight"]
    for name, tensor in tensors.items():
        match = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if match is None or int(match[1]) >= num_layers:
            continue
        layer = f"text_model.encoder.layers.{match[1]}"
        if match[2] == "attn.in_proj":
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{letter}_proj.{match[3]}"] = part.contiguous()
        else:
            renamed[f"{layer}.{_INNER[match[2]]}.{match[3]}"] = tensor
    return renamed


def clip_tokenizer(pad_token: str) -> Any:
    """CLIP's tokenizer, 77 tokens wide.

    Its vocabulary is in the order of OpenAI's `simple_tokenizer`: bytes, bytes that end a word, merges, marks.
    """
    with gzip.open(_VOCABULARY, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : _MERGES + 1]]
    # A word's place in this list is its id.
    letters = _letters()
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=77,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token=pad_token,
    )


def _letters() -> list[str]:
    """A printable letter for each byte, printable bytes first, in the order of GPT-2's byte-level BPE."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len([byte for byte in range(256) if byte not in printable])
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]
