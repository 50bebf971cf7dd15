"""LoRA: delta = (alpha / rank) * up @ down (Hu et al. 2021, arXiv 2106.09685, equation 3). The maths is PEFT's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.schema import Settings, setting

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

name = "lora"
title = "LoRA"

_FILE = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_DOWN = ("lora_down.weight", "lora_A.weight", "lora.down.weight", "lora_A.default.weight")
_UP = ("lora_up.weight", "lora_B.weight", "lora.up.weight", "lora_B.default.weight")


class Config(Settings):
    """Settings of a plain LoRA."""

    method: Literal["lora"] = Field(title="Method", description="How the update is built; plain LoRA loads in every tool.")
    rank: int = setting(8, "Rank", "Inner size of the update; 8-32 for a style, 16-64 for a person.", ge=1, le=256)
    alpha: float = setting(8.0, "Alpha", "The update is scaled by alpha / rank; equal to the rank means unscaled.", gt=0, le=1024)
    targets: Literal["attention", "attention-ff", "linear", "all"] = setting(
        "attention",
        "Targets",
        "Which layers get an update: attention is the usual; all adds feed-forward and convolutions and learns (and over-trains) faster.",
    )


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths."""
    from peft import LoraConfig

    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=target_modules, lora_dropout=0.0, bias="none")


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """`{lora_A.weight, lora_B.weight}` of one module -> `{lora_down.weight, lora_up.weight, alpha}`.

    Alpha is written on every module with the one file-wide value: diffusers drops it where it differs by layer.
    """
    import torch

    named = {_FILE[suffix]: tensor for suffix, tensor in tensors.items()}
    return named | {"alpha": torch.tensor(float(config.alpha))}


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are a plain LoRA's, in kohya's, PEFT's or old diffusers' spelling."""
    return len(suffixes & set(_DOWN)) == 1 and len(suffixes & set(_UP)) == 1 and suffixes <= {*_DOWN, *_UP, "alpha"}


def from_file(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float | None]:
    """`(down, up, alpha)` of one module; alpha is None where the file has none (scale 1, as every tool reads it)."""
    down = next(tensors[suffix] for suffix in _DOWN if suffix in tensors)
    up = next(tensors[suffix] for suffix in _UP if suffix in tensors)
    return down, up, float(tensors["alpha"]) if "alpha" in tensors else None
