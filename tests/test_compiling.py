"""Compiled blocks: the same training, one compilation a kind of block, taken back where they can't go with what else is
asked.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import plain
from trainer import bases, checkpoint, families, presets, runs, session
from trainer.config import MemoryConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.events import Step, Warned
from trainer.memory import compiling, ladder
from trainer.memory.compiling import Passes
from trainer.rehearsal import measuring

# What diffusers 0.42 itself names as repeated (its models' `_repeated_blocks`), and for the others their block classes
# read from its source.
BLOCKS = {
    "sd": {"BasicTransformerBlock"}, "sdxl": {"BasicTransformerBlock"}, "sd3": {"JointTransformerBlock"},
    "flux": {"FluxTransformerBlock", "FluxSingleTransformerBlock"},
    "flux2": {"Flux2TransformerBlock", "Flux2SingleTransformerBlock"},
    "flux2dev": {"Flux2TransformerBlock", "Flux2SingleTransformerBlock"}, "qwen": {"QwenImageTransformerBlock"},
    "zimage": {"ZImageTransformerBlock"},
    "chroma": {"ChromaTransformerBlock", "ChromaSingleTransformerBlock"}, "lumina2": {"Lumina2TransformerBlock"},
    "sana": {"SanaTransformerBlock"},
    "pixart": {"BasicTransformerBlock"},
    "auraflow": {"AuraFlowJointTransformerBlock", "AuraFlowSingleTransformerBlock"}, "hidream": {"HiDreamBlock"},
}  # fmt: skip
LONG = Passes(10_000, 1)


@pytest.fixture
def config(tiny: Path, tmp_path: Path, draw_dots: Callable[..., Path]) -> Callable[..., TrainConfig]:
    """`config(memory__compile="blocks")`: four steps on the tiny base."""
    folder = draw_dots(tmp_path / "dots", "a {colour} dot", wider_px=40)

    def make(**changes: object) -> TrainConfig:
        values = {
            "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 2, "checkpoint_every_steps": 2,
            "preview_every_steps": 4, "preview.steps": 1,
            "preview.prompts": ["a dot"], "learning_rate": 1e-2, "data.folder": str(folder), "adapter.rank": 4,
            "adapter.alpha": 4, "dtype": "float32",
            "preview.guidance_rescale": 0.0,
        }  # fmt: skip
        return presets.load(plain.CHARACTER, values | {key.replace("__", "."): value for key, value in changes.items()})

    return make


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """The graphs that are compiled from here on, forwards and not, by a compiler that only collects them."""
    torch.compiler.reset()
    graphs: list[torch.fx.GraphModule] = []

    def collect(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", collect)
    return graphs


def train(config: TrainConfig, parent: Path) -> tuple[runs.Run, list[float]]:
    run, stream = session.start(config, parent, "x", runs.find_resumable(parent, "x"))
    return run, [event.loss for event in stream if isinstance(event, Step)]


def test_the_blocks_are_those_that_diffusers_repeats(tmp_path: Path) -> None:
    assert BLOCKS.keys() == families.registry().keys(), "a new family: say which blocks of it are compiled"
    for name, family in families.registry().items():
        pipe = bases.open_pipeline(family, family.tiny(tmp_path / name), "cpu", torch.float32)
        blocks = compiling.repeated(getattr(pipe, next(iter(family.components))))
        assert {type(block).__name__ for block in blocks} == BLOCKS[name]


def test_a_kind_of_block_is_compiled_once_for_each_shape_and_trains_the_same(
    compiled: list[torch.fx.GraphModule], config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Four blocks, two shapes of picture: a function made for one layer of one block would be compiled eight times."""
    _, wanted = train(config(memory__compile="off"), tmp_path / "off")
    assert not compiled
    run, losses = train(config(memory__compile="blocks"), tmp_path / "blocks")
    assert len(compiled) == 4, "two levels of the UNet, two buckets; previews and measurements are not compiled"
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert checkpoint.load_latest(run.checkpoints)[0].state["memory"]["compile"] == "blocks"


@pytest.mark.parametrize("changes", [{"memory__quantise": "int8"}, {"memory__gradient_checkpointing": True}], ids=str)
def test_blocks_compile_beside_other_settings(
    changes: dict, compiled: list, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    _, wanted = train(config(memory__compile="off", **changes), tmp_path / "off")
    _, losses = train(config(memory__compile="blocks", **changes), tmp_path / "blocks")
    assert compiled and losses == pytest.approx(wanted, rel=1e-3)


def test_in_bfloat16_too_a_kind_is_compiled_once_for_each_shape(
    compiled: list, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """Attention by another way for few tokens, as `auto` takes it on CPUs, is a function of each layer's own."""
    train(config(memory__compile="blocks", dtype="bfloat16", device="cpu", preview_every_steps=0), tmp_path)
    assert len(compiled) == 4


def test_auto_compiles_nothing_on_a_cpu_and_says_so_in_the_checkpoint(
    compiled: list, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run, _ = train(config(), tmp_path)
    assert not compiled and checkpoint.load_latest(run.checkpoints)[0].state["memory"]["compile"] == "off"


def test_auto_compiles_on_a_gpu_where_the_run_is_long_enough(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "")
    family = families.registry()["sd"]
    unet = bases.open_pipeline(family, tiny, "cpu", torch.float32).unet
    for passes, wanted in (((10, 1), "off"), ((100, 3), "off"), ((100, 4), "blocks"), ((10_000, 1), "blocks")):
        assert compiling.choose(unet, MemoryConfig(), Passes(*passes), lambda: 1, "cuda:0").settings.compile == wanted
        assert all(("forward" in vars(block)) == (wanted == "blocks") for block in compiling.repeated(unet))
    assert compiling.choose(unet, MemoryConfig(offload="blocks"), LONG, lambda: 1, "cuda").settings.compile == "off"
    assert not any("forward" in vars(block) for block in compiling.repeated(unet)), "what was compiled is taken back"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compile": "graphs"}, "graphs"), ({"compile": "blocks", "attention": "plain"}, "memory.attention=plain"),
        ({"compile": "blocks", "shard": True}, "memory.shard"),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_by_name(
    settings: dict, reason: str, config: Callable[..., TrainConfig]
) -> None:
    (problem,) = ladder.check(config(**{f"memory__{name}": value for name, value in settings.items()}))
    assert reason in problem and "memory.compile is" in problem


def test_without_a_compiler_it_is_said_what_is_missing(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"memory\.compile is 'blocks', which needs a C\+\+ compiler"):
        session.start(config(memory__compile="blocks"), tmp_path, "x", None)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "graphs"),
        ({"memory__micro_batch": 1}, "graphs"),
        ({"accumulation": 2}, "graphs"),
        ({"memory__gradient_checkpointing": True}, "blocks"),
        ({"memory__offload": "blocks"}, "off"),
        ({"memory__attention": "plain"}, "off"),
    ],
    ids=str,
)
def test_graphs_give_way_to_what_goes_with_the_other_settings(
    changes: dict[str, object], wanted: str, config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "")
    monkeypatch.setattr(bases, "hardware", lambda *asked: ("cuda", torch.float32))
    asked = config(memory__compile="graphs", **changes)
    problems = ladder.check(asked)
    assert bool(problems) == (wanted != "graphs") and all("memory.compile is 'graphs'" in text for text in problems)
    passes = Passes(asked.max_steps, asked.accumulation * asked.batch_size // (asked.memory.micro_batch or 2))
    chosen = compiling.choose(nn.Sequential(), asked.memory, passes, lambda: 1, "cuda:0")
    assert chosen.settings == asked.memory.model_copy(update={"compile": wanted})


def test_the_ladder_gives_graphs_up_where_they_do_not_go_with_a_rung_and_says_so(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_missing_compiler", lambda device: "")
    monkeypatch.setattr(bases, "hardware", lambda *asked: ("cuda", torch.float32))
    asked = config(memory__compile="graphs")
    now, ways = asked.memory, []
    while rung := ladder.next_rung(now, asked, asked.batch_size, "cuda"):
        before, (now, words) = now, rung
        assert (f"memory.compile is {now.compile}" in words) == (now.compile != before.compile)
        assert not ladder.check(asked.model_copy(update={"memory": now})), "the rehearsal's next try would be refused"
        ways.append(now.compile)
    assert ways[0] == "graphs" and "blocks" in ways and ways[-1] == "off"
    loading = ladder.loading_rung(asked.memory, asked, "cuda")
    assert loading and loading[0].compile == "off"


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("", ""), ("triton", "pip install triton"), ("capability", "Volta"), ("gcc", "a C compiler (gcc or clang)"),
        ("headers", "python3-dev"),
    ],
)  # fmt: skip
def test_auto_leaves_alone_what_a_gpu_machine_cannot_compile(
    lacks: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "find_spec", lambda name: None if lacks == "triton" else name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1) if lacks == "capability" else (7, 0))
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None if lacks == "gcc" else name)
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda *asked: str(tmp_path))
    monkeypatch.setattr(compiling.system, "c_compilers", lambda: ("gcc", "clang"))
    monkeypatch.delenv("CC", raising=False)
    if lacks != "headers":
        (tmp_path / "Python.h").touch()
    assert compiling.is_possible(MemoryConfig(), "cuda:0") == (not lacks)
    problems = compiling.check(MemoryConfig(compile="blocks"), "cuda")
    assert said in "".join(problems) and len(problems) == bool(lacks)


def _broken_compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore of it")


def _broken_program(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    def run(*given: object) -> object:
        raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")

    return types.FunctionType(run.__code__, {"__name__": "torch._inductor.made", "RuntimeError": RuntimeError})


@pytest.mark.parametrize(
    ("compiler", "said"), [(_broken_compiler, "Failed to find C compiler."), (_broken_program, "image is invalid")]
)
def test_a_run_whose_own_choice_does_not_compile_goes_on_without_and_says_so(
    compiler: Callable[..., object],
    said: str,
    config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, wanted = train(config(memory__compile="off"), tmp_path / "off")
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", compiler)
    monkeypatch.setattr(compiling, "is_possible", lambda settings, device: True)
    monkeypatch.setattr(compiling, "_WORTH_PASSES", 1)
    run, stream = session.start(config(), tmp_path / "auto", "x", None)
    events = list(stream)
    (warning,) = [event.message for event in events if isinstance(event, Warned) and "don't work" in event.message]
    assert said in warning and "more of it" not in warning and "memory.compile=off" in warning
    assert [event.loss for event in events if isinstance(event, Step)] == wanted
    assert checkpoint.load_latest(run.checkpoints)[0].state["memory"]["compile"] == "off"
    with pytest.raises(RuntimeError, match=said):  # what was asked for by name is not given up
        train(config(memory__compile="blocks"), tmp_path / "blocks")


def test_the_rehearsal_goes_on_too(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", _broken_compiler)
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiling, "is_possible", lambda settings, device: True)
    for worth in (1, 10_000):  # the run would choose it, or not
        monkeypatch.setattr(compiling, "_WORTH_PASSES", worth)
        warnings = measuring.measure(config(), tmp_path / str(worth)).warnings
        assert any("compiled blocks don't work on this machine (Failed to find C" in warning for warning in warnings)


@pytest.mark.slow
def test_a_compiled_run_that_is_broken_off_goes_on_to_the_same_bytes(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """With torch's own compiler."""
    settings = config(memory__compile="blocks", max_steps=6)
    unbroken, losses = train(settings, tmp_path / "unbroken")
    _, eager = train(config(memory__compile="off", max_steps=6), tmp_path / "eager")
    assert losses == pytest.approx(eager, rel=1e-4)
    run, stream = session.start(settings, tmp_path / "broken", "x", None)
    for event in stream:
        if event.kind == "saved" and event.step == 4:
            break
    stream.close()
    torch.compiler.reset()
    resumed, _ = train(settings, tmp_path / "broken")
    assert resumed.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


def test_blocks_without_attention_are_left_alone() -> None:
    assert compiling.repeated(nn.Sequential(nn.ModuleList([nn.Linear(2, 2)]))) == []
