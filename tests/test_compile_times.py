"""What `memory.compile = auto` goes by: seconds that rehearsals and runs measured of this model on this machine. Only
the question whether the device gains by compiling is answered for it: a CPU doesn't.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import small_runs
from trainer import checkpoint, runs, session
from trainer.config import TrainConfig
from trainer.events import Cached, Finished, Step, Warned
from trainer.memory import compile_times, compiling
from trainer.memory.compile_times import Times
from trainer.rehearsal import describing, measuring

COMPILES_S = 0.4  # each graph, by the compiler of these tests
NUM_GRAPHS = 4  # two levels of the tiny UNet, two sizes of picture


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing was measured, which gains by compiling."""
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiling, "is_possible", lambda settings, device: True)


@pytest.fixture
def slow_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()

    def compiled(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        time.sleep(COMPILES_S)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", compiled)


@pytest.fixture
def config(tiny: Path, tmp_path: Path, draw_dots: Callable[..., Path]) -> Callable[..., TrainConfig]:
    folder = draw_dots(tmp_path / "dots", "a {colour} dot", wider_px=40)
    same = {"preview_every_steps": 0, "dtype": "float32", "adapter.rank": 4, "adapter.alpha": 4, "max_steps": 24}

    def make(**changes: Any) -> TrainConfig:
        renamed = {key.replace("__", "."): value for key, value in changes.items()}
        return small_runs.config(tiny, folder, **{**same, "checkpoint_every_steps": 24, **renamed})

    return make


def known() -> list[Times]:
    file = compile_times.known_file()
    return [Times(**row) for row in json.loads(file.read_text()).values()] if file.exists() else []


def chosen(config: TrainConfig, parent: Path) -> str:
    """What a run that begins says of its choice."""
    _, stream = session.start(config, parent, "x", None)
    said = []
    for event in stream:
        if isinstance(event, Warned) and "memory.compile=auto" in event.message:
            said.append(event.message)
        if isinstance(event, Cached):
            break
    stream.close()
    (sentence,) = said
    return sentence


def test_what_the_rehearsal_measured_decides_for_the_run(
    slow_compiler: None, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    assert "by a rule" in chosen(config(), tmp_path / "before")
    began = time.monotonic()
    rehearsal = measuring.measure(config(accumulation=3), tmp_path / "out")
    took_s = time.monotonic() - began
    (times,) = known()
    assert times.eager_s and times.compiled_s and times.compile_s
    assert NUM_GRAPHS * COMPILES_S <= times.compile_s < took_s
    (said,) = [line for line in rehearsal.warnings if "memory.compile=auto" in line]
    assert "as measured on this machine" in said and "for 72 passes" in said, "24 steps of three batches"
    assert f"{times.compiled_s:.3f} s a pass instead of {times.eager_s:.3f} s" in said
    assert chosen(config(accumulation=3), tmp_path / "after") == said, "the run chooses what its rehearsal said"

    # The same, on a machine that gains a hundredth of a second a pass: it pays from so many passes on.
    (key,) = json.loads(compile_times.known_file().read_text())
    compile_times.keep(key, Times(eager_s=times.compiled_s + 0.01))
    enough = int(times.compile_s / 0.01)
    for steps, wanted in ((enough - 5, "off"), (enough + 5, "blocks")):
        settings = config(max_steps=steps, checkpoint_every_steps=steps)
        assert f"takes {wanted!r}, 0 s faster for {steps} passes" in chosen(settings, tmp_path / wanted)


def test_a_rehearsal_counts_the_compiling_that_its_run_will_do(
    slow_compiler: None, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    rehearsal = measuring.measure(config(memory__compile="blocks"), tmp_path)
    assert rehearsal.compile_s >= NUM_GRAPHS * COMPILES_S and rehearsal.start_s > rehearsal.compile_s
    assert "s of it compiling" in describing.describe(rehearsal)
    assert measuring.measure(config(memory__compile="off"), tmp_path).compile_s == 0


def test_runs_measure_each_its_own_way_and_the_next_one_weighs_both(
    slow_compiler: None, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    took: dict[str, list[float]] = {}
    for way in ("off", "blocks"):
        _, stream = session.start(config(memory__compile=way), tmp_path / way, "x", None)
        took[way] = [event.seconds for event in stream if isinstance(event, Step)]
        (times,) = known()
        assert (times.compiled_s is None) == (way == "off") == (times.compile_s is None)
    assert times.eager_s and min(took["off"]) <= times.eager_s <= max(took["off"])
    assert times.compile_s and NUM_GRAPHS * COMPILES_S <= times.compile_s <= sum(took["blocks"])
    assert "as measured on this machine" in chosen(config(), tmp_path / "auto")
    assert "by a rule" in chosen(config(resolution_px=64, data__max_upscale=4.0), tmp_path / "other sizes")
    assert "by a rule" in chosen(config(adapter__rank=8), tmp_path / "other adapter")


def test_a_resumed_run_goes_on_as_it_began_whatever_was_measured_since(
    slow_compiler: None, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    settings = config(max_steps=4, checkpoint_every_steps=2)
    _, stream = session.start(settings, tmp_path, "x", None)
    for event in stream:
        if event.kind == "saved":
            break
    stream.close()
    compile_times.keep(_key_of(settings, tmp_path), Times(1.0, 0.1, 0.0))
    assert "takes 'blocks'" in chosen(settings, tmp_path / "new")
    run, stream = session.start(settings, tmp_path, "x", runs.find_resumable(tmp_path, "x"))
    events = list(stream)
    assert isinstance(events[-1], Finished)
    assert not [event for event in events if isinstance(event, Warned) and "memory.compile" in event.message]
    saved = checkpoint.load_latest(run.checkpoints)[0]
    assert saved and saved.state["memory"]["compile"] == "off"


def _key_of(config: TrainConfig, parent: Path) -> str:
    """The key under which a run of this config is kept: the one that a rehearsal of it writes."""
    measuring.measure(config, parent / "rehearsed")
    (key,) = json.loads(compile_times.known_file().read_text())
    return str(key)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": {"eager_s": "x"}}', '{"a": {}}'])
def test_a_damaged_file_is_as_none_and_written_anew(content: str) -> None:
    compile_times.known_file().parent.mkdir(parents=True)
    compile_times.known_file().write_text(content)
    assert compile_times.known("a") == Times()
    compile_times.keep("a", Times(eager_s=1.0))
    compile_times.keep("a", Times(compiled_s=0.5, compile_s=3.0))
    assert compile_times.known("a") == Times(1.0, 0.5, 3.0)


def test_a_cpu_says_and_keeps_nothing(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    _, stream = session.start(config(device="cpu"), tmp_path, "x", None)
    assert not [event for event in stream if isinstance(event, Warned) and "memory.compile" in event.message]
    assert not compile_times.known_file().exists()


@pytest.mark.slow
def test_torchs_own_compiler_is_weighed(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    torch.compiler.reset()
    rehearsal = measuring.measure(config(), tmp_path / "out")
    (times,) = known()
    saved_s = times.saved_s(24)
    assert saved_s is not None and times.compile_s
    (said,) = [line for line in rehearsal.warnings if "memory.compile=auto" in line]
    assert f"takes {'blocks' if saved_s > 0 else 'off'!r}, {abs(saved_s):.0f} s faster" in said
