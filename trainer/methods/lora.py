"""LoRA: delta = (alpha / rank) * up @ down (Hu et al. 2021, arXiv 2106.09685, equation 3). The maths is PEFT's.

Every start and scale ends in a file that any tool reads: one alpha for the whole file (diffusers drops it where it
differs by layer), what else a layer's scale is goes into `lora_up`. A start that takes a part out of the base (PiSSA,
OLoRA) ends as twice the rank on the base as it was (see `adapter`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from trainer import schema
from trainer.deltas import Delta, largest, paired, widened
from trainer.lazy import torch
from trainer.schema import Settings, setting

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

name = "lora"
title = "LoRA"
suffixes = ("lora_", "lora.")
overlap_penalty = loraplus = norm_limit = True
starts_on_quantised = ("default", "gaussian", "eva")
starts_on_fetched = ("default", "gaussian")
starts_from_base = ("pissa", "olora")
starts_from_inputs = ("eva",)

_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight")
_UP = ("lora_up.weight", "lora_B.weight", "lora.up.weight")
_MID = "lora_mid.weight"  # a convolution's kernel apart (Tucker)


class Config(Settings):
    """Settings of a plain LoRA."""

    method: Literal["lora"] = Field(
        title="Method", description="How the update is built; plain LoRA loads in every tool."
    )
    rank: int = schema.rank_setting()
    alpha: float = schema.alpha_setting()
    targets: Literal["attention", "attention-ff", "linear", "all"] = schema.targets_setting()
    text_encoder: bool = schema.text_encoder_setting()
    dropout: float = schema.dropout_setting("each layer's inputs")
    block_ranks: schema.BlockRanks = schema.block_ranks_setting()
    only_layers: schema.Layers = schema.only_layers_setting()
    without_layers: schema.Layers = schema.without_layers_setting()
    rank_stabilised: bool = setting(
        False,
        "Rank-stabilised",
        "Scale by alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732), so that high ranks learn as fast; lower alpha with "
        "it.",
        advanced=True,
    )
    init: Literal["default", "gaussian", "pissa", "olora", "eva"] = setting(
        "default",
        "Start",
        "Where the factors start: pissa (arXiv 2404.02948) and olora (2406.01775) from the base's weights, eva "
        "(2410.07170) from what flows through them; all three learn faster in the first steps.",
        advanced=True,
    )

    @property
    def linear_only(self) -> bool:
        """True if it starts from what only linear layers have."""
        return self.init not in ("default", "gaussian")

    @model_validator(mode="after")
    def _starts_on_linear_layers(self) -> Config:
        if self.linear_only and self.targets == "all":
            raise ValueError(
                f"adapter.init is {self.init!r}, which is for linear layers, but adapter.targets is 'all'; allowed "
                f"with it: attention to linear."
            )
        return self


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths.

    A block's own rank keeps the scale alpha / rank; rank-stabilised, the scale is alpha / sqrt(its rank).
    """
    from peft import EvaConfig, LoraConfig

    ranks = schema.rank_patterns(config.block_ranks)
    alphas = {pattern: config.alpha * rank / config.rank for pattern, rank in ranks.items()}
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=target_modules, lora_dropout=config.dropout, bias="none",
        rank_pattern=ranks, alpha_pattern={} if config.rank_stabilised else alphas, use_rslora=config.rank_stabilised,
        init_lora_weights=True if config.init == "default" else config.init,
        # rho: how far PEFT may move ranks from layer to layer; 1 leaves each its own, which the settings promise.
        eva_config=EvaConfig(rho=1.0) if config.init == "eva" else None,
    )  # fmt: skip


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """`{lora_A.weight, lora_B.weight}` of one module -> `{lora_down.weight, lora_up.weight, alpha}`."""
    down, up = tensors["lora_A.weight"], tensors["lora_B.weight"]
    # A layer of another rank has another scale than the file's one alpha over its rank gives: the rest goes into up.
    share = down.shape[0] / (config.rank * _width(config))
    factor = share**0.5 if config.rank_stabilised else share
    return {"lora_down.weight": down, "lora_up.weight": up * factor, "alpha": torch.tensor(_file_alpha(config))}


def _width(config: Config) -> int:
    """Rank in the file over rank in training."""
    # PiSSA and OLoRA begin with a part of the base in B0 A0: to a whole base they add B A - B0 A0, of twice the rank.
    return 2 if config.init in starts_from_base else 1


def _file_alpha(config: Config) -> float:
    """The alpha that gives the trained scale when it is divided by the rank in the file."""
    return config.alpha * _width(config) * (config.rank**0.5 if config.rank_stabilised else 1.0)


def header(config: Config) -> dict[str, str]:
    """What the file's header says of the method, as sd-scripts writes it."""
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank * _width(config)),
        "ss_network_alpha": str(_file_alpha(config)),
    }


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are a plain LoRA's, in kohya's, PEFT's or old diffusers' spelling."""
    return len(suffixes & set(_DOWN)) == 1 and len(suffixes & set(_UP)) == 1 and len(suffixes - {_MID}) == 2


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Delta:
    """The update; scale 1 without an alpha, as every tool reads it."""
    down = next(tensors[suffix] for suffix in _DOWN if suffix in tensors)
    up = next(tensors[suffix] for suffix in _UP if suffix in tensors)
    if _MID in tensors:
        down = _with_kernel(down, tensors[_MID])
    down, up = paired(down, up)
    return Delta(down, up, 1.0 if alpha is None or not down.ndim else alpha / max(1, down.shape[0]))


def _with_kernel(down: torch.Tensor, mid: torch.Tensor) -> torch.Tensor:
    """The first factor with the kernel that stands between the two, (r, in, kh, kw).

    Raises: ValueError if they don't fit each other.
    """
    if (
        mid.ndim != 4
        or down.ndim not in (2, 4)
        or mid.shape[0] != mid.shape[1]
        or down.shape[0] != mid.shape[1]
        or any(side != 1 for side in down.shape[2:])
    ):
        raise ValueError(f"down {tuple(down.shape)} and mid {tuple(mid.shape)}")
    return torch.einsum("rskl,si->rikl", mid.float(), down.flatten(1).float()).to(down.dtype)


def trained(update: Delta, fresh: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """PEFT's two tensors that give this update."""
    down, up = widened((update.down, update.up), (fresh["lora_A.weight"], fresh["lora_B.weight"]), update.scale / scale)
    return {"lora_A.weight": down, "lora_B.weight": up}


def settings_of(updates: list[Delta]) -> dict[str, Any]:
    """Rank and alpha."""
    return largest(updates)
