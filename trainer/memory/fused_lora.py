"""Three products for a frozen linear layer and the LoRA on it, instead of PEFT's eight operations, of the same numbers.

PEFT computes base(x) + scale * B(A(x)) as it reads: the sum, the scaling and the casts are each a pass over the whole
activation. Here the last product scales and adds to the first one's result, in the base's dtype, so that a bfloat16
base needs no autocast. Taken only for what it is exact for: a plain LoRA on a linear layer of any form (whole,
quantised, waiting on the CPU), switched on, without dropout; everything else stays PEFT's. The layer changes its class
and holds no function of its own, so that a block compiled once serves all of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn
from torch.nn.functional import linear


def fuse(layers: Iterable[Any], adapter: str, dtype: torch.dtype) -> bool:
    """Fuse every layer of PEFT's that can be, to compute in this dtype; whether that was all of them.

    One that is left computes in float32, and needs autocast beside a smaller base.
    """
    num_left = 0
    for layer in layers:
        if _can(layer, adapter):
            layer.__class__, layer.fused_adapter, layer.fused_dtype = _kind(), adapter, dtype
        else:
            num_left += 1
    return not num_left


def _can(layer: Any, adapter: str) -> bool:
    plain = type(layer) in (Linear, _kind()) and isinstance(layer.base_layer, nn.Linear)
    return (
        plain
        and not layer.lora_variant
        and not layer.lora_bias.get(adapter, False)
        and isinstance(layer.lora_dropout[adapter], nn.Identity)
    )


@cache
def _kind() -> type:
    """PEFT's linear layer with the fused forward; made where it is first needed, since PEFT is slow to import."""

    class FusedLinear(Linear):
        fused_adapter: str
        fused_dtype: torch.dtype

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if self.disable_adapters or self.merged or args or kwargs:
                output: Tensor = super().forward(x, *args, **kwargs)
                return output
            name, kind = self.fused_adapter, self.fused_dtype
            flat = x.to(kind).reshape(-1, x.shape[-1])  # (rows, in): `addmm` takes matrices
            inner = linear(flat, self.lora_A[name].weight.to(kind))  # (rows, r)
            # base(x) + scale * (x A^T) B^T, into the base's output: nobody else holds it.
            out = self.base_layer(flat).addmm_(inner, self.lora_B[name].weight.to(kind).t(), alpha=self.scaling[name])
            summed: Tensor = out.view(*x.shape[:-1], out.shape[-1])
            return summed

    return FusedLinear
