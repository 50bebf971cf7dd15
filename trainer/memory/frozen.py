"""Frozen layers that keep their weight in another form than they compute with: in 8 bits, or on the CPU beside a GPU.

Backward takes the weight anew instead of keeping what forward made of it, and only the base's own weights are touched.
Diffusers' layerwise casting and group offloading cast and move the adapter's weights with the layer's, so that they must
come after it, with exceptions by name; casting takes 3.5 s a step where float8 here takes 3.0 s and int8 2.5 s (plain 2.2 s; a UNet of
222 million parameters, 256 px, batch 4, one core).
8 bits are weight-only, one scale a row of outputs; 4 bits are NF4 with its scales in 8 bits (QLoRA, arXiv 2305.14314,
sections 3.1 and 3.2), packed and unpacked by bitsandbytes. Its layers are not used: its int8 rounds the inputs too, and on CPUs
takes twice as long; its 4 bits are packed anew for inference by the first pass without gradients, so that a preview
would change training. Forward and backward of one 1280 x 1280 layer and 1024 tokens in bf16 on one core with AMX, and the output's error:
plain 7.0 ms; int8 8.6 ms, 0.5 % (bitsandbytes' layer 18.6 ms, 0.9 %); NF4 11 ms, 9 %; float8 24 ms, 2.6 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

_LARGEST = {"int8": 127.0, "fp8": torch.finfo(torch.float8_e4m3fn).max}


class NarrowLinear(nn.Linear):
    """A frozen linear layer whose weight is kept in 8 bits: integers, or float8 (e4m3) as bytes, so that nothing takes it for a number to train."""

    def __init__(self, layer: nn.Linear, kind: Literal["int8", "fp8"]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias, self.kind = layer.in_features, layer.out_features, layer.bias, kind
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / _LARGEST[kind]  # (out, 1)
        scaled = weight / scale
        narrow = scaled.round().to(torch.int8) if kind == "int8" else scaled.to(torch.float8_e4m3fn).view(torch.uint8)
        self.weight = nn.Parameter(narrow, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.train(layer.training)

    def wide(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight (out, in) as it is computed with."""
        narrow = self.weight.detach().to(device, non_blocking=True)
        numbers = narrow if self.kind == "int8" else narrow.view(torch.float8_e4m3fn)
        return numbers.to(dtype).mul_(self.get_buffer("scale").to(device, dtype))

    def forward(self, inputs: Tensor) -> Tensor:
        return _linear(inputs, self.wide, self.bias)


class NF4Linear(nn.Linear):
    """A frozen linear layer whose weight is kept in 4 bits, in `packed`; of `weight` only shape and device are meant, it holds nothing."""

    def __init__(self, layer: nn.Linear) -> None:
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        packed, self.state = quantize_4bit(layer.weight.detach().contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
        self.register_buffer("packed", packed, persistent=False)
        self.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.uint8, device=packed.device).expand(layer.weight.shape), requires_grad=False)
        self.train(layer.training)

    def wide(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight (out, in) as it is computed with."""
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.get_buffer("packed"), self.state)
        return weight.to(device, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return _linear(inputs, self.wide, self.bias)


def full_weight(layer: Any) -> Tensor:
    """A layer's weight in numbers, quantised or not."""
    weight: Tensor = layer.wide(torch.float32, layer.weight.device) if isinstance(layer, (NarrowLinear, NF4Linear)) else layer.weight.detach()
    return weight


def _linear(inputs: Tensor, weight: Callable[[torch.dtype, torch.device], Tensor], bias: Tensor | None) -> Tensor:
    """inputs @ weight.T + bias, in the dtype that autocast or the inputs ask for."""
    inputs = inputs.to(_dtype(inputs))
    product: Tensor = _Linear.apply(inputs, weight)
    return product if bias is None else product + bias.to(product.dtype)


def _dtype(inputs: Tensor) -> torch.dtype:
    kind = inputs.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype


class _Linear(torch.autograd.Function):
    """A product with a weight that backward fetches again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Callable[[torch.dtype, torch.device], Tensor]) -> Tensor:
        ctx.weight = weight
        return functional.linear(inputs, weight(inputs.dtype, inputs.device))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.weight(grad.dtype, grad.device), None


class _Conv2d(torch.autograd.Function):
    """A convolution with a weight that backward fetches again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Callable[[torch.dtype, torch.device], Tensor], layer: nn.Conv2d) -> Tensor:
        ctx.weight, ctx.layer, ctx.shape = weight, layer, inputs.shape
        return functional.conv2d(inputs, weight(inputs.dtype, inputs.device), None, *_geometry(layer))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight = ctx.weight(grad.dtype, grad.device)
        return conv2d_input(ctx.shape, weight, grad, *_geometry(ctx.layer)), None, None


def _geometry(layer: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


class FetchedLinear(nn.Linear):
    """A frozen linear layer whose weight waits on the CPU; see `keep_on_cpu`."""

    def fetch(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.weight.detach().to(device, non_blocking=True).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return _linear(inputs, self.fetch, self.bias)


class FetchedConv2d(nn.Conv2d):
    """A frozen convolution whose weight waits on the CPU; see `keep_on_cpu`."""

    def fetch(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.weight.detach().to(device, non_blocking=True).to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = _Conv2d.apply(inputs.to(_dtype(inputs)), self.fetch, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)[:, None, None]


def keep_on_cpu(layer: nn.Linear | nn.Conv2d) -> None:
    """Keep a frozen layer's weight in the CPU's memory; each pass takes a copy to where its inputs are.

    One of a 12-billion-parameter base in bf16 is 24 GB, a second each way over a fast bus. The layer changes its class, so
    that whoever holds it need not be told and whoever computes with a plain layer's weight sees that it is none.
    """
    weight = layer.weight.data.cpu()
    layer.weight.data = weight.pin_memory() if torch.cuda.is_available() else weight
    if type(layer) in (nn.Linear, nn.Conv2d):
        layer.__class__ = FetchedLinear if isinstance(layer, nn.Linear) else FetchedConv2d
