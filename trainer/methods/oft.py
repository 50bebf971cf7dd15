"""OFT: a layer's inputs are turned block by block before the layer, W' = W @ R^T with R = (I - Q)(I + Q)^-1 and Q skew (Qiu et al.
2023, arXiv 2306.07280; the input side as in OFTv2, arXiv 2506.19847). Lengths and angles between neurons stay as they are.

The maths is PEFT's, with the exact Cayley transform, not its truncated series: what is trained is then a rotation, and
what the file says is independent of how many terms were taken. On convolutions PEFT's OFT changes the output at the
start, so it is offered for linear layers only. The tensors are spelled as PEFT does (`oft_R.weight`): LyCORIS' and kohya's
`oft_blocks` turn the outputs, which is another family of updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from trainer.schema import Settings, setting, targets_setting

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor

name = "oft"
title = "OFT"

_ROTATION = "oft_R.weight"


class Config(Settings):
    """Settings of an OFT."""

    method: Literal["oft"] = Field(title="Method", description="Turns what layers read instead of adding to them: keeps more of the base, loads only here.")
    block_size: int = setting(32, "Block size", "Inputs turned together, or the nearest number that divides a layer's; 16-64, more learns more.", ge=2, le=256)
    targets: Literal["attention", "attention-ff", "linear"] = targets_setting()
    linear_only: ClassVar[bool] = True


@dataclass(frozen=True)
class Rotation:
    """An update that turns a layer's inputs: base @ R^T - base."""

    skew: Tensor  # (blocks, b * (b - 1) / 2), upper triangles of Q

    def __post_init__(self) -> None:
        if self.skew.ndim != 2 or not self.skew.numel() or self.block_size * (self.block_size - 1) != 2 * self.skew.shape[1]:
            raise ValueError(f"blocks {tuple(self.skew.shape)}")

    @property
    def block_size(self) -> int:
        """b, of b * (b - 1) / 2 numbers a block."""
        return (1 + isqrt(1 + 8 * int(self.skew.shape[1]))) // 2

    @property
    def rank(self) -> int:
        return self.block_size

    @property
    def num_parameters(self) -> int:
        return self.skew.numel()

    @property
    def made_for(self) -> str:
        return f"(any, {self.skew.shape[0] * self.block_size})"

    def fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and shape[1] == self.skew.shape[0] * self.block_size

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        import torch

        size, num = self.block_size, self.skew.shape[0]
        rows, columns = torch.triu_indices(size, size, 1, device=base.device)
        upper = torch.zeros(num, size, size, device=base.device, dtype=dtype)
        upper[:, rows, columns] = self.skew.to(base.device, dtype)
        skew, identity = upper - upper.mT, torch.eye(size, device=base.device, dtype=dtype)
        # R - I = -2 Q (I + Q)^-1, without the difference of two nearly equal matrices.
        change = torch.linalg.solve(identity + skew, -2 * skew, left=False)
        blocks = base.to(dtype).reshape(base.shape[0], num, size)
        return torch.einsum("onk,nck->onc", blocks, change).reshape(base.shape)

    def squared_norm(self) -> None:
        return None


def peft_config(config: Config, target_modules: str) -> PeftConfig:
    """PEFT's config; `target_modules` is a regular expression over module paths."""
    from peft import OFTConfig

    return OFTConfig(r=0, oft_block_size=config.block_size, target_modules=target_modules, use_cayley_neumann=False)


def to_file(tensors: dict[str, torch.Tensor], config: Config) -> dict[str, torch.Tensor]:
    """PEFT's tensor of one module under its own name."""
    return {_ROTATION: tensors[_ROTATION]}


def header(config: Config) -> dict[str, str]:
    """What the file's header says of the method."""
    return {"ss_network_module": "peft.oft", "ss_network_dim": str(config.block_size)}


def recognises(suffixes: set[str]) -> bool:
    """True if a module's suffixes in a file are an OFT's as PEFT spells it."""
    return suffixes == {_ROTATION}


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Rotation:
    """The update; it has no scale."""
    return Rotation(tensors[_ROTATION])
