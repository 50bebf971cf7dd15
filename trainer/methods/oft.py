"""OFT: a layer's inputs are turned block by block before the layer.

W' = W @ R^T with R = (I - Q)(I + Q)^-1 and Q skew (Qiu et al. 2023, arXiv 2306.07280; the input side as in OFTv2, arXiv
2506.19847). Lengths and angles between neurons stay as they are.

The maths is PEFT's, with the exact Cayley transform, not its truncated series: what is trained is then a rotation, and
what the file says is independent of how many terms were taken. On convolutions PEFT's OFT changes the output at the
start, so it is offered for linear layers only. The tensors are spelled as PEFT does (`oft_R.weight`): LyCORIS' and
kohya's `oft_blocks` turn the outputs, which is another family of updates.

Read are PEFT's and OneTrainer's too, whose R is mostly the cut-off series of (I + Q)(I - Q)^-1: the same numbers,
turned the other way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt, prod, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.lazy import torch
from trainer.schema import Settings, setting, targets_setting

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig
    from torch import Tensor

name = "oft"
title = "OFT"
suffixes = ("oft_",)
starts_on_fetched = ("default",)

_ROTATION = "oft_R.weight"
_SCALED = "oft_R.scaled_oft"  # OneTrainer's mark


class Config(Settings):
    """Settings of an OFT."""

    method: Literal["oft"] = Field(
        title="Method",
        description="Turns what layers read instead of adding to them: keeps more of the base, loads only here.",
    )
    block_size: int = setting(
        32,
        "Block size",
        "Inputs turned together, or the nearest number that divides a layer's; 16-64, more learns more.",
        ge=2,
        le=256,
    )
    targets: Literal["attention", "attention-ff", "linear"] = targets_setting()
    linear_only: ClassVar[bool] = True


@dataclass(frozen=True)
class Rotation:
    """An update that turns a layer's inputs: base @ R^T - base."""

    skew: Tensor  # (blocks, b * (b - 1) / 2), upper triangles of Q
    terms: int = 0  # of the series that stands for the inverse, which turns the other way; 0: the inverse itself
    early: bool = False  # the series as PEFT had it before 0.18
    shared: bool = False  # one block for all inputs
    limit: float = 0.0  # COFT: what Q's length is cut to in each block; 0: no limit
    scaled: bool = False  # Q is kept larger, by 2 sqrt(b - 1)
    onward: bool = False  # convolutions are base @ R, as OneTrainer has them

    def __post_init__(self) -> None:
        if (
            self.skew.ndim != 2
            or not self.skew.numel()
            or self.block_size * (self.block_size - 1) != 2 * self.skew.shape[1]
        ):
            raise ValueError(f"blocks {tuple(self.skew.shape)}")
        if self.shared and len(self.skew) > 1:
            raise ValueError(
                f"is an OFT of {len(self.skew)} blocks, and its header says that all inputs share one (block_share)"
            )

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
        size = self.block_size
        if self.shared:
            return f"(any, a multiple of {size})"
        shared = f", or for inputs that share one block of {size} (block_share), which its header would have to say"
        return f"(any, {len(self.skew) * size}){shared if len(self.skew) == 1 else ''}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        inputs = prod(shape[1:])
        if len(shape) not in (2, 4):
            return False
        if self.shared:
            return inputs % self.block_size == 0 < inputs
        return inputs == len(self.skew) * self.block_size

    def dense(self, base: Tensor, dtype: torch.dtype) -> Tensor:
        change = self._change(base.device, dtype)
        blocks = base.to(dtype).reshape(base.shape[0], -1, self.block_size)  # (out, blocks, b)
        change = change.expand(blocks.shape[1], -1, -1)
        if self.onward and base.ndim == 4:
            return torch.einsum("onk,nkc->onc", blocks, change).reshape(base.shape)
        return torch.einsum("onk,nck->onc", blocks, change).reshape(base.shape)

    def _change(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """R - I of each block, (blocks, b, b), without the difference of two nearly equal matrices."""
        # Q of each block, from its upper triangle.
        size, num = self.block_size, self.skew.shape[0]
        rows, columns = torch.triu_indices(size, size, 1, device=device)
        upper = torch.zeros(num, size, size, device=device, dtype=dtype)
        upper[:, rows, columns] = self.skew.to(device, dtype) / (2 * sqrt(size - 1) if self.scaled else 1)
        skew = upper - upper.mT

        # COFT: a block that is too long is scaled back.
        if self.limit:
            longest = self.limit / sqrt(num)
            skew = skew * (longest / torch.linalg.matrix_norm(skew, keepdim=True).clamp_min(longest))

        # R - I = -2 Q (I + Q)^-1, or the series.
        if not self.terms:
            identity = torch.eye(size, device=device, dtype=dtype)
            exact: Tensor = torch.linalg.solve(identity + skew, -2 * skew, left=False)
            return exact
        return _series(skew, self.terms, self.early)

    def squared_norm(self) -> None:
        return None


def _series(skew: Tensor, terms: int, early: bool) -> Tensor:
    """(I + Q)(I - Q)^-1 - I = 2 Q + 2 Q^2 + ... cut off as PEFT does it.

    The last power counts once, and twice before PEFT 0.18 (`early`).
    """
    # PEFT 0.18 and later take three terms to the third power, all other numbers to one power less.
    powers = max(terms - 1, 3 if terms == 3 and not early else 0)
    change, power = skew * 0, skew
    for number in range(1, powers + 1):
        power = skew if number == 1 else power @ skew
        change = change + power * (1 if number == powers > 2 and not early else 2)
    return change


def by_header(update: Rotation, facts: Mapping[str, Any]) -> Rotation:
    """The update as its file means it, by what PEFT's config, our own header or OneTrainer's says.

    Nothing in the numbers tells which way it turns: PEFT's default is a cut-off series of (I + Q)(I - Q)^-1, its other
    form, and ours, the inverse of that. Raises: ValueError where nothing else tells it.
    """
    tool = facts.get("written_by", "")
    if tool == "onetrainer":
        return replace(
            update,
            terms=5,
            shared=bool(facts.get("oft_block_share")) or len(update.skew) == 1,
            limit=_number(facts, "coft_eps", 1e-4) if facts.get("oft_coft") else 0.0,
            scaled=update.scaled or bool(facts.get("oft_scaled")),
            onward=True,
        )
    if tool == "velatura" and "use_cayley_neumann" not in facts:
        return update

    # PEFT's words, which our header takes over for what was read of other tools.
    is_series = facts.get("use_cayley_neumann")
    if not isinstance(is_series, bool):
        raise ValueError(
            "is an OFT, and nothing in its header says which way it turns (use_cayley_neumann), which its numbers "
            "don't tell; keep PEFT's adapter_config.json beside its adapter_model.safetensors, or use the file as "
            "OneTrainer wrote it"
        )
    terms = _number(facts, "num_cayley_neumann_terms", 5)
    if not 1 <= terms <= 100 or terms != int(terms):
        raise ValueError(f"is an OFT of num_cayley_neumann_terms {terms:g}; allowed: 1 to 100")
    return replace(
        update,
        terms=int(terms) if is_series else 0,
        early=bool(facts.get("early")),
        shared=bool(facts.get("block_share")),
        limit=_number(facts, "eps", 6e-5) if facts.get("coft") else 0.0,
        scaled=update.scaled or bool(facts.get("scaled")),
        onward=bool(facts.get("onward")),
    )


def _number(facts: Mapping[str, Any], key: str, usual: float) -> float:
    value = facts.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ValueError(f"is an OFT whose {key} is {str(value)[:40]!r}; allowed: a number above 0")
    return value


def header_arguments(update: Rotation) -> dict[str, Any]:
    """What a header has to say for `by_header` to read the same update again; its `ss_network_args`."""
    arguments = {
        "use_cayley_neumann": bool(update.terms), "num_cayley_neumann_terms": update.terms, "early": update.early,
        "block_share": update.shared, "coft": bool(update.limit), "eps": update.limit, "scaled": update.scaled,
        "onward": update.onward,
    }  # fmt: skip
    return {"use_cayley_neumann": False} | {key: value for key, value in arguments.items() if value}


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
    """True if a module's suffixes in a file are an OFT's as PEFT or OneTrainer spells it."""
    return suffixes in ({_ROTATION}, {_ROTATION, _SCALED})


def from_file(tensors: dict[str, torch.Tensor], alpha: float | None) -> Rotation:
    """The update as we write it; it has no strength of its own. `by_header` makes what other tools mean of it."""
    return Rotation(tensors[_ROTATION], scaled=_SCALED in tensors and bool(tensors[_SCALED].any()))


def trained(update: Rotation, fresh: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """PEFT's tensor that gives this update. Raises: ValueError for rotations that are computed otherwise."""
    if update.terms or update.shared or update.limit or update.scaled or update.onward:
        raise ValueError("is turned as other tools do it, which is not trained here")
    return {_ROTATION: update.skew.to(fresh[_ROTATION])}


def settings_of(updates: list[Rotation]) -> dict[str, Any]:
    """Block size."""
    return {"block_size": max(update.block_size for update in updates)}
