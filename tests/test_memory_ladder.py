"""What happens when memory runs out: the run climbs the ladder, from what costs time to what costs quality."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import memory_runs
from tests.memory_runs import KINDS, SHORTAGE, losses, train
from trainer import bases, checkpoint, loop, session
from trainer.config import TrainConfig
from trainer.errors import RunError
from trainer.events import Adjusted, Warned
from trainer.memory import ladder, mechanics
from trainer.previews import Previews

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot")


@pytest.fixture
def settings(tiny: Path, pictures: Path) -> Callable[..., TrainConfig]:
    """`settings(max_steps=3)`: a run of four pictures at once on the tiny base."""
    return memory_runs.settings_of(tiny, pictures)


def climbed(device: str, settings, **changes) -> list[str]:
    """What each rung changes, from the lowest to the top."""
    config = settings(**changes)
    now, rungs = config.memory, []
    while rung := ladder.next_rung(now, config, config.batch_size, device):
        rungs += [f"{name}={value}" for name, value in rung[0].model_dump().items() if value != now.model_dump()[name]]
        now = rung[0]
    return rungs


def test_the_ladder_goes_from_what_costs_time_to_what_costs_quality(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "has_nf4", lambda: True)
    first = ["micro_batch=2", "micro_batch=1", "gradient_checkpointing=True"]
    assert climbed("cpu", settings) == [*first, "quantise=int8", "quantise=nf4"]
    assert climbed("cuda", settings) == [*first, "offload=encoders", "offload=blocks", "offload_activations=True"]
    assert climbed("cpu", settings, adapter__init="olora") == first
    for stays in ({"adapter__init": "olora"}, {"adapter__text_encoder": True}):  # whose weights must stay on the GPU
        assert climbed("cuda", settings, **stays)[:5] == [*first, "offload=encoders", "offload_activations=True"]
    monkeypatch.setattr(ladder, "has_nf4", lambda: False)
    assert climbed("cpu", settings) == [*first, "quantise=int8"]


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (SHORTAGE, True),
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling", True),
        ("shapes differ", False),
    ],
)
def test_shortages_are_told_from_other_errors(text: str, short: bool) -> None:
    assert mechanics.is_shortage(RuntimeError(text)) == short
    assert not mechanics.is_shortage(ValueError(text)) and mechanics.is_shortage(MemoryError())


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch):
    """`short_of_memory(until)`: from the third step on memory runs out in the middle of a step until
    `until(studio.memory)` holds.
    """
    real = loop.learn

    def patch(until) -> None:
        def learn(studio, step):
            result = real(studio, step)  # gradients are there when it runs out, as they would be
            if step >= 2 and not until(studio.memory):
                raise RuntimeError(SHORTAGE)
            return result

        monkeypatch.setattr(loop, "learn", learn)

    return patch


def test_a_run_that_runs_out_takes_the_step_again_one_rung_up(short_of_memory, settings, tmp_path: Path) -> None:
    _, whole = train(settings(max_steps=6), tmp_path / "whole")
    short_of_memory(lambda now: now.gradient_checkpointing)
    run, events = train(settings(max_steps=6), tmp_path / "short")
    assert [event.step for event in events if isinstance(event, Adjusted)] == [3, 3, 3]
    assert losses(events) == pytest.approx(losses(whole), abs=1e-5)
    kept = checkpoint.load_latest(run.checkpoints)[0].state["memory"]
    assert kept["micro_batch"] == 1 and kept["gradient_checkpointing"]


@pytest.mark.parametrize("kind", ["int8", KINDS[-1]])
def test_a_base_quantised_on_the_way_is_the_one_a_resumed_run_makes(
    kind: str, short_of_memory, settings, tmp_path: Path
) -> None:
    """NF4 of weights that int8 had rounded would be another base."""
    short_of_memory(lambda now: now.quantise == kind)
    config = settings(max_steps=6, memory__micro_batch=1, memory__gradient_checkpointing=True)
    unbroken, _ = train(config, tmp_path / "unbroken")
    run, stream = session.start(config, tmp_path / "stopped", "x", None)
    for event in stream:
        if event.kind == "saved" and event.step == 4:
            break
    stream.close()
    resumed, _ = train(config, tmp_path / "stopped")
    assert resumed.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


def test_at_the_top_of_the_ladder_the_error_stands(short_of_memory, settings, tmp_path: Path) -> None:
    short_of_memory(lambda now: False)
    with pytest.raises(
        RunError,
        match="memory ran out in step 3, and no memory setting is left .* can't allocate memory.* lower resolution_px",
    ):
        train(settings(memory__micro_batch=1, memory__gradient_checkpointing=True, adapter__init="olora"), tmp_path)


def test_a_base_that_does_not_fit_is_loaded_on_the_cpu_and_fetched(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose base runs out of memory while it is loaded: at the top of the ladder a sentence, else blocks that are
    fetched, as a resumed run does too.
    """
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    real, tried = bases.open_pipeline, []

    def small(family, folder, device, dtype):
        tried.append(device)
        if len(tried) % 2:  # the whole base does not fit, the denoiser in the CPU's memory does
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(family, folder, device, dtype)

    monkeypatch.setattr(bases, "open_pipeline", small)
    with pytest.raises(
        RunError, match="memory ran out while the base was loaded, .* CUDA out of memory.* smaller base"
    ):
        train(settings(adapter__method="dora"), tmp_path / "dora")
    tried.clear()
    run, events = train(settings(), tmp_path / "whole")
    assert [event.message for event in events if isinstance(event, Adjusted)] == [
        "the base waits on the CPU, and its blocks are fetched ahead of their use"
    ]
    assert checkpoint.load_latest(run.checkpoints)[0].state["memory"]["offload"] == "blocks" and len(tried) == 2
    tried.append("")  # which fits at once
    fetched, _ = train(settings(memory__offload="blocks"), tmp_path / "asked")
    (ours, _), (wanted, _) = (checkpoint.load_latest(trained.checkpoints) for trained in (run, fetched))
    assert all(torch.equal(ours.tensors["adapter"][name], tensor) for name, tensor in wanted.tensors["adapter"].items())


_LIMITED = """
import json, resource, sys, threading
from pathlib import Path
from trainer import presets, session
from trainer.config import TrainConfig, parse
config = parse(TrainConfig, json.loads(Path(sys.argv[1]).read_text()), "test")
resource.setrlimit(resource.RLIMIT_AS, (2**40, -1))
run, stream = session.start(config, Path(sys.argv[2]), "x", None)
for event in stream:
    if event.kind == "cached":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[3]) * 2**20, -1))
    if event.kind in ("adjusted", "finished"):
        print(event.kind, getattr(event, "message", ""))
assert threading.active_count() == 1, threading.enumerate()  # one that finds no memory hangs its maker
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_run_that_really_runs_out_climbs_and_finishes(settings, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(32):
        Image.new("RGB", (96, 96), (8 * number, 0, 0)).save(tmp_path / "data" / f"{number}.png")
        (tmp_path / "data" / f"{number}.txt").write_text("red")
    config = settings(max_steps=1, resolution_px=96, batch_size=32, data__folder=str(tmp_path / "data"))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path / "config.json", tmp_path, "500"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = done.stdout.split("\n")
    assert done.returncode == 0, done.stderr
    assert "pictures at once: 16 instead of 32" in lines[0] and lines[-2].startswith("finished")


def test_measuring_halves_what_it_does_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def attempt(size: int) -> str:
        sizes.append(size)
        if size > 2:
            raise MemoryError
        return "done"

    assert mechanics.halving(9, attempt) == "done" and sizes == [9, 4, 2]
    with pytest.raises(MemoryError):
        mechanics.halving(8, lambda size: attempt(9))


def test_a_preview_that_runs_out_is_a_warning(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self, prompt):
        raise RuntimeError(SHORTAGE)

    monkeypatch.setattr(Previews, "draw", draw)
    _, events = train(settings(preview_every_steps=2), tmp_path)
    assert [event for event in events if isinstance(event, Warned) and "can't allocate" in event.message]


def test_a_run_that_holds_more_than_its_budget_says_so_and_changes_nothing(settings, tmp_path: Path) -> None:
    _, events = train(settings(memory__budget_gib=0.001), tmp_path)
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert "more than memory.budget_gib (0.001); --rehearse" in warning
    _, events = train(settings(memory__budget_gib=900), tmp_path / "enough")
    assert not [event for event in events if isinstance(event, Warned)]


def test_a_peak_can_be_measured_anew() -> None:
    held = torch.ones(64 << 20, dtype=torch.uint8)
    before = mechanics.peak_bytes()
    del held
    mechanics.reset_peak()
    assert 0 < mechanics.peak_bytes() <= before
