"""A LoRA file opened for work, as its own modules and as updates of a model's layers; and a result written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import __version__, files
from trainer.deltas import Delta, Update
from trainer.errors import AdapterError
from trainer.lora_file import fusing, new_words, reading, weight_shapes, writing
from trainer.lora_file.header import Header, read_header
from trainer.lora_file.locating import CONFIG_KEY, located
from trainer.lora_file.names import Family, Named, Target
from trainer.lora_file.scheme_tensors import Spelled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MADE_KEY = "velatura.made"
DTYPES = ("keep", "float32", "float16", "bfloat16")
# The largest relative error of an update that rounding makes.
TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}
# The header's keys that are true of one file only.
_OWN = ("sshs_model_hash", "sshs_legacy_hash", "lora_adapter_metadata", CONFIG_KEY, "format", "modelspec.hash_sha256")


@dataclass(frozen=True)
class Opened:
    """A LoRA file, read whole."""

    path: Path
    header: Header
    known: Named
    modules: dict[str, reading.Module]
    words: dict[str, dict[str, Tensor]]

    @property
    def sha256(self) -> str:
        """sha256 of the tensors' bytes."""
        return hashlib.sha256(self.path.read_bytes()[self.header.data_start :]).hexdigest()

    def family(self) -> Family:
        """The family whose names the file has. Raises: AdapterError if there is none, or names are left over."""
        if self.known.family is None:
            raise AdapterError(
                f"{self.path.name} is for no family whose layers are known here; such as {next(iter(self.modules))}."
            )
        if self.known.unknown:
            unknown = (
                f"{len(self.known.unknown)} of {len(self.modules)} modules have no name in {self.known.family.title}"
            )
            raise AdapterError(f"{self.path.name}: {unknown}, such as {', '.join(self.known.unknown[:3])}.")
        return self.known.family

    def dtype(self) -> torch.dtype:
        """The dtype of most of its tensors, alphas left out."""
        dtypes = Counter(
            tensor.dtype
            for module in self.modules.values()
            for suffix, tensor in module.parts.items()
            if suffix != "alpha"
        )
        dtype = dtypes.most_common(1)[0][0]
        return dtype if dtype.is_floating_point else torch.float32


def open_file(path: Path) -> Opened:
    """A LoRA file, read whole. Raises: AdapterError."""
    path = located(path)
    header = read_header(path)
    return Opened(path, header, reading.named(header), reading.modules(path), new_words.embeddings(path))


def updates(opened: Opened) -> dict[str, Update]:
    """Its updates by `component.module.path` in diffusers' spelling. Raises: AdapterError.

    Fused layers are split, and those of their parts that were not trained are left out.
    """
    opened.family()
    by_layer: dict[str, Update] = {}
    num = 0
    for name, module in opened.modules.items():
        target = opened.known.targets[name]
        if module.update is None or module.extras:
            raise AdapterError(
                f"{opened.path.name}: {name} sets {', '.join(module.extras)} besides a weight, which can't be added up "
                f"with others."
            )
        parts = layers(opened.path.name, name, module, target)
        pairs = dict(zip(target.paths, parts, strict=True))
        trained = {path: part for path, part in pairs.items() if len(parts) > 1 and not fusing.is_nothing(part)}
        num += len(trained or pairs)
        by_layer |= trained or pairs
    if len(by_layer) < num:
        raise AdapterError(f"{opened.path.name} has a layer twice, in two spellings; which one counts is not said.")
    return by_layer


def shapes(opened: Opened) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's weight, as far as its update tells; a convolution's kernel apart."""
    by_layer: dict[str, tuple[int, ...]] = {}
    for name, module in opened.modules.items():
        target = opened.known.targets[name]
        flat = weight_shapes.shape_of({suffix: tuple(tensor.shape) for suffix, tensor in module.parts.items()})
        heights = target.parts(*flat) if flat else None
        if flat and heights:
            own = getattr(module.update, "shape", None)
            inner = tuple(own[1:]) if own is not None and len(own) > 2 else None  # inputs and kernel
            by_layer |= {
                path: (height, *(inner or _inner(path, flat[1], opened)))
                for path, height in zip(target.paths, heights, strict=True)
            }
    return by_layer


def _inner(path: str, into: int, opened: Opened) -> tuple[int, ...]:
    """Inputs, and the kernel of a layer that is a convolution in a UNet, from inputs with the kernel laid flat."""
    name = path.rpartition(".")[2]
    if not path.startswith("unet.") or "time_emb" in path:
        return (into,)
    # A kernel of 3 x 3 laid flat is nine numbers an input.
    if name in ("conv", "conv1", "conv2", "conv_in", "conv_out") and into % 9 == 0:
        return into // 9, 3, 3
    # Stable Diffusion 1.x projects by convolutions of 1 x 1 where 2.x and SDXL have linear layers.
    if name == "conv_shortcut" or (name in ("proj_in", "proj_out") and opened.known.size == "1.x"):
        return into, 1, 1
    return (into,)


def layers(file: str, name: str, module: reading.Module, target: Target) -> list[Update]:
    """The update of each layer that a module stands for. Raises: AdapterError if they depend on each other."""
    assert module.update is not None
    shape = weight_shapes.shape_of({suffix: tuple(tensor.shape) for suffix, tensor in module.parts.items()})
    swapped = shape is not None and target.spelling != "diffusers" and target.swaps(*shape)
    if len(target.paths) == 1 and not swapped:
        return [module.update]
    heights = target.parts(*shape) if shape else None
    # The whole weight's shape, a convolution's kernel apart.
    whole = (shape[0], *(module.update.shape[1:] if isinstance(module.update, Delta) else shape[1:])) if shape else None
    parts = fusing.split(module.update, heights, swapped, whole) if heights else None
    if parts is None:
        raise AdapterError(
            f"{file}: {name} ({module.method}) can't be taken apart into {', '.join(target.paths)}; try `velatura lora "
            f"to-plain` with --base."
        )
    return parts


def write(
    out: Path,
    spelled: Spelled,
    source: Opened,
    dtype: str,
    made: Mapping[str, object],
    words: dict[str, dict[str, Tensor]] | None = None,
) -> str:
    """The tensors' sha256, once modules are written with the source's header and what was done to it.

    Raises: AdapterError.
    """
    if out.suffix != ".safetensors":
        raise AdapterError(f"--out is {str(out)!r}; allowed: a file that ends in .safetensors.")
    files.refuse_over(out, [source.path])
    if dtype not in DTYPES:
        raise AdapterError(f"--dtype is {dtype!r}; allowed: {', '.join(DTYPES)}.")

    # The source's header, but for what is true of that file only.
    family = source.known.family
    kept = {
        key: value
        for key, value in source.header.metadata.items()
        if key not in _OWN and not key.startswith("ss_network_")
    }
    if family is not None:
        kept = {"modelspec.architecture": family.architecture, "ss_base_model_version": family.base_version, **kept}
    kept |= {
        "modelspec.sai_model_spec": kept.get("modelspec.sai_model_spec", "1.0.1"),
        "modelspec.title": kept.get("modelspec.title", out.stem),
    }
    own = {MADE_KEY: json.dumps({**made, "velatura": __version__}, sort_keys=True, ensure_ascii=False)}
    out.parent.mkdir(parents=True, exist_ok=True)
    saved_as = source.dtype() if dtype == "keep" else getattr(torch, dtype)
    words = source.words if words is None else words
    return writing.save(out, spelled.modules, kept | spelled.metadata | own, saved_as, words)
