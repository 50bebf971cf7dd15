"""Passes that are recorded and replayed: the same training, bit for bit.

A tape stands for CUDA graphs. As they do, it keeps operations with the very memory they read and wrote, undoes what
recording computed, computes all of it anew at a replay without any Python of ours, and can't read a number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import small_runs
from trainer import bases, checkpoint, families, runs, session
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.events import Step
from trainer.memory import compiling, graphing, ladder
from trainer.training_model import TrainingModel

REPEATED = compiling.repeated


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: set[int] = set()  # storages of its own
        self.before: list[tuple[Tensor, Tensor]] = []  # what recording wrote over

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, schema = kwargs or {}, function._schema
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nin a tape")
        for given, argument in zip(args, schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(given):
                    if tensor.untyped_storage()._cdata not in self.made:
                        self.before.append((tensor, tensor.clone()))
        output = function(*args, **kwargs)
        leaves = output if isinstance(output, (tuple, list)) else [output]
        fresh = [
            leaf
            for leaf, returned in zip(leaves, schema.returns, strict=False)
            if isinstance(leaf, Tensor) and returned.alias_info is None
        ]
        self.made |= {tensor.untyped_storage()._cdata for tensor in fresh}
        self.calls.append((function, args, kwargs, fresh))
        return output

    def undo(self) -> None:
        for tensor, value in self.before[::-1]:
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, fresh in self.calls:
            output = function(*args, **kwargs)
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            if fresh:
                for kept, new in zip(fresh, leaves, strict=True):
                    kept.copy_(new)


class Card:
    """`graphing.Card` of tapes."""

    num_recorded = num_replayed = 0

    def __init__(self, device: str) -> None:
        Card.num_recorded = Card.num_replayed = 0

    def aside(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    def record(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        tape = Tape()
        try:
            with tape:
                losses = compute()
        finally:
            with torch.no_grad():
                tape.undo()
        Card.num_recorded += 1

        def replay() -> None:
            Card.num_replayed += 1
            tape.replay()

        return replay, losses


@pytest.fixture(autouse=True)
def on_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphing, "Card", Card)
    Card.num_recorded = Card.num_replayed = 0
    monkeypatch.setattr(compiling, "repeated", lambda denoiser: [])
    monkeypatch.setattr(compiling, "_against_graphs", lambda settings, device: [])


@pytest.fixture
def config(tiny: Path, tmp_path: Path, draw_dots: Callable[..., Path]) -> Callable[..., TrainConfig]:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot", num=5, wider_px=40)
    same = {"preview_every_steps": 0, "checkpoint_every_steps": 5, "max_steps": 10, "adapter.rank": 4, "device": "cpu"}

    def make(**changes: Any) -> TrainConfig:
        renamed = {key.replace("__", "."): value for key, value in changes.items()}
        return small_runs.config(tiny, folder, **{**same, **renamed})

    return make


def train(config: TrainConfig, parent: Path) -> tuple[dict[str, bytes], list[float]]:
    """The bytes of each tensor of the LoRA, and the losses."""
    run, stream = session.start(config, parent, "x", runs.find_resumable(parent, "x"))
    losses = [event.loss for event in stream if isinstance(event, Step)]
    tensors = load_file(run.lora_file)
    return {name: tensor.flatten().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}, losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2},
        {"memory__micro_batch": 1},
        {"optimizer__name": "adafactor", "optimizer__ema_decay": 0.9},
        {"optimizer__max_weight_norm": 0.01, "objective__loss": "huber", "memory__quantise": "int8"},
        # What is compiled computes attention fused; `auto` is plain for few tokens in bfloat16 on CPUs.
        {"adapter__method": "dora", "dtype": "bfloat16", "memory__attention": "fused"},
        {"dtype": "bfloat16", "memory__attention": "fused", "memory__quantise": "fp8"},
    ],
    ids=str,
)
def test_replayed_passes_train_the_same_bytes(
    changes: dict[str, Any], config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    wanted = train(config(memory__compile="off", **changes), tmp_path / "off")
    assert not Card.num_replayed
    made = train(config(memory__compile="graphs", **changes), tmp_path / "graphs")
    assert made == wanted
    assert Card.num_replayed > Card.num_recorded > 0


def test_compiled_blocks_are_recorded_too(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = train(config(memory__compile="off"), tmp_path / "off")
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "repeated", REPEATED)
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    assert train(config(memory__compile="graphs"), tmp_path / "graphs") == wanted
    assert Card.num_replayed


def test_a_run_that_is_broken_off_goes_on_to_the_same_bytes(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    settings = config(memory__compile="graphs")
    wanted, _ = train(settings, tmp_path / "unbroken")
    _, stream = session.start(settings, tmp_path / "broken", "x", None)
    for event in stream:
        if event.kind == "saved":
            break
    stream.close()
    made, _ = train(settings, tmp_path / "broken")
    assert made == wanted
    saved = checkpoint.load_latest(runs.find_resumable(tmp_path / "broken", "x").checkpoints)[0]  # type: ignore[union-attr]
    assert saved and saved.state["memory"]["compile"] == "graphs"


# What diffusers 0.42 computes of these waits within a pass (tests/test_device_waits.py), which no graph can.
@pytest.mark.parametrize("name", sorted(set(families.registry()) - {"hidream", "lumina2", "chroma", "sd"}))
def test_a_familys_pass_can_be_recorded_and_is_the_same(
    name: str, config: Callable[..., TrainConfig], draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    """At one length of caption: a family that doesn't fill captions up records each length for itself."""
    base, pictures = families.registry()[name].tiny(tmp_path / "base"), draw_dots(tmp_path / "same", "a dot")
    settings = {
        "family": name, "base": str(base), "data__folder": str(pictures), "resolution_px": 64,
        "data__max_upscale": 4.0, "data__flip": False,
        "preview__guidance_rescale": 0.0, "max_steps": 8, "data__caption_dropout": 0.0,
    }  # fmt: skip
    wanted = train(config(memory__compile="off", **settings), tmp_path / "off")
    made = train(config(memory__compile="graphs", **settings), tmp_path / "graphs")
    assert Card.num_replayed
    assert made[1] == pytest.approx(wanted[1], rel=1e-4)


def test_a_pass_that_reads_numbers_is_refused_by_name(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families.registry()["sd"]
    denoise = family.denoise

    def reading(denoiser: Any, noised: Tensor, *others: Any) -> Tensor:
        return denoise(denoiser, noised, *others) if float(noised.sum()) < 1e9 else noised

    monkeypatch.setitem(vars(family), "denoise", reading)
    with pytest.raises(
        ConfigError, match="can't be recorded: operation not permitted when stream is capturing Allowed"
    ):
        train(config(memory__compile="graphs"), tmp_path)


def test_a_shape_that_can_not_be_recorded_among_others_is_computed_as_written(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = train(config(memory__compile="off"), tmp_path / "off")
    record = Card.record

    def failing(card: Card, compute: Callable[[], Tensor]) -> Any:
        if Card.num_recorded:
            raise RuntimeError("operation not permitted when stream is capturing")
        return record(card, compute)

    monkeypatch.setattr(Card, "record", failing)
    assert train(config(memory__compile="graphs"), tmp_path / "graphs") == wanted
    assert Card.num_recorded == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter__dropout": 0.1},
        {"adapter__text_encoder": True},
        {"inversion__token": "a"},
        {"objective__preservation_weight": 1.0, "data__class_caption": "dot"},
    ],
    ids=str,
)
def test_what_draws_or_reads_within_a_pass_is_refused(
    changes: dict[str, Any], config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "hardware", lambda *asked: ("cuda", torch.float32))
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "")
    (problem,) = ladder.check(config(memory__compile="graphs", **changes))
    assert next(iter(changes)).replace("__", ".") in problem and "'graphs'" in problem
    assert not ladder.check(config(memory__compile="blocks", **changes))


def test_parameters_that_an_optimizer_moves_are_recorded_anew(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(memory__compile="graphs", data__flip=False, max_steps=24)
    wanted, limit, counts = train(settings, tmp_path / "unmoved"), TrainingModel.limit_norms, list[int]()
    num_unmoved = Card.num_recorded

    def moving(model: TrainingModel) -> None:
        limit(model)
        counts.append(0)
        if len(counts) == 12:
            for parameter in model.trained.values():
                parameter.data = parameter.data.clone()

    monkeypatch.setattr(TrainingModel, "limit_norms", moving)
    assert train(settings, tmp_path / "moved") == wanted
    assert Card.num_recorded > num_unmoved


def test_shapes_beyond_the_most_are_computed_as_written(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = train(config(memory__compile="off"), tmp_path / "off")
    monkeypatch.setattr(graphing, "MOST", 1)
    assert train(config(memory__compile="graphs"), tmp_path / "graphs") == wanted
    assert Card.num_recorded == 1
