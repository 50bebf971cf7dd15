"""The fused layer gives PEFT's numbers, forwards and backwards, and steps aside wherever it would not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer import methods
from trainer.adapter import ADAPTER, Attachment, attach
from trainer.memory import fused_lora


class Model(nn.Module):
    def __init__(self, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(24, 40, bias=bias, dtype=dtype), nn.Linear(40, 8, bias=bias, dtype=dtype)
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(torch.nn.functional.silu(self.one(x)))


def adapted(bias: bool = True, dtype: torch.dtype = torch.float32, **settings: object) -> tuple[Attachment, Attachment]:
    """The same adapted model twice, the second one fused."""
    torch.manual_seed(0)
    model = Model(bias, dtype)
    method = methods.registry()["lora"]
    config = method.Config(method="lora", rank=4, alpha=6, **settings)
    pair = tuple(attach(copy.deepcopy(model), method, config, ".*(one|two)", 0) for _ in range(2))
    for attachment in pair:
        for number, parameter in enumerate(attachment.parameters().values()):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.2
    return pair[0], pair[1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_output_and_gradients_are_those_of_peft(bias: bool, dtype: torch.dtype, tolerance: float) -> None:
    theirs, ours = adapted(bias, dtype)
    assert fused_lora.fuse(ours.layers.values(), ADAPTER, dtype)
    x = torch.randn(3, 5, 24, dtype=dtype)
    results = []
    for attachment in (theirs, ours):
        inputs = x.clone().requires_grad_()
        out = attachment.model(inputs)
        out.float().square().sum().backward()
        results.append([out, inputs.grad, *(parameter.grad for parameter in attachment.parameters().values())])
    for their, our in zip(*results, strict=True):
        assert our.dtype == their.dtype and our.shape == their.shape
        assert float((our - their).float().norm() / their.float().norm()) < tolerance


def test_switched_off_it_is_the_base_bit_for_bit() -> None:
    theirs, ours = adapted()
    fused_lora.fuse(ours.layers.values(), ADAPTER, torch.float32)
    x = torch.randn(2, 24)
    with ours.off():
        assert torch.equal(ours.model(x), Model.forward(ours.model, x))
        bare = ours.model(x)
    theirs.detach()
    assert torch.equal(bare, theirs.model(x))


def test_layers_with_dropout_stay_pefts() -> None:
    _, ours = adapted(dropout=0.3)
    before = [layer.forward for layer in ours.layers.values()]
    assert not fused_lora.fuse(ours.layers.values(), ADAPTER, torch.float32)
    assert [layer.forward for layer in ours.layers.values()] == before


def test_dora_stays_pefts() -> None:
    method = methods.registry()["dora"]
    attachment = attach(Model(True, torch.float32), method, method.Config(method="dora", rank=4), ".*one", 0)
    assert not fused_lora.fuse(attachment.layers.values(), ADAPTER, torch.float32)
