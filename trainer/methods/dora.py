"""DoRA: direction and length of each output row apart.

W' = m * (W + s up @ down) / ||W + s up @ down|| (arXiv 2402.09353, equation 5). The maths is PEFT's.

No two tools agree on a DoRA file: ComfyUI and Forge divide by ||W||, others take the input axis, diffusers drops the
lengths. Written as LyCORIS does for its default, the output axis; read for either axis, told by the shape.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer import schema
from trainer.deltas import Delta, is_weight_of, largest, paired, widened
from trainer.lazy import torch
from trainer.schema import Settings

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor

name = "dora"
title = "DoRA"
suffixes = ("dora_scale",)
overlap_penalty = loraplus = True

_DOWN = ("lora_down.weight", "lora_A.weight")
_UP = ("lora_up.weight", "lora_B.weight")
_LENGTHS = ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight")


class Config(Settings):
    """Settings of a DoRA."""

    method: Literal["dora"] = Field(
        title="Method",
        description=(
            "Trains direction and strength of each layer apart: often better at low rank, a third slower, few "
            "tools load it."
        ),
    )
    rank: int = schema.rank_setting()
    alpha: float = schema.alpha_setting()
    targets: Literal["attention", "attention-ff", "linear", "all"] = schema.targets_setting()
    text_encoder: bool = schema.text_encoder_setting()
    dropout: float = schema.dropout_setting("each layer's inputs")
    block_ranks: schema.BlockRanks = schema.block_ranks_setting()
    only_layers: schema.Layers = schema.only_layers_setting()
    without_layers: schema.Layers = schema.without_layers_setting()


@dataclass(frozen=True)
class Turned:
    """An update that sets direction and length: lengths * (base + low) / ||base + low|| - base."""

    low: Delta
    lengths: Tensor  # (out, 1, ...), or (1, in, ...) for the input axis

    def __post_init__(self) -> None:
        num_axes = len(self.low.shape)
        if self.lengths.ndim != num_axes or self._axis() is None:
            raise ValueError(f"lengths {tuple(self.lengths.shape)} and an update of {self.low.shape}")

    def _axis(self) -> int | None:
        """The axis that has a length for each of its entries; None if the lengths fit neither."""
        outputs, inputs, *kernel = self.low.shape
        ones = (1,) * len(kernel)
        return {(outputs, 1, *ones): 0, (1, inputs, *ones): 1}.get(tuple(self.lengths.shape))

    @property
    def rank(self) -> int:
        return self.low.rank

    @property
    def num_parameters(self) -> int:
        return self.low.num_parameters + self.lengths.numel()

    @property
    def made_for(self) -> str:
        return self.low.made_for

    def fits(self, shape: tuple[int, ...]) -> bool:
        return is_weight_of(self.low.shape, shape)

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        weight = base.to(dtype).reshape(self.low.shape)
        turned = weight + self.low.dense(weight, dtype)
        axes = [axis for axis in range(turned.ndim) if axis != self._axis()]
        norms = torch.linalg.vector_norm(turned, dim=axes, keepdim=True)
        # clamp_min: a row of zeros has no direction and stays as it is.
        change: Tensor = self.lengths.to(base.device, dtype) / norms.clamp_min(1e-30) * turned - weight
        return change.reshape(base.shape)

    def squared_norm(self) -> None:
        return None

    def rows(self, index: Tensor) -> Turned | None:
        """The part of it that belongs to these outputs; None where the lengths run over all outputs."""
        return Turned(self.low.rows(index), self.lengths[index]) if self._axis() == 0 else None


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths. A block's own rank keeps the scale."""
    from peft import LoraConfig

    ranks = schema.rank_patterns(config.block_ranks)
    alphas = {pattern: config.alpha * rank / config.rank for pattern, rank in ranks.items()}
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=target_modules, lora_dropout=config.dropout, bias="none",
        rank_pattern=ranks, alpha_pattern=alphas, use_dora=True,
    )  # fmt: skip


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """PEFT's three tensors of one module -> `{lora_down.weight, lora_up.weight, dora_scale, alpha}`.

    One alpha serves for the whole file: what a layer of another rank is scaled by otherwise goes into `lora_up`.
    """
    down, up = tensors["lora_A.weight"], tensors["lora_B.weight"]
    lengths = tensors["lora_magnitude_vector.weight"].reshape(up.shape[0], *[1] * (down.ndim - 1))
    return {
        "lora_down.weight": down,
        "lora_up.weight": up * (down.shape[0] / config.rank),
        "dora_scale": lengths,
        "alpha": torch.tensor(float(config.alpha)),
    }


def header(config: Config) -> dict[str, str]:
    """What the file's header says of the method, as LyCORIS writes it."""
    return {
        "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": "lora", "dora_wd": "True"}),
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.alpha),
    }


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are a LoRA's with lengths, in LyCORIS' or PEFT's spelling."""
    return all(len(suffixes & set(part)) == 1 for part in (_DOWN, _UP, _LENGTHS)) and len(suffixes) == 3


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Turned:
    """The update; scale 1 without an alpha. PEFT's flat lengths are those of the outputs."""
    down, up, lengths = (
        next(tensors[suffix] for suffix in part if suffix in tensors) for part in (_DOWN, _UP, _LENGTHS)
    )
    down, up = paired(down, up)
    low = Delta(down, up, 1.0 if alpha is None or not down.ndim else alpha / max(1, down.shape[0]))
    if lengths.ndim == 1 or "dora_scale" not in tensors:
        lengths = lengths.reshape(-1, *[1] * (len(low.shape) - 1))
    elif lengths.ndim == 2 and len(low.shape) == 4:  # a linear layer's factors, kept as convolutions of 1 x 1
        lengths = lengths[:, :, None, None]
    return Turned(low, lengths)


def trained(update: Turned, fresh: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """PEFT's three tensors that give this update. Raises: ValueError for lengths of the inputs."""
    low, lengths = update.low, fresh["lora_magnitude_vector.weight"]
    if update.lengths.shape[0] == 1 < low.shape[0]:
        raise ValueError(
            "has a length for each input, as other tools write it, and is trained with one for each output"
        )
    down, up = widened((low.down, low.up), (fresh["lora_A.weight"], fresh["lora_B.weight"]), low.scale / scale)
    return {
        "lora_A.weight": down,
        "lora_B.weight": up,
        "lora_magnitude_vector.weight": update.lengths.to(lengths).reshape(lengths.shape),
    }


def settings_of(updates: list[Turned]) -> dict[str, Any]:
    """Rank and alpha."""
    return largest([update.low for update in updates])
