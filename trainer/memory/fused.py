"""One product for a frozen linear layer and the LoRA on it, instead of PEFT's five operations; the numbers are PEFT's.

PEFT computes base(x) + scale * B(A(x)) as it reads: the sum, the scaling and, backwards, the two gradients of x are each a
pass over the whole activation. Here they are accumulated by the matrix products themselves, in the base's dtype, so that a
bfloat16 base needs no autocast. Taken only for what it is exact for: a plain LoRA on an ordinary linear layer, switched
on, without dropout; everything else stays PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class _Product(torch.autograd.Function):
    """x (..., in), weight (out, in), bias (out,) or None, down (r, in), up (out, r) -> (..., out)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
        kind = weight.dtype
        flat = x.to(kind).reshape(-1, x.shape[-1])
        small_down, small_up = down.to(kind), up.to(kind)
        inner = flat @ small_down.T  # (rows, r)
        out = flat @ weight.T if bias is None else torch.addmm(bias, flat, weight.T)
        out.addmm_(inner, small_up.T, alpha=scale)
        context.save_for_backward(flat, weight, small_down, small_up, inner)
        context.scale, context.shape, context.kinds = scale, x.shape, (x.dtype, down.dtype, up.dtype)
        return out.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, down, up, inner = context.saved_tensors
        kind_x, kind_down, kind_up = context.kinds
        rows = gradient.to(weight.dtype).reshape(-1, gradient.shape[-1])
        back = (rows @ up).mul_(context.scale)  # (rows, r)
        of_x = (rows @ weight).addmm_(back, down).reshape(context.shape).to(kind_x) if context.needs_input_grad[0] else None
        return of_x, None, None, (back.T @ flat).to(kind_down), (rows.T @ inner).mul_(context.scale).to(kind_up), None


def fuse(layers: Iterable[Any], adapter: str) -> bool:
    """Fuse every layer of PEFT's that can be; True if none is left that computes in float32 beside a smaller base."""
    left = 0
    for layer in layers:
        if _can(layer, adapter):
            layer.forward = _forward(layer, layer.forward, adapter)
        else:
            left += 1
    return not left


def _can(layer: Any, adapter: str) -> bool:
    from peft.tuners.lora.layer import Linear

    plain = type(layer) is Linear and type(layer.base_layer) is nn.Linear and layer.base_layer.weight.is_floating_point()
    return plain and not layer.lora_variant and not layer.lora_bias.get(adapter, False) and isinstance(layer.lora_dropout[adapter], nn.Identity)


def _forward(layer: Any, original: Any, adapter: str) -> Any:
    base, down, up, scale = layer.base_layer, layer.lora_A[adapter], layer.lora_B[adapter], layer.scaling[adapter]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if layer.disable_adapters or layer.merged or args or kwargs:
            found: Tensor = original(x, *args, **kwargs)
            return found
        with torch.autocast(x.device.type, enabled=False):
            result: Tensor = _Product.apply(x, base.weight, base.bias, down.weight, up.weight, scale)
        return result

    return forward
