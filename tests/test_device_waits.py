"""What a training step does never waits for the device: nothing is read from it, and nothing is copied to it that a
step could make there. The meta device stands for a GPU. What diffusers' own models wait for is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import small_runs
from trainer import against_stack, attaching, bases, data, families, loop, methods, optim
from trainer.config import OptimizerConfig, TrainConfig
from trainer.memory import frozen
from trainer.render import folding
from trainer.training_model import TrainingModel

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Waits(TorchDispatchMode):
    """Within it, copies between the CPU and the device that are waited for. Reading a number there raises by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.crossed: list[torch.dtype] = []  # what each tensor that was copied over arrived as

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, output)) if isinstance(leaf, Tensor)]
        # A number of the CPU is handed to a GPU's kernel as a number, as PEFT's scale of LoHa is: only a copy waits.
        kinds = {one.device.type for one in tensors if function in COPIES or one.ndim or one.device.type != "cpu"}
        flags = [*args[2:], *(kwargs or {}).values()]  # of these two operations only non_blocking is true or false
        if function is COPIES[0] and len(kinds) == 2:
            self.crossed.append(output.dtype)
        elif len(kinds) == 2 and function not in COPIES:
            self.found.append(f"{function}: {kinds}")
        if function in COPIES and len(kinds) == 2 and True not in [flag for flag in flags if isinstance(flag, bool)]:
            self.found.append(f"{function}: {kinds}")
        return output


class Made(TorchFunctionMode):
    """Within it, tensors that are made of numbers for the device: on a GPU each is a copy that is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        device = (kwargs or {}).get("device")
        if function in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == "meta":
            self.found.append(function.__name__)
        return function(*args, **(kwargs or {}))


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
    """`step(denoiser)`: a family's own part of a step on the meta device, conditioned on captions of two lengths, and
    its denoiser in place of none.
    """
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
    whole = getattr(pipe, family.denoiser)
    empty, noised, timesteps = Denoiser(whole.config), latents.to("meta"), torch.full((2,), 500.0, device="meta")

    def run(denoiser: nn.Module | None = None) -> Tensor:
        prediction: Tensor = family.denoise(denoiser or empty, noised, timesteps, conditioning)
        return prediction

    yield SimpleNamespace(name=request.param, run=run, whole=whole)


def test_a_familys_part_of_a_step_waits_for_nothing(step: Any) -> None:
    with Waits() as waits:
        step.run()
    assert not waits.found


# What diffusers 0.42 computes on the CPU and sends, or reads of the device, in every pass: a row of zeros for Chroma's
# guidance; which rows are an expert's; the captions' lengths; the longest of them, where captions are filled up.
WAITS_IN_DIFFUSERS = {"chroma", "hidream", "lumina2", "qwen"}


def test_whole_denoisers_wait_for_nothing_that_is_not_known(step: Any) -> None:
    whole = step.whole.to("meta")
    found: list[str] = []
    for _ in range(2):  # tables of positions are sent the first time
        with Made() as made, Waits() as waits:
            try:
                step.run(whole)
                found = made.found + waits.found
            except NotImplementedError as error:  # a number that was read
                found = [str(error)]
    assert bool(found) == (step.name in WAITS_IN_DIFFUSERS), found


# The loop's own part: loss, gradients, optimizer.


@pytest.fixture
def config(tiny: Path, tmp_path: Path, draw_dots: Callable[..., Path]) -> Callable[..., TrainConfig]:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot")
    same = {"preview_every_steps": 0, "checkpoint_every_steps": 9, "device": "cpu"}

    def make(**changes: Any) -> TrainConfig:
        renamed = {key.replace("__", "."): value for key, value in changes.items()}
        return small_runs.config(tiny, folder, **{**same, "dtype": "float32", **renamed})

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective__loss": "huber", "objective__weighting": "min-snr"},
        {"objective__loss": "smooth_l1", "objective__weighting": "debiased", "memory__micro_batch": 1},
        {"objective__preservation_weight": 0.5, "data__class_caption": "dot"},
        {"optimizer__ema_decay": 0.9, "optimizer__max_weight_norm": 0.1, "optimizer__loraplus_ratio": 4.0},
        {"memory__quantise": "int8", "memory__gradient_checkpointing": True},
        {"memory__quantise": "fp8"},
        *({"adapter": {"method": name}} for name in sorted(methods.registry()) if name != "lora"),
    ],
    ids=str,
)
def test_a_step_of_the_loop_waits_for_nothing(
    changes: dict[str, Any], config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(**changes)
    model = TrainingModel.open(settings)
    model.prepare(tmp_path / "cache", data.scan(settings), None)
    attaching.attach(model, None)

    # The model, and what a step is given, as if on a GPU.
    model.denoiser.to("meta")
    model.device, model.trained = "meta", model.parameters()
    sent = lambda tensor: tensor.to("meta", non_blocking=True)  # noqa: E731
    monkeypatch.setattr(model, "_send", sent)
    monkeypatch.setattr(model, "precision", nullcontext)  # there is no autocast on the meta device
    monkeypatch.setattr(frozen, "_dtype", lambda inputs: inputs.dtype)
    model.ahead = {step: loop.prepare(model, step) for step in range(2)}
    optimizer = optim.build(optim.groups(model.trained, settings), settings)
    mean = optim.Mean(model.trained, settings.optimizer.ema_decay) if settings.optimizer.ema_decay else None
    for number in range(2):
        with Made() as made, Waits() as waits:
            learned = loop.learn(model, number)
            gradient = nn.utils.clip_grad_norm_(model.trained.values(), 1.0)
            optimizer.step()
            model.limit_norms()
            length = nn.utils.get_total_norm(model.trained.values())
            if mean:
                mean.update()
        assert not made.found + waits.found
        assert torch.cat([learned.losses, torch.stack([gradient, length])]).is_meta, "read by the loop, in one copy"
        assert all(parameter.grad is not None for parameter in model.trained.values())


# Prodigy finds its rate from two sums that it reads in Python; the others' classes compute on the device alone.
OPTIMIZERS_THAT_READ = {"prodigy"}
OPTIMIZERS = [name for name in get_args(OptimizerConfig.model_fields["name"].annotation) if name != "other"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizers_step_waits_for_nothing_that_is_not_known(name: str, config: Callable[..., TrainConfig]) -> None:
    settings, shapes = config(optimizer__name=name), {"A": (4, 64), "B": (64, 4)}
    factors = {
        f"a.lora_{side}.weight": nn.Parameter(torch.empty(shape, device="meta")) for side, shape in shapes.items()
    }
    optimizer = optim.build(optim.groups(factors, settings), settings)
    for number in range(3):
        for parameter in factors.values():
            parameter.grad = torch.empty_like(parameter)
        optim.set_rate(optimizer, settings, number)
        with Made() as made, Waits() as waits:
            try:
                optimizer.step()
                found = made.found + waits.found  # the first step makes its state
            except (NotImplementedError, RuntimeError) as error:  # a number that was read
                found = [str(error)]
                break
    assert bool(found) == (name in OPTIMIZERS_THAT_READ), found


def test_the_penalty_for_doing_what_the_stack_does_waits_for_nothing() -> None:
    spans = {path: (torch.empty(8, 2, device="meta"), torch.empty(6, 2, device="meta")) for path in "ab"}
    pairs = {path: (torch.empty(3, 6, device="meta"), torch.empty(8, 3, device="meta"), 0.5) for path in "abc"}
    with Waits() as waits:
        assert against_stack.overlap(spans, 2.0, pairs).is_meta
    assert not waits.found


def test_originals_that_wait_on_the_cpu_are_brought_over_as_they_are() -> None:
    """Torch would round them to the sums' dtype on the CPU, and copy that from memory that is not pinned."""
    sums, originals = torch.empty(3, 4, 4, device="meta"), [torch.zeros(4, 4, dtype=torch.bfloat16) for _ in range(3)]
    with Waits() as waits:
        folding._copy([*sums.unbind()], originals)
    assert waits.crossed == [torch.bfloat16] * 3 and not waits.found


def test_waits_are_found() -> None:
    with Waits() as waits:
        torch.zeros(2, 2, device="meta")[:, 1] = torch.arange(2)
        torch.zeros(2).to("meta")
        torch.zeros(2).to("meta", non_blocking=True)
    assert len(waits.found) == 2
