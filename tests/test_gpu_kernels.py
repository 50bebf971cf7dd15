"""Kernels and copies that a GPU alone can prove, on tensors of their own; `make test-gpu` runs these too."""

from __future__ import annotations

import copy
import time
from pathlib import Path

import pytest
import torch

from trainer.memory import attention_probe, frozen

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]
DEVICE = "cuda"


def test_attention_kernels_are_found_that_do_not_fault(tmp_path: Path) -> None:
    """FLUX.1's own shape at 1024 px, which cuDNN's backward dies of on some cards."""
    shapes = [
        attention_probe.Shape(1, 24, 4608, 4608, 128, False, "bfloat16"),
        attention_probe.Shape(1, 10, 4096, 77, 64, False, "bfloat16"),
    ]
    known = tmp_path / "known.json"
    verdict = attention_probe.verdict(shapes, [*attention_probe.TORCH], known, "cuda")
    assert verdict.kernels and all(kernel in attention_probe.TORCH for kernel in verdict.kernels)
    assert not any("flash" in fault or "efficient" in fault for fault in verdict.faults), "the plain way is what faults"
    began = time.monotonic()
    assert attention_probe.verdict(shapes, [*attention_probe.TORCH], known, "cuda") == verdict
    assert time.monotonic() - began < 1, "what was found is not tried again"


def test_what_comes_by_the_ring_is_whole_however_far_the_copies_run_ahead() -> None:
    """Products long enough for copies to overtake them, on memory that other kernels have just left."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(2048, 2048, bias=False).bfloat16().requires_grad_(False) for _ in range(24)]
    given = torch.randn(4096, 2048, device=DEVICE, dtype=torch.bfloat16) / 8

    def forward(blocks: list[torch.nn.Linear]) -> torch.Tensor:
        inputs = given.clone().requires_grad_()
        hidden = inputs
        for block in blocks:
            hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
        hidden.float().square().sum().backward()
        assert inputs.grad is not None
        return inputs.grad

    wanted = forward([copy.deepcopy(layer).to(DEVICE) for layer in layers])
    dirty = torch.full((1 << 28,), 7, device=DEVICE, dtype=torch.uint8)
    dirty.add_(dirty.float().cos().byte())  # still under way when the ring gets its memory
    del dirty
    ring = frozen.keep_on_cpu(layers, torch.device(DEVICE), layers[0].weight.nbytes)
    for _ in range(3):
        assert torch.equal(forward(layers), wanted)
    assert ring.num_fetched > len(layers)
    assert all(layer.weight.is_pinned() for layer in layers)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 17, 40, 4608])
def test_float8_products_take_any_number_of_rows(rows: int, compiled: bool) -> None:
    if torch.cuda.get_device_capability(DEVICE) < (8, 9):
        pytest.skip("this card does not multiply float8")
    torch.manual_seed(0)
    layer = frozen.NarrowLinear(torch.nn.Linear(256, 512, device=DEVICE).requires_grad_(False), "fp8")
    inputs, again = (torch.randn(rows, 256, device=DEVICE).bfloat16() for _ in range(2))
    again.copy_(inputs)
    wide = layer(inputs.requires_grad_())
    layer.scales_inputs = True
    scaled = (torch.compile(layer) if compiled else layer)(again.requires_grad_())
    assert float((scaled - wide).detach().float().norm() / wide.detach().float().norm()) < 0.05
    wide.sum().backward()
    scaled.sum().backward()
    assert inputs.grad is not None and again.grad is not None
    torch.testing.assert_close(again.grad, inputs.grad, rtol=1e-2, atol=1e-2)
