"""A plain LoRA of a DoRA, LoHa, LoKr, OFT or full difference, which every tool loads: each layer's update cut to a rank, with what that leaves out.

What depends on the base's weights (DoRA, OFT) is exact for that base only, and is asked for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import rank_reduction
from trainer.deltas import Delta
from trainer.errors import AdapterError
from trainer.lora_file import fusing, reading, renaming
from trainer.lora_file.names import Target
from trainer.lora_tools.opening import Opened, open_file, shapes, write
from trainer.lora_tools.resize import check
from trainer.lora_tools.weights import Weights, open_weights
from trainer.rank_reduction import Cut, Factors

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plain:
    """What was written: modules, how many of them were made plain, the largest rank, and the share of the updates' norm that was left out."""

    path: Path
    modules: int
    changed: int
    rank: int
    residual: float


def to_plain(file: Path, out: Path, how: Cut, base: Path | None = None, scheme: str = "default", dtype: str = "keep") -> Plain:
    """Write `file` as a plain LoRA, its updates that aren't low-rank cut down to `how`. Raises: AdapterError, ModelError."""
    source = open_file(file)
    family = source.family()
    check(how)
    weights = open_weights(base) if base is not None else None
    modules: dict[str, reading.Module] = {}
    factors: list[Factors] = []
    changed = 0
    for module, one in source.modules.items():
        if isinstance(one.update, Delta):
            modules[module] = one
            factors.append(rank_reduction.exact(*rank_reduction.side_by_side([(1.0, one.update)])))
            continue
        if one.update is None:
            raise AdapterError(f"{file.name}: {module} sets {', '.join(one.extras)}, which no LoRA can.")
        target = source.known.targets[module]
        found = _base(source, module, one, target, weights)
        factors.append(rank_reduction.cut_dense(_dense(one, found).flatten(1), how))
        modules[module] = replace(one, update=factors[-1].delta(tuple(found.shape)), method="lora", alpha=None, parts={})
        changed += 1
    if not changed:
        raise AdapterError(f"{file.name} is a plain LoRA already; `velatura lora resize` gives it another rank.")
    chosen = family.default if scheme == "default" else scheme
    spelled = renaming.spell(source.known, modules, chosen)
    made = {"verb": "to-plain", "from": source.sha256, "rank": how.rank, "energy": how.energy, "error": how.error, "base": None if base is None else base.name}
    write(out, spelled, source, dtype, made)
    rank = max(one.update.rank for one in modules.values() if one.update)
    return Plain(out, len(modules), changed, rank, rank_reduction.residual(factors))


def _base(source: Opened, module: str, one: reading.Module, target: Target, weights: Weights | None) -> Tensor:
    """The base's weight in the form that the file has it, or zeros where the update doesn't depend on it."""
    import torch

    assert one.update is not None
    if weights is not None:
        parts = [weights.get(path) for path in target.paths]
        whole = torch.cat([part.flatten(1) for part in parts]).float() if len(parts) > 1 else parts[0].float()
        if target.spelling != "diffusers" and target.swaps(len(whole), whole[0].numel()):
            whole = whole[torch.argsort(fusing.indices((len(whole),), True)[0])]
        if not one.update.fits(tuple(whole.shape)):
            raise AdapterError(f"{source.path.name} is for another base: {module} is for {one.update.made_for}, the base has {tuple(whole.shape)}.")
        return whole
    if one.update.squared_norm() is None:
        raise AdapterError(f"{source.path.name}: {module} is {one.method}, which depends on the base's weights; name them with --base.")
    flat = reading.weight_shape({suffix: tuple(tensor.shape) for suffix, tensor in one.parts.items()})
    if flat is None:
        raise AdapterError(f"{source.path.name}: the size of {module} can't be told; name the model with --base.")
    found = shapes(replace(source, modules={module: one})).get(target.paths[0], flat) if len(target.paths) == 1 else flat
    return torch.zeros(found)


def _dense(one: reading.Module, base: Tensor) -> Tensor:
    """The exact update in the shape of the weight."""
    import torch

    assert one.update is not None
    fits = one.update.fits(tuple(base.shape))
    flat = base if fits else base.reshape(base.shape[0], math.prod(base.shape[1:]))
    return one.update.dense(flat, torch.float32 if base.numel() > 1 << 22 else torch.float64).reshape(base.shape)
