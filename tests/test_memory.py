"""Less memory, the same training: quantised bases, micro-batches, activations computed twice, weights fetched."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests import memory_runs
from tests.memory_runs import KINDS, losses, train
from trainer import attaching, bases, checkpoint
from trainer.config import MemoryConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.memory import arranging, ladder, quantising
from trainer.training_model import TrainingModel

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot")


@pytest.fixture
def settings(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    """`settings(max_steps=3)`: a run of four pictures at once on the tiny base."""
    return memory_runs.settings_of(tiny, pictures)


# A quantised base.


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("int8", "bfloat16"), ("fp8", "float32"), pytest.param("nf4", "bfloat16", marks=KINDS[-1].marks)],
)
def test_a_run_on_a_quantised_base_trains_nearly_what_the_whole_base_would(
    kind: str, dtype: str, settings, tmp_path: Path
) -> None:
    _, whole = train(settings(dtype=dtype), tmp_path / "whole")
    run, events = train(settings(dtype=dtype, memory__quantise=kind), tmp_path / "narrow")
    assert losses(events)[-1] == pytest.approx(losses(whole)[-1], rel=0.02) and events[-1].adapter_norm > 0
    assert losses(events) != losses(whole)


def test_a_preview_on_an_nf4_base_changes_nothing(settings, tmp_path: Path) -> None:
    """bitsandbytes' own layer packs its weights anew on the first pass without gradients."""
    pytest.importorskip("bitsandbytes")
    quiet, _ = train(settings(memory__quantise="nf4", dtype="bfloat16"), tmp_path / "quiet")
    shown, _ = train(settings(memory__quantise="nf4", dtype="bfloat16", preview_every_steps=1), tmp_path / "shown")
    first, second = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (quiet, shown))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_base_alone_can_be_asked_under_a_quantised_adapter(settings) -> None:
    studio = TrainingModel.open(settings(memory__quantise="int8"))
    attaching.attach(studio, None)
    noised, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([500])
    studio._condition = lambda captions, frames: {"encoder_hidden_states": torch.ones(1, 77, 32)}  # type: ignore[method-assign]
    with torch.no_grad():
        before = studio.predict(noised, timesteps, [""])
        for parameter in studio.parameters().values():
            parameter.fill_(0.1)
        changed = studio.predict(noised, timesteps, [""])
        with studio.base():
            torch.testing.assert_close(studio.predict(noised, timesteps, [""]), before, rtol=0, atol=0)
    assert not torch.equal(changed, before)


# What is refused.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory__micro_batch": 5}, ["memory.micro_batch is 5", "batch_size (4)"]),
        ({"memory__offload": "encoders"}, ["memory.offload is 'encoders'", "none"]),
        ({"memory__offload": "blocks"}, ["memory.offload is 'blocks'", "none"]),
        ({"memory__offload_activations": True}, ["memory.offload_activations is on", "leave it off"]),
        (
            {"memory__quantise": "int8", "adapter__init": "pissa"},
            ["memory.quantise is 'int8'", "pissa", "gaussian or eva"],
        ),
    ],
)
def test_memory_settings_that_cannot_be_used_are_refused_by_name(changes: dict, words: list[str], settings) -> None:
    (problem,) = ladder.check(settings(device="cpu", **changes))
    assert all(part in problem for part in words)


@pytest.mark.parametrize(
    ("changes", "clash"),
    [
        ({"adapter__text_encoder": True}, "adapter.text_encoder"), ({"adapter__init": "eva"}, "adapter.init = eva"),
        ({"inversion__token": "mokka"}, "inversion.token"), ({"memory__quantise": "nf4"}, "memory.quantise = nf4"),
    ],
)  # fmt: skip
def test_what_must_stay_on_the_gpu_is_not_fetched(
    changes: dict, clash: str, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    monkeypatch.setattr(ladder, "has_nf4", lambda: True)
    (problem,) = ladder.check(settings(memory__offload="blocks", **changes))
    assert f"memory.offload is 'blocks', which doesn't go with {clash}" in problem


def test_what_can_be_used_is_not_refused(settings) -> None:
    assert (
        ladder.check(settings(memory__quantise="int8", memory__micro_batch=4, memory__gradient_checkpointing=True))
        == []
    )


def test_nf4_without_bitsandbytes_says_how_to_get_it(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ladder, quantising):
        monkeypatch.setattr(module, "has_nf4", lambda: False)
    assert "pip install 'velatura[gpu]'" in ladder.check(settings(memory__quantise="nf4"))[0]
    with pytest.raises(ConfigError, match="velatura"):
        quantising.quantise(nn.Sequential(nn.Linear(4, 4).requires_grad_(False)), "nf4")


# Less at once.


def test_micro_batches_give_the_loss_and_the_weights_of_one_batch(settings, tmp_path: Path) -> None:
    whole, whole_events = train(settings(), tmp_path / "whole")
    parts, parts_events = train(settings(memory__micro_batch=1), tmp_path / "parts")
    assert losses(parts_events) == pytest.approx(losses(whole_events), abs=1e-5)
    first, second = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (whole, parts))
    apart = sum(float((second[name] - tensor).square().sum()) for name, tensor in first.items())
    assert (
        apart**0.5 < 1e-3 * sum(float(tensor.square().sum()) for tensor in first.values()) ** 0.5
    )  # Adam turns the last bits of a tiny gradient into steps


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_computing_activations_twice_gives_the_same_bytes(dropout: float, settings, tmp_path: Path) -> None:
    """With dropout, backward would otherwise recompute without it."""
    kept, kept_events = train(settings(adapter__dropout=dropout), tmp_path / "kept")
    twice, twice_events = train(
        settings(adapter__dropout=dropout, memory__gradient_checkpointing=True), tmp_path / "twice"
    )
    assert losses(twice_events) == losses(kept_events)
    first, second = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (kept, twice))
    assert all(torch.equal(first[name], second[name]) for name in first)


# The base's dtype.


def test_on_a_cpu_only_a_large_base_is_computed_in_bfloat16(
    tmp_path: Path, imprimatura_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    head = json.dumps(
        {"__metadata__": {"format": "pt"}, "weight": {"dtype": "F16", "shape": [20000, 20000], "data_offsets": [0, 0]}}
    ).encode()
    (tmp_path / "unet" / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert bases.num_parameters(tmp_path) == 400_000_000 and 1e7 < bases.num_parameters(imprimatura_folder) < 3e7
    for computes, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(bases, "_computes_bf16", lambda computes=computes: computes)
        assert bases.hardware("cpu", "auto", tmp_path) == ("cpu", wanted)
        assert (
            bases.hardware("cpu", "auto", imprimatura_folder) == bases.hardware("cpu", "auto") == ("cpu", torch.float32)
        )


def test_where_everything_but_the_denoiser_waits_elsewhere_a_preview_brings_it_back(settings) -> None:
    """On one machine without a GPU both places are the CPU: what is moved when, is seen from the calls."""
    moved: list[tuple[str, str]] = []

    class Part(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def to(self, device: str) -> "Part":
            moved.append((self.name, device))
            return self

    unet = Part("unet")
    pipe = SimpleNamespace(
        components={"vae": Part("vae"), "text_encoder": Part("text_encoder"), "unet": unet, "tokenizer": None}
    )
    now = MemoryConfig(offload="encoders")
    studio = SimpleNamespace(
        pipe=pipe, denoiser=unet, trains_text=False, device="cuda", memory=now, fetched=now.offload == "blocks"
    )
    with arranging.drawing(studio):
        assert moved == [("vae", "cuda"), ("text_encoder", "cuda")]
    assert sorted(moved[2:]) == [("text_encoder", "cpu"), ("vae", "cpu")]
