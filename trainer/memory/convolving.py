"""Frozen 3 x 3 convolutions over few places, computed on CPUs as one matrix product in bfloat16.

oneDNN lays a convolution's weights out anew at every call, 59 MB for 2560 x 1280 channels, which over few places costs
more than the products. As a product of the nine shifted inputs side by side with the weights in channels-last order,
read as they lie, two cores with AMX take, ms forward + backward, convolution / product:

    1280 -> 1280 over  8 x  8     3.4 +  7.8  /  1.8 + 2.0
    2560 -> 1280 over  8 x  8    20.2 + 33.2  /  3.7 + 4.2
    1280 -> 1280 over 16 x 16     5.6 +  9.9  /  4.1 + 4.6
    2560 -> 1280 over 16 x 16    23.8 + 41.1  /  9.0 + 9.2
     640 ->  640 over 32 x 32     3.3 +  3.6  /  7.5 + 3.9

`velatura bench train --without products` leaves it out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer import forwards
from trainer.memory import mechanics

_MOST_PLACES = 256  # batch x height x width
_FEWEST_WEIGHTS = 9 << 20  # of about 1024 x 1024 channels


class _Product(torch.autograd.Function):
    """x (N, C, h, w), weight (O, C, 3, 3), bias (O,) or None -> (N, O, h, w).

    The weight is in channels-last order and has no gradient.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        num, channels, height, width = x.shape
        # Row n of `columns` is what the kernel sees around place n: nine places, C numbers each.
        padded = nn.functional.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1)  # (N, h + 2, w + 2, C)
        shifted = [
            padded[:, row : row + height, column : column + width].reshape(-1, channels)
            for row in range(3)
            for column in range(3)
        ]
        flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)  # (O, 9 C), a view
        columns = torch.cat(shifted, 1)  # (N h w, 9 C)
        out = columns @ flat.T if bias is None else torch.addmm(bias, columns, flat.T)
        context.save_for_backward(weight)
        context.shape = x.shape
        return out.view(num, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = context.saved_tensors
        num, channels, height, width = context.shape
        flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))  # (N h w, O)
        # The transpose: what a place gave to each of the nine is added up where it was read; the rim was padding.
        parts = (rows @ flat).view(num, height, width, 3, 3, channels)
        total = torch.zeros(num, height + 2, width + 2, channels)  # float32: nine bfloat16 numbers are added up
        for row in range(3):
            for column in range(3):
                total[:, row : row + height, column : column + width] += parts[:, :, :, row, column]
        return total[:, 1:-1, 1:-1].to(gradient.dtype).permute(0, 3, 1, 2), None, None


def lay_out(model: nn.Module) -> None:
    """Put frozen convolutions in channels-last order, which they compute in anyway, and make products of some.

    An adapter's own convolutions stay as PEFT reads them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.requires_grad:
            # What is known of a weight by its address is forgotten with the address.
            before = module.weight.data
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if module.weight.data_ptr() != before.data_ptr():
                mechanics.forget(before)
    as_products(model)


def as_products(model: nn.Module) -> None:
    """Compute the model's convolutions so wherever it is the faster way; their weights are in channels-last order."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _can(module):
            forwards.wrap(module, "products", partial(_forward, module))


def _can(module: nn.Conv2d) -> bool:
    weight = module.weight
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
    usual = geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and module.padding_mode == "zeros"
    frozen = not weight.requires_grad and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    large = weight.numel() >= _FEWEST_WEIGHTS and weight.is_contiguous(memory_format=torch.channels_last)
    return usual and frozen and large


def _forward(module: nn.Conv2d, original: forwards.Forward) -> forwards.Forward:
    def forward(x: Tensor) -> Any:
        if x.dtype != module.weight.dtype or x.shape[0] * x.shape[2] * x.shape[3] > _MOST_PLACES:
            return original(x)
        return _Product.apply(x, module.weight, module.bias)

    return forward
