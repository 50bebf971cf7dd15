"""Frozen layers in another form: quantised, fetched from the CPU, and attention computed another way. What they compute stays what it was."""

from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import bases, families, memory
from trainer.memory import attention
from trainer.memory import quantising as quantise
from trainer.memory.frozen import NarrowLinear, NF4Linear, full_weight, keep_on_cpu

KINDS = ["int8", "fp8", pytest.param("nf4", marks=pytest.mark.skipif(not quantise.has_nf4(), reason="needs bitsandbytes"))]
WORST = {"int8": 0.01, "fp8": 0.04, "nf4": 0.12}  # relative error of a product


def narrowed(layer: nn.Linear, kind: str) -> nn.Linear:
    return NF4Linear(layer) if kind == "nf4" else NarrowLinear(layer, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_computes_with_its_rounded_weight_and_passes_its_gradient_on(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 128).requires_grad_(False)
    swapped = narrowed(layer, kind)
    inputs, again = (torch.randn(2, 7, 96).requires_grad_() for _ in range(2))
    again.data.copy_(inputs.data)
    outputs, wanted = swapped(inputs), nn.functional.linear(again, full_weight(swapped), layer.bias)
    torch.testing.assert_close(outputs, wanted)
    outputs.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(inputs.grad, again.grad)
    whole = layer(inputs).detach()
    assert float((outputs.detach() - whole).norm() / whole.norm()) < WORST[kind]
    assert swapped.weight.shape == layer.weight.shape and not swapped.weight.is_floating_point()


@pytest.mark.parametrize("kind", KINDS)
def test_quantise_leaves_convolutions_and_embeddings(kind: str, tmp_path: Path) -> None:
    family = families.registry()["sd"]
    unet = bases.open_pipeline(family, family.tiny(tmp_path), "cpu", torch.float32).unet
    before = sum(isinstance(module, nn.Linear) for module in unet.modules())
    count = memory.quantise(unet, kind)
    swapped = [path for path, module in unet.named_modules() if isinstance(module, NarrowLinear | NF4Linear)]
    assert len(swapped) == count and 0 < count < before
    assert not any("embed" in path for path in swapped)
    assert all(module.weight.dtype == torch.float32 for module in unet.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 8, 1, bias=False)], ids=["linear", "conv", "no bias"])
def test_a_layer_whose_weight_waits_on_the_cpu_computes_the_same(layer: nn.Linear | nn.Conv2d) -> None:
    layer.requires_grad_(False)
    inputs = [torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    before = layer(inputs[0])
    before.square().sum().backward()
    keep_on_cpu(layer)
    after = layer(inputs[1])
    after.square().sum().backward()
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


@pytest.mark.parametrize(("tokens", "keys"), [(5, 5), (64, 77), (130, 130)])
def test_plain_attention_is_the_fused_one(tokens: int, keys: int) -> None:
    query, key, value = (torch.randn(2, 3, count, 16, dtype=torch.float64) for count in (tokens, keys, keys))
    truth = nn.functional.scaled_dot_product_attention(query, key, value)
    for dtype, worst in ((torch.float32, 1e-6), (torch.bfloat16, 6e-3)):
        parts = [part.to(dtype) for part in (query, key, value)]
        assert float((attention.plain(*parts).double() - truth).norm() / truth.norm()) < worst


def test_auto_is_plain_in_bfloat16_for_few_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = attention.plain
    monkeypatch.setattr(attention, "plain", lambda query, *rest: asked.append(query.shape[-2]) or whole(query, *rest))

    class Layer(nn.Module):
        processor = set_processor = None

        def forward(self, tokens: int, dtype: torch.dtype, mask: torch.Tensor | None = None) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(*(torch.ones(1, 1, tokens, 8, dtype=dtype) for _ in range(3)), attn_mask=mask)

    layer = Layer()
    for way, dtype, wanted in [
        ("auto", torch.float32, []), ("auto", torch.bfloat16, [64]), ("fused", torch.bfloat16, []), ("plain", torch.float32, [64, 400]),
    ]:  # fmt: skip
        asked.clear()
        attention.choose(layer, way, "cpu", dtype)
        layer(64, dtype)
        layer(400, dtype)
        layer(9, dtype, mask=torch.ones(9, 9, dtype=torch.bool))
        assert asked == wanted
