"""Frozen layers in another form: quantised, fetched from the CPU, and attention computed another way. What they compute
stays what it was.
"""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import bases, families
from trainer.memory import attention
from trainer.memory import quantising as quantise
from trainer.memory.fetching import keep_on_cpu
from trainer.memory.frozen import NarrowLinear, NF4Linear, full_weight

KINDS = [
    "int8",
    "fp8",
    pytest.param("nf4", marks=pytest.mark.skipif(not quantise.has_nf4(), reason="needs bitsandbytes")),
]
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
    count = quantise.quantise(unet, kind)
    swapped = [path for path, module in unet.named_modules() if isinstance(module, NarrowLinear | NF4Linear)]
    assert len(swapped) == count and 0 < count < before
    assert not any("embed" in path for path in swapped)
    assert all(module.weight.dtype == torch.float32 for module in unet.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 8), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 8, 1, bias=False)],
    ids=["linear", "conv", "no bias"],
)
def test_a_layer_whose_weight_waits_on_the_cpu_computes_the_same(layer: nn.Linear | nn.Conv2d) -> None:
    layer.requires_grad_(False)
    inputs = [torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    before = layer(inputs[0])
    before.square().sum().backward()
    keep_on_cpu([layer], torch.device("cpu"))
    after = layer(inputs[1])
    after.square().sum().backward()
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_weights_of_a_ring_come_ahead_of_their_use_forward_and_backward(checkpointed: bool) -> None:
    """Four parts, three places for them; from the second step on nothing is waited for."""
    torch.manual_seed(0)
    convolved = nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten()
    blocks = [
        copy.deepcopy(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), *convolved)) for _ in range(4)
    ]
    model = nn.Sequential(*blocks).requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    given = torch.randn(3, 16)

    def step() -> torch.Tensor:
        inputs = given.clone().requires_grad_()
        hidden = inputs
        for block in blocks:
            hidden = (
                torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False) if checkpointed else block(hidden)
            )
        hidden.square().sum().backward()
        return inputs.grad

    wanted = step()
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    ring = keep_on_cpu(layers, torch.device("cpu"), part_bytes=2 * layers[0].weight.nbytes + 99)
    for number in range(4):
        waited = ring.num_fetched, ring.num_asked, ring.num_foreseen
        torch.testing.assert_close(step(), wanted, rtol=0, atol=0)
        if number > 1:
            assert ring.num_foreseen - waited[2] == ring.num_asked - waited[1] > 0 and ring.num_fetched > waited[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_compiles_whole_and_keeps_nothing_wide_for_backward(kind: str) -> None:
    torch.manual_seed(0)
    layer = narrowed(nn.Linear(128, 64).requires_grad_(False), kind)
    model = nn.Sequential(layer, nn.GELU())
    inputs, again = (torch.randn(8, 128, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    model(inputs).sum().backward()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kept: list[int] = []
    numbers = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.is_floating_point() * tensor.nbytes) or tensor, lambda tensor: tensor
    )
    with numbers:
        compiled(again).sum().backward()
    torch.testing.assert_close(again.grad, inputs.grad)
    assert max(kept) < 64 * 128 * 4, "the widened weight is not among what is kept"


def test_fp8_multiplied_as_it_is_is_near_the_widened_product_and_its_gradient_is_exact() -> None:
    torch.manual_seed(0)
    layer = NarrowLinear(nn.Linear(128, 64).requires_grad_(False), "fp8")
    inputs, again = (
        torch.randn(2, 8, 128, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_() for _ in range(2)
    )
    wide = layer(inputs)
    layer.scales_inputs = True
    scaled = layer(again)
    assert scaled.dtype == torch.bfloat16 and 0 < float((scaled - wide).float().norm() / wide.float().norm()) < 0.05
    wide.sum().backward()
    scaled.sum().backward()
    torch.testing.assert_close(again.grad, inputs.grad, rtol=0, atol=0)


@pytest.mark.parametrize(("tokens", "keys"), [(5, 5), (64, 77), (130, 130)])
def test_plain_attention_is_the_fused_one(tokens: int, keys: int) -> None:
    query, key, value = (torch.randn(2, 3, count, 16, dtype=torch.float64) for count in (tokens, keys, keys))
    truth = nn.functional.scaled_dot_product_attention(query, key, value)
    for dtype, worst in ((torch.float32, 1e-6), (torch.bfloat16, 6e-3)):
        parts = [part.to(dtype) for part in (query, key, value)]
        assert float((attention.plain(*parts).double() - truth).norm() / truth.norm()) < worst


def test_auto_is_plain_in_bfloat16_for_few_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    whole = attention.plain
    monkeypatch.setattr(attention, "plain", lambda query, *rest: lengths.append(query.shape[-2]) or whole(query, *rest))

    class Layer(nn.Module):
        processor = set_processor = None

        def forward(self, tokens: int, dtype: torch.dtype, mask: torch.Tensor | None = None) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(
                *(torch.ones(1, 1, tokens, 8, dtype=dtype) for _ in range(3)), attn_mask=mask
            )

    layer = Layer()
    for way, dtype, wanted in [
        ("auto", torch.float32, []), ("auto", torch.bfloat16, [64]), ("fused", torch.bfloat16, []),
        ("plain", torch.float32, [64, 400]),
    ]:  # fmt: skip
        lengths.clear()
        attention.choose(layer, way, "cpu", dtype)
        layer(64, dtype)
        layer(400, dtype)
        layer(9, dtype, mask=torch.ones(9, 9, dtype=torch.bool))
        assert lengths == wanted
