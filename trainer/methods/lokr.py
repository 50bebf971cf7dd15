"""LoKr: delta = scale * kron(w1, w2), either factor whole or itself low-rank (LyCORIS, arXiv 2309.14859).

The maths is PEFT's. Files are LyCORIS': scale alpha / rank if a factor is low-rank, and 1 if both are whole, where PEFT
still scales; so what PEFT scales goes into `lokr_w1` then. Where factor squared exceeds a layer's width, PEFT makes the
first factor the larger one, which every reader of the formula takes but LyCORIS' own loader, that expects its own
shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer import schema
from trainer.deltas import largest
from trainer.lazy import torch
from trainer.schema import Settings, setting

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor

name = "lokr"
title = "LoKr"
suffixes = ("lokr_",)
starts_on_fetched = ("default",)
only_in_recipe = ("rank", "alpha", "factor", "decompose_both")


class Config(Settings):
    """Settings of a LoKr."""

    method: Literal["lokr"] = Field(
        title="Method", description="A Kronecker product: very small files of high rank, loads where LyCORIS does."
    )
    rank: int = schema.rank_setting()
    alpha: float = schema.alpha_setting()
    factor: int = setting(
        8,
        "Factor",
        "Size of the small factor; 4-16, more makes the file smaller, -1 makes both about equal.",
        ge=-1,
        le=256,
    )
    decompose_both: bool = setting(
        False, "Split both", "Make the small factor low-rank too, where that saves anything.", advanced=True
    )
    targets: Literal["attention", "attention-ff", "linear", "all"] = schema.targets_setting()
    text_encoder: bool = schema.text_encoder_setting()
    dropout: float = schema.dropout_setting("the layers")
    block_ranks: schema.BlockRanks = schema.block_ranks_setting()
    only_layers: schema.Layers = schema.only_layers_setting()
    without_layers: schema.Layers = schema.without_layers_setting()


@dataclass(frozen=True)
class Kronecker:
    """An update that is scale * kron(first, second)."""

    first: tuple[Tensor, ...]  # (a, c), or its low-rank factors (a, r), (r, c)
    second: tuple[Tensor, ...]  # (b, d[, kh, kw]), or (b, r), (r, d * kh * kw), or (r, b), (r, d) with a kernel
    kernel: Tensor | None  # (r, r, kh, kw)
    scale: float

    def __post_init__(self) -> None:
        if not self._fit_each_other():
            tensors = [*self.first, *self.second, *([] if self.kernel is None else [self.kernel])]
            raise ValueError("factors " + ", ".join(str(tuple(tensor.shape)) for tensor in tensors))

    def _fit_each_other(self) -> bool:
        # Axes: everything is a matrix but a whole second factor, which may be a convolution's.
        flat = [*self.first, *(self.second if len(self.second) == 2 else ())]
        if (
            any(tensor.ndim != 2 for tensor in flat)
            or self.second[0].ndim not in (2, 4)
            or not all(map(len, (*self.first, *self.second)))
        ):
            return False

        # A kernel stands between the second factor's two parts.
        if self.kernel is not None and (
            self.kernel.ndim != 4 or tuple(self.kernel.shape[:2]) != (len(self.second[0]), len(self.second[1]))
        ):
            return False

        # A low-rank factor's two parts share their rank; a kernel between them was compared above.
        pairs = [self.first, self.second] if self.kernel is None else [self.first]
        return all(len(pair) == 1 or pair[0].shape[1] == pair[1].shape[0] for pair in pairs)

    @property
    def rank(self) -> int:
        """Of a low-rank factor; of whole factors, what a low-rank factor could not exceed."""
        low = [pair[1].shape[0] for pair in (self.first, self.second) if len(pair) == 2]
        return int(min(low) if low else min(self.second[0].flatten(1).shape))

    @property
    def num_parameters(self) -> int:
        tensors = [*self.first, *self.second, *([] if self.kernel is None else [self.kernel])]
        return sum(tensor.numel() for tensor in tensors)

    def _shapes(self) -> tuple[int, int, int, int]:
        """(a, b, c, d with the kernel laid flat)."""
        if self.kernel is None:
            b, d = self.second[0].shape[0], math.prod(self.second[-1].shape[1:])
        else:
            b, d = self.second[0].shape[1], self.second[1].shape[1] * math.prod(self.kernel.shape[2:])
        return self.first[0].shape[0], b, self.first[-1].shape[1], d

    @property
    def made_for(self) -> str:
        a, b, c, d = self._shapes()
        return str((a * b, c * d))

    def fits(self, shape: tuple[int, ...]) -> bool:
        a, b, c, d = self._shapes()
        return (a * b, c * d) == (shape[0], math.prod(shape[1:])) and shape[1] % c == 0

    def _factors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(a, c) and (b, d with the kernel laid flat)."""
        w1, w2 = ([tensor.to(device, dtype) for tensor in pair] for pair in (self.first, self.second))
        first = w1[0] @ w1[1] if len(w1) == 2 else w1[0]
        if self.kernel is not None:
            second = torch.einsum("ijkl,ip,jr->prkl", self.kernel.to(device, dtype), w2[0], w2[1])
        else:
            second = w2[0] @ w2[1] if len(w2) == 2 else w2[0]
        return first, second.flatten(1)  # (a, c), (b, d kh kw)

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        return self.scale * torch.kron(*self._factors(base.device, dtype)).reshape(base.shape)

    def squared_norm(self) -> float:
        first, second = self._factors(self.first[0].device, torch.float64)
        # ||kron(A, B)|| = ||A|| ||B||: no product of that size is made.
        return self.scale**2 * float(first.square().sum()) * float(second.square().sum())


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths. A block's own rank keeps the scale."""
    from peft import LoKrConfig

    ranks = schema.rank_patterns(config.block_ranks)
    alphas = {pattern: config.alpha * rank / config.rank for pattern, rank in ranks.items()}
    return LoKrConfig(
        r=config.rank, alpha=config.alpha, target_modules=target_modules, module_dropout=config.dropout,
        rank_pattern=ranks, alpha_pattern=alphas,
        decompose_factor=config.factor, decompose_both=config.decompose_both,
    )  # fmt: skip


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """PEFT's tensors of one module under LyCORIS' names, which are the same, and an alpha that gives the scale."""
    low = [tensors[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in tensors]
    if low:
        return {**tensors, "alpha": torch.tensor(config.alpha * low[0].shape[0] / config.rank)}
    return {
        **tensors,
        "lokr_w1": tensors["lokr_w1"] * (config.alpha / config.rank),
        "alpha": torch.tensor(float(config.alpha)),
    }


def header(config: Config) -> dict[str, str]:
    """What the file's header says of the method, as LyCORIS writes it."""
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps(
            {"algo": "lokr", "factor": str(config.factor), "decompose_both": str(config.decompose_both)}
        ),
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
    }


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are a LoKr's: each factor whole or in two parts."""
    first = suffixes & {"lokr_w1", "lokr_w1_a", "lokr_w1_b"}
    second = suffixes - first
    whole = second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    return whole and first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Kronecker:
    """The update; scale 1 without an alpha, and where both factors are whole."""
    first, second = (
        (tensors[key],) if key in tensors else (tensors[f"{key}_a"], tensors[f"{key}_b"])
        for key in ("lokr_w1", "lokr_w2")
    )
    low = next((pair[1].shape[0] for pair in (first, second) if len(pair) == 2 and pair[1].ndim), 0)
    return Kronecker(first, second, tensors.get("lokr_t2"), alpha / low if alpha is not None and low else 1.0)


def by_header(update: Kronecker, facts: Mapping[str, Any]) -> Kronecker:
    """The update as its file means it, by what its header says.

    It matters for two whole factors: LyCORIS doesn't scale them, PEFT does, and LyCORIS with `rs_lora`.
    Raises: ValueError for PEFT's without a rank.
    """
    if len(update.first) == len(update.second) == 1:
        if facts.get("written_by") == "peft" and facts.get("alpha") is not None:
            if not facts.get("r"):
                raise ValueError("is a LoKr of PEFT's whose config has no rank (r), so its strength isn't known")
            return replace(update, scale=facts["alpha"] / facts["r"])
        if (scale := facts.get("whole_scales", {}).get(facts.get("file_alpha"))) is not None:
            return replace(update, scale=scale)
    return update


def file_tensors(update: Kronecker, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the parts has to be another tensor for the file to say the scale as LyCORIS does, without a header."""
    if len(update.first) == len(update.second) == 1:
        return {} if update.scale == 1 else {"lokr_w1": parts["lokr_w1"] * update.scale}
    rank = next(pair[1].shape[0] for pair in (update.first, update.second) if len(pair) == 2)
    alpha = update.scale * rank
    present = float(parts.get("alpha", torch.tensor(float(rank))))  # without an alpha, the scale is 1
    return {} if math.isclose(present, alpha, rel_tol=1e-6) else {"alpha": torch.tensor(alpha)}


def trained(update: Kronecker, fresh: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """PEFT's tensors that give this update; of other shapes than fresh tensors where its factors are others."""
    pairs = (("lokr_w1", update.first), ("lokr_w2", update.second))
    tensors = {
        f"{name}{ending}": tensor.to(next(iter(fresh.values())))
        for name, parts in pairs
        for ending, tensor in zip(("_a", "_b") if len(parts) == 2 else ("",), parts, strict=True)
    }
    if update.kernel is not None:
        tensors["lokr_t2"] = update.kernel
    first = next(name for name in ("lokr_w1", "lokr_w1_a") if name in tensors)
    factor = update.scale / scale
    return tensors if factor == 1 else tensors | {first: tensors[first] * factor}


def settings_of(updates: list[Kronecker]) -> dict[str, Any]:
    """Rank and alpha."""
    rank = min(256, largest(updates)["rank"])
    return {"rank": rank, "alpha": float(rank)}
