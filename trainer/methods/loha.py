"""LoHa: delta = (alpha / rank) * (w1_a @ w1_b) o (w2_a @ w2_b), of a rank up to rank squared.

FedPara, arXiv 2108.06098; LyCORIS, arXiv 2309.14859. The maths is PEFT's; the file is spelled and scaled as LyCORIS
does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer import schema
from trainer.deltas import is_weight_of, largest, widened
from trainer.lazy import torch
from trainer.schema import Settings

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor

name = "loha"
title = "LoHa"
suffixes = ("hada_",)
starts_on_fetched = ("default",)

_PARTS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_KERNELS = ("hada_t1", "hada_t2")


class Config(Settings):
    """Settings of a LoHa."""

    method: Literal["loha"] = Field(
        title="Method",
        description="A product of two low-rank updates: richer at the same file size, loads where LyCORIS does.",
    )
    rank: int = schema.rank_setting(4)
    alpha: float = schema.alpha_setting(4.0)
    targets: Literal["attention", "attention-ff", "linear", "all"] = schema.targets_setting()
    text_encoder: bool = schema.text_encoder_setting()
    dropout: float = schema.dropout_setting("the layers")
    block_ranks: schema.BlockRanks = schema.block_ranks_setting()
    only_layers: schema.Layers = schema.only_layers_setting()
    without_layers: schema.Layers = schema.without_layers_setting()


@dataclass(frozen=True)
class Hadamard:
    """An update that is the entrywise product of two low-rank parts; of convolutions, each may have a kernel apart."""

    first: tuple[Tensor, Tensor]  # (out, r) and (r, in), or (r, out) and (r, in) with kernels
    second: tuple[Tensor, Tensor]
    kernels: tuple[Tensor, Tensor] | None  # (r, r, kh, kw) each
    scale: float

    def __post_init__(self) -> None:
        tensors = [*self.first, *self.second, *(self.kernels or ())]
        good = (
            all(tensor.ndim == 2 and tensor.numel() for tensor in tensors[:4])
            and self._pair(self.first) == self._pair(self.second) is not None
        )
        if good and self.kernels:
            good = all(
                tuple(kernel.shape) == (self.rank, self.rank, *self.kernels[0].shape[2:]) and kernel.ndim == 4
                for kernel in self.kernels
            )
        if not good:
            raise ValueError("factors " + ", ".join(str(tuple(tensor.shape)) for tensor in tensors))

    def _pair(self, pair: tuple[Tensor, Tensor]) -> tuple[int, int, int] | None:
        """(out, r, in) of two factors, or None if they don't fit each other."""
        a, b = pair
        out, rank = (a.shape[1], a.shape[0]) if self.kernels else (a.shape[0], a.shape[1])
        return (out, rank, b.shape[1]) if rank == b.shape[0] else None

    @property
    def rank(self) -> int:
        return int(self.first[1].shape[0])

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in (*self.first, *self.second, *(self.kernels or ())))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight it is added to; a convolution's kernel may be laid flat."""
        out = self.first[0].shape[1 if self.kernels else 0]
        return (out, self.first[1].shape[1], *(self.kernels[0].shape[2:] if self.kernels else ()))

    @property
    def made_for(self) -> str:
        return str(self.shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        return is_weight_of(self.shape, shape)

    def _product(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        kernels = self.kernels or (None, None)
        products = []
        for (a, b), kernel in zip((self.first, self.second), kernels, strict=True):
            a, b = a.to(device, dtype), b.to(device, dtype)
            # With a kernel (i, j, kh, kw) the Tucker form: a (r, out) and b (r, in) stand at its first two axes.
            products.append(
                a @ b if kernel is None else torch.einsum("ijkl,ip,jr->prkl", kernel.to(device, dtype), a, b)
            )
        return self.scale * products[0] * products[1]

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        return self._product(base.device, dtype).reshape(base.shape)

    def squared_norm(self) -> float:
        return float(self._product(self.first[0].device, torch.float64).square().sum())


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths. A block's own rank keeps the scale."""
    from peft import LoHaConfig

    ranks = schema.rank_patterns(config.block_ranks)
    alphas = {pattern: config.alpha * rank / config.rank for pattern, rank in ranks.items()}
    return LoHaConfig(
        r=config.rank, alpha=config.alpha, target_modules=target_modules, module_dropout=config.dropout,
        rank_pattern=ranks, alpha_pattern=alphas
    )  # fmt: skip


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """PEFT's tensors of one module under LyCORIS' names, which are the same, and the alpha of its rank."""
    return {**tensors, "alpha": torch.tensor(config.alpha * tensors["hada_w1_b"].shape[0] / config.rank)}


def header(config: Config) -> dict[str, str]:
    """What the file's header says of the method, as LyCORIS writes it."""
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": "loha"}),
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
    }


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are a LoHa's, with or without kernels of its own."""
    return suffixes in ({*_PARTS}, {*_PARTS, *_KERNELS})


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Hadamard:
    """The update; scale 1 without an alpha."""
    a1, b1, a2, b2 = (tensors[part] for part in _PARTS)
    kernels = (tensors[_KERNELS[0]], tensors[_KERNELS[1]]) if _KERNELS[0] in tensors else None
    rank = b1.shape[0] if b1.ndim else 0
    return Hadamard((a1, b1), (a2, b2), kernels, 1.0 if alpha is None else alpha / max(1, rank))


def file_tensors(update: Hadamard, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of the parts has to be another tensor for the file to say the scale as LyCORIS does, without a header."""
    alpha = update.scale * update.rank
    present = float(parts.get("alpha", torch.tensor(float(update.rank))))  # without an alpha, the scale is 1
    return {} if math.isclose(present, alpha, rel_tol=1e-6) else {"alpha": torch.tensor(alpha)}


def trained(update: Hadamard, fresh: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """PEFT's four tensors that give this update. Raises: ValueError for kernels apart, which are not trained."""
    if update.kernels:
        raise ValueError("has kernels apart (hada_t1), which are not trained here")
    tensors, factor = {}, update.scale / scale
    for (a, b), (a_name, b_name), own in zip(
        (update.first, update.second), (_PARTS[:2], _PARTS[2:]), (factor, 1.0), strict=True
    ):
        tensors[b_name], tensors[a_name] = widened((b, a), (fresh[b_name], fresh[a_name]), own)
    return tensors


def settings_of(updates: list[Hadamard]) -> dict[str, Any]:
    """Rank and alpha."""
    return largest(updates)
