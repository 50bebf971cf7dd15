"""Frozen layers in another form: quantised, fetched from the CPU, and attention computed another way. What they compute
stays what it was.
"""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from trainer import bases, families
from trainer.memory import attention, fetching
from trainer.memory import quantising as quantise
from trainer.memory.frozen import NarrowLinear, NF4Linear, full_weight, keep_on_cpu

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
def test_weights_of_a_ring_come_ahead_of_their_use_forward_and_backward(
    checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four parts, three places for them; from the second step on nothing is waited for."""
    monkeypatch.setattr(fetching, "_MOST", 3)
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


def fed(sizes: list[int], part_bytes: int) -> tuple[fetching.Ring, list[nn.Linear]]:
    """A ring for layers of so many numbers, and the layers."""
    layers = [nn.Linear(size, 1, bias=False).requires_grad_(False) for size in sizes]
    return keep_on_cpu(layers, torch.device("cpu"), part_bytes), layers


def checkpointed_step(ring: fetching.Ring, blocks: list[list[nn.Linear]]) -> None:
    """Forward; then, from the last block on, a block's forward again and its backward."""
    for layer in itertools.chain(*blocks):
        ring.take(layer)
    for block in reversed(blocks):
        for layer in [*block, *reversed(block)]:
            ring.take(layer)


def test_backward_finds_the_block_that_was_just_computed_again() -> None:
    """Each part is fetched once forwards and once backwards; a ring of three fetched most of them three times."""
    ring, layers = fed([256] * 5 * 40, 4 * 256)  # forty blocks of five layers, each a part of its own
    blocks = [layers[start : start + 5] for start in range(0, len(layers), 5)]
    for _ in range(3):
        before = ring.num_fetched, ring.num_asked, ring.num_foreseen
        checkpointed_step(ring, blocks)
    fetched, asked, foreseen = (
        now - then for now, then in zip((ring.num_fetched, ring.num_asked, ring.num_foreseen), before, strict=True)
    )
    assert fetched <= 2 * len(layers) and foreseen == asked


def test_parts_come_several_ahead_and_what_computes_stays_whole() -> None:
    ring, layers = fed([64] * 30, 4 * 64)
    ring.take(layers[0])
    assert ring.num_fetched == 4, "three more are on their way while the first computes"
    before, given = layers[0], ring.take(layers[0])
    for layer in [*layers, *reversed(layers)]:
        now = ring.take(layer)
        assert torch.equal(given, before.weight) and torch.equal(now, layer.weight)
        before, given = layer, now


def test_a_large_layer_takes_no_more_places_than_before() -> None:
    assert fetching.slots(96 << 20, 300) == fetching.slots(113 << 20, 300) == 8
    assert fetching.slots(1 << 30, 300) == 3 and fetching.slots(96 << 20, 2) == 2


def test_memory_of_the_parts_is_asked_for_in_few_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch rounds each pinned piece up to a power of two: 304 parts of FLUX.1 took 32 GiB for 22."""
    made: list[int] = []
    empty = torch.empty

    def counted(size: int, **values: object) -> torch.Tensor:
        made.append(size)
        return empty(size, **values)

    monkeypatch.setattr(fetching, "_PINNED_BYTES", 1 << 16)
    monkeypatch.setattr(fetching.torch, "empty", counted)
    sizes = [75 * 64, 94 * 64, 57 * 64, 113 * 64] * 60
    parts = [*fetching._buffers(sizes, False)]
    assert [len(part) for part in parts] == sizes
    assert sum(1 << (size - 1).bit_length() for size in made if size) < 1.1 * sum(sizes)
    starts = sorted((part.data_ptr(), part.data_ptr() + len(part)) for part in parts)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(starts)), "no part lies in another"


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


@pytest.mark.parametrize("compiled", [False, True])
def test_fp8_multiplied_as_it_is_is_near_the_widened_product_and_its_gradient_is_exact(compiled: bool) -> None:
    torch.manual_seed(0)
    layer = NarrowLinear(nn.Linear(128, 64).requires_grad_(False), "fp8")
    inputs, again = (
        torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_() for _ in range(2)
    )
    wide = layer(inputs)
    layer.scales_inputs = True
    graphs: list[torch.fx.GraphModule] = []

    def collected(graph: torch.fx.GraphModule, given: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=collected)
    scaled = (torch.compile(layer, fullgraph=True, backend=backend) if compiled else layer)(again)
    assert scaled.dtype == torch.bfloat16
    assert 0 < float((scaled.detach() - wide.detach()).float().norm() / wide.detach().float().norm()) < 0.05
    wide.sum().backward()
    scaled.sum().backward()
    torch.testing.assert_close(again.grad, inputs.grad, rtol=0, atol=0)
    if compiled:
        names = [str(node.target) for node in graphs[0].graph.nodes]
        assert any("amax" in name for name in names), "the compiler sees the rounding, and can make one pass of it"
        assert any("velatura.scaled_product" in name for name in names)


@pytest.mark.parametrize(("rows", "is_scaled"), [(1, False), (16, False), (17, True)])
def test_few_rows_are_multiplied_with_the_widened_weight(rows: int, is_scaled: bool) -> None:
    """Kernels for float8 may refuse a single row, which a norm's own layer is given at batch 1."""
    layer = NarrowLinear(nn.Linear(128, 64).requires_grad_(False), "fp8")
    inputs = torch.randn(rows, 128).bfloat16()
    wide = layer(inputs)
    layer.scales_inputs = True
    assert torch.equal(layer(inputs), wide) != is_scaled


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
