"""Convolutions as products give the convolution's numbers, and step aside wherever they would not be the faster way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainer.memory import convolving

CHANNELS = 1024


def convolution(bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bias).to(torch.bfloat16).requires_grad_(False)
    return made.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def through(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output (N, C, h, w) and the gradient of x for the same random gradient of it, float32."""
    x = x.detach().requires_grad_()
    output = module(x)
    output.backward(torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype))
    assert x.grad is not None
    return output.detach().float(), x.grad.float()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 6), (1, 16, 16), (1, 1, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution(shape: tuple[int, int, int], bias: bool) -> None:
    ours = convolution(bias)
    exact = convolution(bias).float()
    x = torch.randn(shape[0], CHANNELS, *shape[1:], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    convolving.as_products(ours)
    assert "forward" in vars(ours)
    for output, wanted in zip(through(ours, x), through(exact, x.float()), strict=True):
        assert float((output - wanted).norm() / wanted.norm()) < 4e-3  # bfloat16 keeps 8 bits


def test_over_many_places_it_stays_the_convolution() -> None:
    x = torch.randn(1, CHANNELS, 16, 17).to(torch.bfloat16)
    plain, ours = convolution(), convolution()
    convolving.as_products(ours)
    assert all(torch.equal(output, wanted) for output, wanted in zip(through(ours, x), through(plain, x), strict=True))


def test_what_is_trained_small_or_otherwise_made_is_left_alone() -> None:
    strided = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, stride=2).to(torch.bfloat16)
    small = nn.Conv2d(64, 64, 3, padding=1).to(torch.bfloat16)
    model = nn.ModuleList(
        [
            convolution().requires_grad_(True),
            convolution().float(),
            strided.requires_grad_(False),
            small.requires_grad_(False),
        ]
    )
    convolving.as_products(model)
    assert not any("forward" in vars(module) for module in model)
