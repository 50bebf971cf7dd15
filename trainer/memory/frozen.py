"""Frozen layers that keep their weight in another form than they compute with: in 8 or 4 bits, or on the CPU.

Backward takes the weight anew instead of keeping what forward made of it, and only the base's own weights are touched.
In a compiled block such a product is one operation of its own: written out, the compiler finds the same widened weight
in both directions and keeps it between them, which is the memory that was to be saved (torch 2.13, tried).
Diffusers' layerwise casting and group offloading cast and move the adapter's weights with the layer's, so that they
must come after it, with exceptions by name; casting takes 3.5 s a step where float8 here takes 3.0 s and int8 2.5 s
(plain 2.2 s; a UNet of 222 million parameters, 256 px, batch 4, one core).
8 bits are weight-only, one scale a row of outputs; 4 bits are NF4 with its scales in 8 bits (QLoRA, arXiv 2305.14314,
sections 3.1 and 3.2), packed and unpacked by bitsandbytes. Its layers are not used: its int8 rounds the inputs too, and
on CPUs takes twice as long; its 4 bits are packed anew for inference by the first pass without gradients, so that a
preview would change training. Forward and backward of one 1280 x 1280 layer and 1024 tokens in bf16 on one core with
AMX, and the output's error: plain 7.0 ms; int8 8.6 ms, 0.5 % (bitsandbytes' layer 18.6 ms, 0.9 %); NF4 11 ms, 9 %;
float8 24 ms, 2.6 %.

On a GPU that multiplies float8 itself, fp8's forward rounds the inputs a row at a time too and multiplies both as they
are (`torch.nn.functional.scaled_mm`); the gradient is taken with the widened weight, so that it is as exact as without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from trainer.memory.fetching import PART_BYTES, Ring

_E4M3 = torch.float8_e4m3fn
_LARGEST = {"int8": 127.0, "fp8": torch.finfo(_E4M3).max}


class NarrowLinear(nn.Linear):
    """A frozen linear layer whose weight is kept in 8 bits: integers, or float8 (e4m3) as bytes.

    Bytes, so that nothing takes float8 for a number to train.
    """

    ring: Ring | None = None  # what brings the weight, where it waits on the CPU
    scales_inputs = False  # fp8 alone: multiply in float8, rounding the inputs too

    def __init__(self, layer: nn.Linear, kind: Literal["int8", "fp8"]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.kind = kind
        narrow, scale = narrowed(layer.weight.detach(), kind)
        self.weight = nn.Parameter(narrow, requires_grad=False)
        self.register_buffer("scale", scale, persistent=False)
        self.train(layer.training)

    def wide(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight (out, in) as it is computed with."""
        narrow = self.ring.take(self) if self.ring else self.weight.detach()
        return _widened([narrow.to(device), self.get_buffer("scale").to(device)], self.kind, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.ring:  # autograd must not keep the weight: its place in the ring is another layer's by then
            return _fetched(inputs, self.wide, self.bias)
        given, kept = inputs.to(_dtype(inputs)), [self.weight, self.get_buffer("scale")]
        if self.scales_inputs and given.numel() >= _FEWEST_ROWS * self.in_features:
            return _biased(_ScaledLinear.apply(given, *kept), self.bias)
        return _biased(_product(given, kept, self.kind), self.bias)


def narrowed(weights: Tensor, kind: Literal["int8", "fp8"]) -> tuple[Tensor, Tensor]:
    """Weights (..., out, in) in 8 bits, and the scale (..., out, 1) of each row."""
    wide = weights.float()
    # The largest of a row becomes the largest number of the kind; a row of zeros has some scale too.
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(1e-12) / _LARGEST[kind]
    scaled = wide / scale
    return scaled.round().to(torch.int8) if kind == "int8" else scaled.to(_E4M3).view(torch.uint8), scale


class NF4Linear(nn.Linear):
    """A frozen linear layer whose weight is kept in 4 bits, in `packed`.

    `weight` has the shape and the device, and holds nothing.
    """

    def __init__(self, layer: nn.Linear) -> None:
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        packed, self.state = quantize_4bit(
            layer.weight.detach().contiguous(), blocksize=_NF4_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("packed", packed, persistent=False)
        # One byte, seen through strides of 0 in the weight's shape: whoever asks for shape or device is answered.
        self.weight = nn.Parameter(
            torch.zeros(1, 1, dtype=torch.uint8, device=packed.device).expand(layer.weight.shape), requires_grad=False
        )
        self.train(layer.training)

    def wide(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The weight (out, in) as it is computed with."""
        return _widened(self._kept(), "nf4", dtype).to(device)

    def _kept(self) -> list[Tensor]:
        packed, state, scales = self.get_buffer("packed"), self.state, self.state.state2
        return [packed, state.absmax, state.code, state.offset, scales.absmax, scales.code, self.weight]

    def forward(self, inputs: Tensor) -> Tensor:
        return _biased(_product(inputs.to(_dtype(inputs)), self._kept(), "nf4"), self.bias)


def full_weight(layer: Any) -> Tensor:
    """A layer's weight in numbers, quantised or not."""
    narrow = isinstance(layer, (NarrowLinear, NF4Linear))
    weight: Tensor = layer.wide(torch.float32, layer.weight.device) if narrow else layer.weight.detach()
    return weight


# From what is kept to numbers.

_NF4_BLOCK, _NF4_SCALES_BLOCK = 64, 256


def _widened(kept: list[Tensor], kind: str, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in this dtype, of what a layer of this kind keeps."""
    if kind == "nf4":
        return _unpacked(kept, dtype)
    narrow, scale = kept
    if kind == "int8":
        return narrow * scale.to(dtype)  # one pass: integers times numbers are numbers
    assert kind == "fp8", kind
    return narrow.view(_E4M3).to(dtype).mul_(scale.to(dtype))


def _unpacked(kept: list[Tensor], dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    packed, absmax, code, offset, scales, scales_code, shaped = kept
    inner = QuantState(absmax=scales, code=scales_code, blocksize=_NF4_SCALES_BLOCK, dtype=torch.float32)
    weight: Tensor = dequantize_4bit(
        packed, QuantState(absmax, shaped.shape, code, _NF4_BLOCK, "nf4", dtype, offset, inner)
    )
    return weight


# Products with a weight that backward takes again.


def _biased(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias.to(product.dtype)


def _dtype(inputs: Tensor) -> torch.dtype:
    """What a product of these inputs is computed in: custom operations are not cast by autocast themselves."""
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


def _product(inputs: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    """inputs (..., in) @ weight.T."""
    product: Tensor = (
        _operation(inputs, kept, kind) if torch.compiler.is_compiling() else _Linear.apply(inputs, kind, *kept)
    )
    return product


def _forward(inputs: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    return functional.linear(inputs, _widened(kept, kind, inputs.dtype))


class _Linear(torch.autograd.Function):
    """inputs @ weight.T, the weight widened from what is kept, in both directions."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kind: str, *kept: Tensor) -> Tensor:
        ctx.save_for_backward(*kept)
        ctx.kind = kind
        return _forward(inputs, [*kept], kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        return grad @ _widened([*kept], ctx.kind, grad.dtype), *[None] * (1 + len(kept))


# The same for compiled blocks.


@torch.library.custom_op("velatura::narrow_product", mutates_args=())
def _operation(inputs: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    return _forward(inputs, kept, kind)


@torch.library.custom_op("velatura::narrow_product_back", mutates_args=())
def _operation_back(grad: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    return grad @ _widened(kept, kind, grad.dtype)


@_operation.register_fake
def _(inputs: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    return inputs.new_empty(*inputs.shape[:-1], _shaped(kept, kind).shape[0])


@_operation_back.register_fake
def _(grad: Tensor, kept: list[Tensor], kind: str) -> Tensor:
    return grad.new_empty(*grad.shape[:-1], _shaped(kept, kind).shape[1])


def _shaped(kept: list[Tensor], kind: str) -> Tensor:
    """The one of what is kept that has the weight's shape (out, in)."""
    return kept[-1] if kind == "nf4" else kept[0]


def _remember(ctx: Any, inputs: tuple[Tensor, list[Tensor], str], output: Tensor) -> None:
    _, kept, ctx.kind = inputs
    ctx.save_for_backward(*kept)


def _back(ctx: Any, grad: Tensor) -> tuple[Tensor, list[None], None]:
    kept = [*ctx.saved_tensors]
    return _operation_back(grad, kept, ctx.kind), [None] * len(kept), None


_operation.register_autograd(_back, setup_context=_remember)


# A product in float8.

_FEWEST_ROWS = 17  # below, to widen the weight costs nothing beside it, and not every kernel takes so few


class _ScaledLinear(torch.autograd.Function):
    """inputs @ weight.T in float8: inputs (..., in) rounded by row, weight bytes (out, in) with a scale (out, 1).

    In a compiled block the rounding is the compiler's, which makes one pass of it; the product alone is an operation.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, narrow: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(narrow, scale)
        flat = inputs.reshape(-1, inputs.shape[-1])
        largest = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / _LARGEST["fp8"]  # (rows, 1)
        rounded = (flat / largest.to(flat.dtype)).clamp(-_LARGEST["fp8"], _LARGEST["fp8"]).to(_E4M3)
        product: Tensor = _scaled_product(rounded, largest, narrow, scale)
        return product.view(*inputs.shape[:-1], len(narrow)).to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _operation_back(grad, [*ctx.saved_tensors], "fp8"), None, None


@torch.library.custom_op("velatura::scaled_product", mutates_args=())
def _scaled_product(rounded: Tensor, largest: Tensor, narrow: Tensor, scale: Tensor) -> Tensor:
    """(rows, out) in bfloat16."""
    by_row = functional.ScalingType.RowWise
    # Sums as the tensor cores make them: exact sums take longer, and both factors have three bits.
    product: Tensor = functional.scaled_mm(
        rounded, narrow.view(_E4M3).t(), largest, by_row, scale.t(), by_row,
        output_dtype=torch.bfloat16, use_fast_accum=True,
    )  # fmt: skip
    return product


@_scaled_product.register_fake
def _(rounded: Tensor, largest: Tensor, narrow: Tensor, scale: Tensor) -> Tensor:
    return rounded.new_empty(len(rounded), len(narrow), dtype=torch.bfloat16)


# A weight that waits on the CPU.


def _fetched(inputs: Tensor, fetch: Callable[[torch.dtype, torch.device], Tensor], bias: Tensor | None) -> Tensor:
    product: Tensor = _FetchedLinear.apply(inputs.to(_dtype(inputs)), fetch)
    return _biased(product, bias)


class _FetchedLinear(torch.autograd.Function):
    """A product with a weight that both directions fetch."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, fetch: Callable[[torch.dtype, torch.device], Tensor]) -> Tensor:
        ctx.fetch = fetch
        return functional.linear(inputs, fetch(inputs.dtype, inputs.device))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.fetch(grad.dtype, grad.device), None


class _FetchedConv2d(torch.autograd.Function):
    """A convolution with a weight that both directions fetch."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FetchedConv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, inputs.shape
        return functional.conv2d(inputs, layer.fetch(inputs.dtype, inputs.device), None, *_geometry(layer))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return conv2d_input(ctx.shape, ctx.layer.fetch(grad.dtype, grad.device), grad, *_geometry(ctx.layer)), None


def _geometry(layer: nn.Conv2d) -> tuple[Any, Any, Any, int]:
    return layer.stride, layer.padding, layer.dilation, layer.groups


class FetchedLinear(nn.Linear):
    """A frozen linear layer whose weight waits on the CPU; see `fetching`."""

    ring: Ring

    def fetch(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.ring.take(self).to(device, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return _fetched(inputs, self.fetch, self.bias)


class FetchedConv2d(nn.Conv2d):
    """A frozen convolution whose weight waits on the CPU; see `fetching`."""

    ring: Ring

    def fetch(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.ring.take(self).to(device, dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        product: Tensor = _FetchedConv2d.apply(inputs.to(_dtype(inputs)), self)
        return product if self.bias is None else product + self.bias.to(product.dtype)[:, None, None]


def keep_on_cpu(layers: Sequence[nn.Linear | nn.Conv2d], device: torch.device, part_bytes: int = PART_BYTES) -> Ring:
    """Keep these frozen layers' weights in the CPU's memory, in a ring that brings them to the device.

    A layer changes its class, so that whoever holds it need not be told and whoever computes with a plain layer's
    weight sees that it is none.
    """
    ring = Ring(layers, device, part_bytes)
    for layer in layers:
        if not isinstance(layer, NarrowLinear):
            layer.__class__ = FetchedLinear if isinstance(layer, nn.Linear) else FetchedConv2d
        layer.ring = ring  # type: ignore[assignment]
    return ring
