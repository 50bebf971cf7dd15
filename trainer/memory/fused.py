"""Three products for a frozen linear layer and the LoRA on it, instead of PEFT's eight operations; the numbers are PEFT's.

PEFT computes base(x) + scale * B(A(x)) as it reads: the sum, the scaling and the casts are each a pass over the whole
activation. Here the last product scales and adds to the first one's result, in the base's dtype, so that a bfloat16 base
needs no autocast. Taken only for what it is exact for: a plain LoRA on an ordinary linear layer, switched on, without
dropout; everything else stays PEFT's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear


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
        kind = base.weight.dtype
        flat = x.to(kind).reshape(-1, x.shape[-1])  # (rows, in)
        inner = linear(flat, down.weight.to(kind))  # (rows, r)
        out = linear(flat, base.weight, base.bias).addmm_(inner, up.weight.to(kind).t(), alpha=scale)
        return out.view(*x.shape[:-1], out.shape[-1])

    return forward
