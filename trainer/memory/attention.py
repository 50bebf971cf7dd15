"""How a frozen denoiser computes attention: PyTorch's fused kernel, or matmul-softmax-matmul, by shape.

On CPUs the fused backward is slow in bfloat16 where there are few tokens. One layer, forward and backward, one core
with AMX, ms fused / plain:

    (batch, heads, tokens, width) x keys   float32       bfloat16
    (8, 4, 64, 64) x 64                    1.6 / 1.5     5.1 / 1.7
    (4, 8, 144, 64) x 144                  6.4 / 5.5     14.3 / 5.9
    (4, 8, 256, 64) x 77                   7.7 / 5.7     12.5 / 6.9
    (1, 8, 1024, 80) x 77                  8.7 / 6.9     13.6 / 10.0
    (1, 8, 1024, 80) x 1024                69 / 133      72 / 172

A step of whole models, s fused / `auto` as it would be with this rule in both: Imprimatura, batch 8, 0.197 / 0.208 in
float32 and 0.197 / 0.157 in bfloat16; a UNet of 24 million parameters, 256 px, 0.68 / 0.73 and 0.83 / 0.78; at 512 px
no difference. So `auto` is fused in float32, where the small gain is lost again in getting there.

`auto` is a rule over shape, dtype and kind of device, and no stopwatch: the same recipe gives the same bytes
in a second run, in a resumed one and under load. The rehearsal times it against the fused kernel on the machine at hand
and names the setting to write down if that is clearly faster. The plain way keeps scores in float32, as the fused
kernel does; rounded to bfloat16, as diffusers' own plain processor has them, the result is two to eight times less
exact.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainer import choices, forwards
from trainer.errors import ConfigError

_FUSED = torch.nn.functional.scaled_dot_product_attention
_MOST_SCORES = 1 << 17  # tokens x keys up to which plain is the faster way on CPUs in 16 bits


def plain(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attention (B, H, N, D) over keys (B, H, M, D) without a mask, scores in float32."""
    scores = (query.float() * (scale or query.shape[-1] ** -0.5)) @ key.float().transpose(-1, -2)  # (B, H, N, M)
    return scores.softmax(-1).to(value.dtype) @ value


class _Plain(TorchFunctionMode):
    """Within it, attention over at most so many scores is computed plainly; what has a mask or dropout stays fused."""

    def __init__(self, most_scores: float) -> None:
        super().__init__()
        self.most_scores = most_scores

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not _FUSED:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False)) | kwargs
        query, key, value, scale = named.pop("query"), named.pop("key"), named.pop("value"), named.pop("scale", None)
        # `named` now holds the mask, dropout and is_causal only.
        if any(named[name] for name in named if name != "attn_mask") or named.get("attn_mask") is not None:
            return function(*args, **kwargs)
        if query.shape[-2] * key.shape[-2] > self.most_scores:
            return function(*args, **kwargs)
        with torch.autocast(query.device.type, enabled=False):
            return plain(query, key, value, scale)


def choose(model: nn.Module, way: Literal["auto", "fused", "plain"], device: str, dtype: torch.dtype) -> None:
    """Make every attention layer of a diffusers model compute `auto`, `fused` or `plain`; may be called again.

    A layer's forward is wrapped, and not the model's, so that gradient checkpointing computes in backward what it did
    before.
    """
    match way:
        case "auto":
            most: float = _MOST_SCORES if device == "cpu" and dtype != torch.float32 else 0
        case "fused":
            most = 0
        case "plain":
            most = float("inf")
        case _:
            choices.never(way)

    # Every layer anew: what an earlier call wrapped is taken off first.
    layers = [module for module in model.modules() if hasattr(module, "set_processor") and hasattr(module, "processor")]
    if not layers and way != "auto":
        raise ConfigError(
            f"memory.attention is {way!r}, but this base's attention can't be changed; allowed for it: auto."
        )
    for layer in layers:
        forwards.unwrap(layer, "attention")
        if most:
            forwards.wrap(layer, "attention", partial(_wrapped, most_scores=most))


def _wrapped(forward: forwards.Forward, most_scores: float) -> forwards.Forward:
    def call(*args: Any, **kwargs: Any) -> Any:
        with _Plain(most_scores):
            return forward(*args, **kwargs)

    return call
