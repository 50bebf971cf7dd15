"""What a training step does beside the denoiser never waits for the device: nothing is read from it, and nothing is
copied to it that a step could make there. The meta device stands for a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import against_stack, bases, families
from trainer.training_model import TrainingModel

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(TorchDispatchMode):
    """Within it, copies between the CPU and the device that are waited for. Reading a number there raises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        kinds = {leaf.device.type for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)}
        flags = [*args[2:], *(kwargs or {}).values()]  # of these two operations only non_blocking is true or false
        if function in COPIES and len(kinds) == 2 and True not in [flag for flag in flags if isinstance(flag, bool)]:
            self.found.append(f"{function}: {kinds}")
        return output


class Denoiser(nn.Module):
    """Gives back what it is given, with the real one's config."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer_blocks = self.single_transformer_blocks = nn.ModuleList()

    def forward(self, *inputs: Any, **named: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=inputs[0] if inputs else named["hidden_states"])


@pytest.fixture(scope="module", params=sorted(families.registry()))
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A family's own part of a step on the meta device, conditioned on captions of two lengths."""
    family = families.registry()[request.param]
    pipe = bases.open_pipeline(family, family.tiny(tmp_path_factory.mktemp(request.param)), "cpu", torch.float32)
    with torch.no_grad():
        latents = family.encode_image(pipe, torch.zeros(1, 3, 64, 64)).expand(2, -1, -1, -1)
        captions = ["a dot", "a red dot on a white page, seen from above"]
        texts = dict(zip(captions, family.encode_text(pipe, captions, 1), strict=True))
    model = SimpleNamespace(
        family=family, trains_text=False, device="meta", dtype=torch.float32,
        encoded=SimpleNamespace(conditioning=texts.__getitem__),
    )  # fmt: skip
    model._send = lambda tensor: TrainingModel._send(model, tensor)  # type: ignore[arg-type]
    model._as_computed = lambda tensor: TrainingModel._as_computed(model, tensor)  # type: ignore[arg-type]
    conditioning = TrainingModel._condition(model, captions, torch.tensor([[64, 64, 0, 0, 64, 64]] * 2))  # type: ignore[arg-type]
    denoiser = Denoiser(getattr(pipe, family.denoiser).config)
    noised, timesteps = latents.to("meta"), torch.full((2,), 500.0, device="meta")
    yield lambda: family.denoise(denoiser, noised, timesteps, conditioning)


def test_a_familys_part_of_a_step_waits_for_nothing(step: Any) -> None:
    with Waits() as waits:
        step()
    assert not waits.found


def test_the_penalty_for_doing_what_the_stack_does_waits_for_nothing() -> None:
    spans = {path: (torch.empty(8, 2, device="meta"), torch.empty(6, 2, device="meta")) for path in "ab"}
    pairs = {path: (torch.empty(3, 6, device="meta"), torch.empty(8, 3, device="meta"), 0.5) for path in "abc"}
    with Waits() as waits:
        assert against_stack.overlap(spans, 2.0, pairs).is_meta
    assert not waits.found


def test_waits_are_found() -> None:
    with Waits() as waits:
        torch.zeros(2, 2, device="meta")[:, 1] = torch.arange(2)
        torch.zeros(2).to("meta")
        torch.zeros(2).to("meta", non_blocking=True)
    assert len(waits.found) == 2
