"""Every memory setting is measured by its effect in a run that `session.start` makes: what is kept for backward, where
weights lie and in how many bits, how many pictures come at once, which kernels compute. A field without a measured
effect fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import plain
from trainer import loop, presets, session
from trainer.config import MemoryConfig, TrainConfig
from trainer.events import Finished, Warned
from trainer.memory import compiling, fetching, frozen, ladder, quantising
from trainer.training_model import TrainingModel

ROOT = Path(__file__).parents[1]


@dataclass
class Measured:
    """What was seen of a run."""

    kept_bytes: int = 0  # for backward, in the last step
    rows: set[int] = field(default_factory=set)  # pictures the denoiser had at once in a step
    kinds: dict[str, int] = field(default_factory=dict)  # weights of the denoiser's frozen linear layers, by dtype
    regions: int = 0  # calls of compiled code
    fused_attention: int = 0  # calls of PyTorch's fused kernel
    rings: list[fetching.Ring] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)  # where encoders were brought or sent, in this order
    events: list[Any] = field(default_factory=list)


@pytest.fixture
def run(
    tiny: Path, tmp_path: Path, draw_dots: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Measured]:
    """`run(micro_batch=1)`: three steps of four pictures of 64 px with these memory settings, and what was seen of
    them.
    """
    pictures = draw_dots(tmp_path / "dots", "a {colour} dot")

    def config(settings: dict[str, Any]) -> TrainConfig:
        values: dict[str, Any] = {
            "base": str(tiny), "resolution_px": 64, "max_steps": 3, "batch_size": 4, "checkpoint_every_steps": 3,
            "preview_every_steps": 0, "dtype": "float32",
            "data.folder": str(pictures), "data.max_upscale": 4.0, "adapter.rank": 4, "adapter.alpha": 4,
            "device": "cpu",
        }  # fmt: skip
        return presets.load(plain.CHARACTER, values | {f"memory.{name}": value for name, value in settings.items()})

    def measure(number: int = 0, **settings: Any) -> Measured:
        seen = Measured()
        _watch(seen, monkeypatch)
        made, stream = session.start(config(settings), tmp_path / f"run{number}", "x", None)
        seen.events = list(stream)
        assert isinstance(seen.events[-1], Finished)
        monkeypatch.undo()
        return seen

    return measure


def _watch(seen: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure at the seams of the run's own steps; nothing of what they do is replaced."""
    learn, keep = loop.learn, frozen.keep_on_cpu

    def measured(studio: TrainingModel, step: int) -> Any:
        denoiser, kept = studio.denoiser, [0]
        handle = denoiser.register_forward_pre_hook(
            lambda module, args, kwargs: seen.rows.add(_rows(args, kwargs)), with_kwargs=True
        )

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[0] += tensor.nbytes
            return tensor

        with (
            torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            result = learn(studio, step)
        handle.remove()
        names = [event.name for event in profile.events()]
        seen.kept_bytes = kept[0]
        seen.fused_attention = names.count("aten::scaled_dot_product_attention")
        seen.regions = sum(name.startswith("Torch-Compiled Region") for name in names)
        seen.kinds = {}
        for layer in denoiser.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
                kind = "4 bits" if isinstance(layer, frozen.NF4Linear) else str(layer.weight.dtype)
                seen.kinds[kind] = seen.kinds.get(kind, 0) + 1
        return result

    def kept_on_cpu(*args: Any) -> fetching.Ring:
        seen.rings.append(keep(*args))
        return seen.rings[-1]

    to = nn.Module.to

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if type(module).__name__ in ("CLIPTextModel", "AutoencoderKL"):
            seen.moved += [f"{type(module).__name__} to {args[0]}"]
        return to(module, *args, **kwargs)

    monkeypatch.setattr(loop, "learn", measured)
    monkeypatch.setattr(frozen, "keep_on_cpu", kept_on_cpu)
    monkeypatch.setattr(nn.Module, "to", moved)


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return len(args[0] if args else kwargs["sample"])


def budget(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    warnings = [event.message for event in run(budget_gib=0.01).events if isinstance(event, Warned)]
    assert any("memory.budget_gib" in line for line in warnings) and not [
        event for event in run(1).events if isinstance(event, Warned)
    ]


def quantise(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run().kinds
    assert set(whole) == {"torch.float32"}
    for number, (kind, wanted) in enumerate({"int8": "torch.int8", "fp8": "torch.uint8", "nf4": "4 bits"}.items()):
        if kind != "nf4" or quantising.has_nf4():
            assert run(1 + number, quantise=kind).kinds[wanted] > whole["torch.float32"] / 2


def checkpointing(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(gradient_checkpointing=True).kept_bytes < 0.5 * run(1).kept_bytes


def micro_batch(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    assert (run(micro_batch=1).rows, run(1).rows) == ({1}, {4})


def attention(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plainly = run(attention="fused"), run(1, attention="plain")
    assert fused.fused_attention > 0 and plainly.fused_attention == 0


def offload(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both memories are the CPU's here: what is sent where, and what is fetched, is seen from the calls; places on a
    GPU: tests/gpu.
    """
    with monkeypatch.context() as patch:
        patch.setattr(ladder, "can_offload", lambda device: True)
        whole = run()
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    encoders = run(1, offload="encoders")
    assert all(
        encoders.moved.count(f"{part} to cpu") > whole.moved.count(f"{part} to cpu")
        for part in ("CLIPTextModel", "AutoencoderKL")
    )
    assert not whole.rings and not encoders.rings
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    (ring,) = run(2, offload="blocks").rings
    assert ring.num_fetched > 0 and ring.num_asked > 0


def activations(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a run that sends them away, nothing large but frozen weights reaches a hook around it."""
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    away = run(offload_activations=True)
    assert away.kept_bytes < 0.1 * run(1).kept_bytes


def compiled(run: Callable[..., Measured], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # torch's own compiler: tests/test_compiling.py
    assert run(compile="blocks").regions > 0 and run(1, compile="off").regions == 0


_SHARDED = """
import json, sys
from pathlib import Path
from trainer import distributed, loop, presets, session
from torch.distributed.tensor import DTensor
learn = loop.learn
def looked(studio, step):
    frozen = [one for one in studio.denoiser.parameters() if not one.requires_grad]
    spread = [one for one in frozen if isinstance(one, DTensor)]
    here, whole = sum(one.to_local().numel() for one in spread), sum(one.numel() for one in spread)
    print("SPREAD", len(spread), len(frozen), here, whole, flush=True)
    return learn(studio, step)
loop.learn = looked
config = presets.load(sys.argv[1], {})
_, stream = session.start(config, Path(sys.argv[2]), "x", None, world=distributed.enter())
list(stream)
"""


def shard(
    run: Callable[..., Measured],
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    tmp_path: Path,
    draw_dots: Callable[..., Path],
) -> None:
    values = {
        "base": str(tiny),
        "resolution_px": 32,
        "max_steps": 1,
        "batch_size": 2,
        "preview_every_steps": 0,
        "device": "cpu",
        "memory.shard": True,
    }
    presets.save(
        presets.load(plain.CHARACTER, values | {"data.folder": str(draw_dots(tmp_path / "few", "a {colour} dot"))}),
        tmp_path / "x.toml",
    )
    (tmp_path / "look.py").write_text(_SHARDED)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(tmp_path / "look.py"),
        str(tmp_path / "x.toml"),
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = [
        [int(number) for number in line.split()[1:]] for line in done.stdout.splitlines() if line.startswith("SPREAD")
    ]
    assert len(lines) == 2 and all(spread == frozen > 0 for spread, frozen, _, _ in lines)
    assert sum(local for _, _, local, _ in lines) == lines[0][3], "each process holds its own part"


MEASURES: dict[str, Callable[..., None]] = {
    "budget_gib": budget, "quantise": quantise, "gradient_checkpointing": checkpointing, "micro_batch": micro_batch,
    "offload": offload,
    "attention": attention, "compile": compiled, "offload_activations": activations, "shard": shard,
}  # fmt: skip


@pytest.mark.parametrize("name", MemoryConfig.model_fields)
def test_a_memory_setting_acts_in_a_run(
    name: str,
    run: Callable[..., Measured],
    monkeypatch: pytest.MonkeyPatch,
    tiny: Path,
    tmp_path: Path,
    draw_dots: Callable[..., Path],
) -> None:
    assert name in MEASURES, f"memory.{name} is a new setting: measure what it does in a run"
    more = {"tiny": tiny, "tmp_path": tmp_path, "draw_dots": draw_dots} if name == "shard" else {}
    MEASURES[name](run, monkeypatch, **more)
