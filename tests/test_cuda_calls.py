"""What is asked of a GPU is asked as torch accepts it: its own checks of arguments, with no GPU behind them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer import bases, run_facts
from trainer.memory import arranging, attention_probe, before_loading, frozen

GIB = 1 << 30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two GPUs that say what they are and nothing else; `limits` is what was set, by number."""
    card = SimpleNamespace(limits={}, major=9, minor=0, name="a card", total_memory=80 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "_get_device_properties", lambda number: card, raising=False)
    monkeypatch.setattr(
        torch.cuda, "cudart", lambda: SimpleNamespace(cudaMemGetInfo=lambda number: (60 * GIB, 80 * GIB))
    )
    monkeypatch.setattr(
        torch._C,
        "_cuda_setMemoryFraction",
        lambda fraction, number: card.limits.update({number: fraction}),
        raising=False,
    )
    return card


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_process_is_held_to_its_budget_on_its_device(device: str, number: int, card: SimpleNamespace) -> None:
    before_loading.limit(device, 20.0)
    assert card.limits == {number: 0.25}
    before_loading.limit(device, 0.0)
    assert card.limits == {number: 1.0}


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_is_asked_with_a_number_or_without(device: str, card: SimpleNamespace) -> None:
    assert run_facts.device_name(device) == "a card" and "a card" in attention_probe.machine(device)
    layer = frozen.NarrowLinear(torch.nn.Linear(32, 32), "fp8")
    for card.minor, wanted in ((0, False), (9, True)):
        card.major = 8
        arranging._scale_inputs(torch.nn.Sequential(layer), device)
        assert layer.scales_inputs is wanted


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)]
)
def test_bfloat16_is_chosen_where_the_card_computes_it_itself(
    capability: tuple[int, int], wanted: torch.dtype, card: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.major, card.minor = capability
    # torch makes a tensor to see whether bfloat16 can be emulated, which every card can.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert bases.hardware("cuda", "auto") == ("cuda", wanted)
