"""A plain LoRA, which every tool loads, of a DoRA, LoHa, LoKr, OFT or full difference.

Each layer's update is cut to a rank, and what that leaves out is reported. What depends on the base's weights (DoRA,
OFT) is exact for that base only, and is asked for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainer import files, rank_reduction
from trainer.deltas import Delta
from trainer.errors import AdapterError
from trainer.lora_file import fusing, reading, renaming, weight_shapes
from trainer.lora_file.names import Target
from trainer.lora_tools.opening import Opened, open_file, shapes, write
from trainer.lora_tools.resize import check
from trainer.lora_tools.weights import Weights, open_weights
from trainer.rank_reduction import Cut, Factors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plain:
    """What was written, and the share of the updates' norm that was left out."""

    path: Path
    modules: int
    changed: int  # modules that were not plain before
    rank: int  # the largest
    residual: float


def to_plain(
    file: Path, out: Path, how: Cut, base: Path | None = None, scheme: str = "default", dtype: str = "keep"
) -> Plain:
    """Write `file` as a plain LoRA, its updates that aren't low-rank cut down to `how`.

    Raises: AdapterError, ModelError.
    """
    source = open_file(file)
    family = source.family()
    check(how)
    files.refuse_over(out, [source.path, *([base] if base else [])])
    weights = open_weights(base) if base is not None else None
    modules: dict[str, reading.Module] = {}
    factors: list[Factors] = []
    changed = 0
    for name, module in source.modules.items():
        # Low-rank updates stay as they are.
        if isinstance(module.update, Delta):
            modules[name] = module
            factors.append(rank_reduction.exact(*rank_reduction.side_by_side([(1.0, module.update)])))
            continue
        if module.update is None:
            raise AdapterError(f"{file.name}: {name} sets {', '.join(module.extras)}, which no LoRA can.")
        # Others are made dense, on the base's weight where they depend on it, and cut.
        weight = _base(source, name, module, source.known.targets[name], weights)
        factors.append(rank_reduction.cut_dense(_dense(module, weight).flatten(1), how))
        update = factors[-1].delta(tuple(weight.shape))
        modules[name] = replace(module, update=update, method="lora", alpha=None, parts={})
        changed += 1
    if not changed:
        raise AdapterError(f"{file.name} is a plain LoRA already; `velatura lora resize` gives it another rank.")

    # Write.
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.spell(source.known, modules, chosen)
    made = {
        "verb": "to-plain",
        "from": source.sha256,
        "rank": how.rank,
        "energy": how.energy,
        "error": how.error,
        "base": None if base is None else base.name,
    }
    write(out, spelled, source, dtype, made)
    rank = max(module.update.rank for module in modules.values() if module.update)
    return Plain(out, len(modules), changed, rank, rank_reduction.residual(factors))


def _base(source: Opened, name: str, module: reading.Module, target: Target, weights: Weights | None) -> Tensor:
    """The base's weight, fused and ordered as the file has it, or zeros where the update doesn't depend on it.

    Raises: AdapterError.
    """
    assert module.update is not None
    # From the base.
    if weights is not None:
        parts = [weights.get(path) for path in target.paths]
        whole = torch.cat([part.flatten(1) for part in parts]).float() if len(parts) > 1 else parts[0].float()
        if target.spelling != "diffusers" and target.swaps(len(whole), whole[0].numel()):
            # The base's rows in the order that the file has them in.
            whole = whole[torch.argsort(fusing.indices((len(whole),), True)[0])]
        if not module.update.fits(tuple(whole.shape)):
            raise AdapterError(
                f"{source.path.name} is for another base: {name} is for {module.update.made_for}, the base has "
                f"{tuple(whole.shape)}."
            )
        return whole

    # Zeros of its shape.
    if module.update.squared_norm() is None:
        raise AdapterError(
            f"{source.path.name}: {name} is {module.method}, which depends on the base's weights; name them with "
            f"--base."
        )
    flat = weight_shapes.shape_of({suffix: tuple(tensor.shape) for suffix, tensor in module.parts.items()})
    if flat is None:
        raise AdapterError(f"{source.path.name}: the size of {name} can't be told; name the model with --base.")
    if len(target.paths) > 1:
        return torch.zeros(flat)
    return torch.zeros(shapes(replace(source, modules={name: module})).get(target.paths[0], flat))


def _dense(module: reading.Module, base: Tensor) -> Tensor:
    """The exact update in the shape of the base's weight; in float64 unless the weight is large."""
    assert module.update is not None
    fits = module.update.fits(tuple(base.shape))
    flat = base if fits else base.reshape(base.shape[0], math.prod(base.shape[1:]))
    return module.update.dense(flat, torch.float32 if base.numel() > 1 << 22 else torch.float64).reshape(base.shape)
