"""Less memory, the same training: quantised bases, micro-batches, activations computed twice, weights fetched, and what happens when it runs out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from tests import plain
from trainer import bases, checkpoint, loop, presets, runs, session
from trainer.config import MemoryConfig
from trainer.errors import ConfigError, RunError
from trainer.events import Adjusted, Finished, Step, Warned
from trainer.memory import arranging, ladder, mechanics, quantising
from trainer.training_model import TrainingModel

ROOT = Path(__file__).parents[1]
KINDS = ["int8", "fp8", pytest.param("nf4", marks=pytest.mark.skipif(not quantising.has_nf4(), reason="needs bitsandbytes"))]
SHORTAGE = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("pictures"), "a {colour} dot")


@pytest.fixture
def settings(tiny: Path, pictures: Path):
    """`settings(max_steps=3)`: a run of four pictures at once on the tiny base."""

    def make(**changes):
        values = {
            "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 4, "checkpoint_every_steps": 2, "preview_every_steps": 0, "preview.steps": 1,
            "preview.prompts": ["a dot"], "learning_rate": 1e-2, "data.folder": str(pictures), "adapter.rank": 4, "adapter.alpha": 4,
        }  # fmt: skip
        return presets.load(plain.CHARACTER, values | {key.replace("__", "."): value for key, value in changes.items()})

    return make


def train(config, parent: Path) -> tuple[runs.Run, list]:
    """The run, finished, and its events."""
    run, stream = session.start(config, parent, "x", runs.find_resumable(parent, "x"))
    told = list(stream)
    assert isinstance(told[-1], Finished)
    return run, told


def losses(told: list) -> list[float]:
    return [event.loss for event in told if isinstance(event, Step)]


# A quantised base.


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "bfloat16"), ("fp8", "float32"), pytest.param("nf4", "bfloat16", marks=KINDS[-1].marks)])
def test_a_run_on_a_quantised_base_trains_nearly_what_the_whole_base_would(kind: str, dtype: str, settings, tmp_path: Path) -> None:
    _, whole = train(settings(dtype=dtype), tmp_path / "whole")
    run, told = train(settings(dtype=dtype, memory__quantise=kind), tmp_path / "narrow")
    assert losses(told)[-1] == pytest.approx(losses(whole)[-1], rel=0.02) and told[-1].adapter_norm > 0
    assert losses(told) != losses(whole)


def test_a_preview_on_an_nf4_base_changes_nothing(settings, tmp_path: Path) -> None:
    """bitsandbytes' own layer packs its weights anew on the first pass without gradients."""
    pytest.importorskip("bitsandbytes")
    quiet, _ = train(settings(memory__quantise="nf4", dtype="bfloat16"), tmp_path / "quiet")
    shown, _ = train(settings(memory__quantise="nf4", dtype="bfloat16", preview_every_steps=1), tmp_path / "shown")
    one, two = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (quiet, shown))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_base_alone_can_be_asked_under_a_quantised_adapter(settings) -> None:
    studio = TrainingModel.open(settings(memory__quantise="int8"))
    studio.attach(None)
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
    ("changes", "said"),
    [
        ({"memory__micro_batch": 5}, ["memory.micro_batch is 5", "batch_size (4)"]),
        ({"memory__offload": "encoders"}, ["memory.offload is 'encoders'", "none"]),
        ({"memory__offload": "blocks"}, ["memory.offload is 'blocks'", "none"]),
        ({"memory__offload_activations": True}, ["memory.offload_activations is on", "leave it off"]),
        ({"memory__quantise": "int8", "adapter__init": "pissa"}, ["memory.quantise is 'int8'", "pissa", "gaussian or eva"]),
    ],
)
def test_memory_settings_that_cannot_be_used_are_refused_by_name(changes: dict, said: list[str], settings) -> None:
    (problem,) = ladder.check(settings(device="cpu", **changes))
    assert all(part in problem for part in said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter__text_encoder": True}, "adapter.text_encoder"), ({"adapter__init": "eva"}, "adapter.init = eva"),
        ({"inversion__token": "mokka"}, "inversion.token"), ({"memory__quantise": "nf4"}, "memory.quantise = nf4"),
    ],
)  # fmt: skip
def test_what_must_stay_on_the_gpu_is_not_fetched(changes: dict, said: str, settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    monkeypatch.setattr(ladder, "has_nf4", lambda: True)
    (problem,) = ladder.check(settings(memory__offload="blocks", **changes))
    assert f"memory.offload is 'blocks', which doesn't go with {said}" in problem


def test_what_can_be_used_is_not_refused(settings) -> None:
    assert ladder.check(settings(memory__quantise="int8", memory__micro_batch=4, memory__gradient_checkpointing=True)) == []


def test_nf4_without_bitsandbytes_says_how_to_get_it(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ladder, quantising):
        monkeypatch.setattr(module, "has_nf4", lambda: False)
    assert "pip install 'velatura[gpu]'" in ladder.check(settings(memory__quantise="nf4"))[0]
    with pytest.raises(ConfigError, match="velatura"):
        quantising.quantise(nn.Sequential(nn.Linear(4, 4).requires_grad_(False)), "nf4")


# Less at once.


def test_micro_batches_give_the_loss_and_the_weights_of_one_batch(settings, tmp_path: Path) -> None:
    whole, told = train(settings(), tmp_path / "whole")
    parts, said = train(settings(memory__micro_batch=1), tmp_path / "parts")
    assert losses(said) == pytest.approx(losses(told), abs=1e-5)
    one, two = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (whole, parts))
    apart = sum(float((two[name] - tensor).square().sum()) for name, tensor in one.items())
    assert apart**0.5 < 1e-3 * sum(float(tensor.square().sum()) for tensor in one.values()) ** 0.5  # Adam turns the last bits of a tiny gradient into steps


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_computing_activations_twice_gives_the_same_bytes(dropout: float, settings, tmp_path: Path) -> None:
    """With dropout, backward would otherwise recompute without it."""
    kept, told = train(settings(adapter__dropout=dropout), tmp_path / "kept")
    twice, said = train(settings(adapter__dropout=dropout, memory__gradient_checkpointing=True), tmp_path / "twice")
    assert losses(said) == losses(told)
    one, two = (checkpoint.load_latest(run.checkpoints)[0].tensors["adapter"] for run in (kept, twice))
    assert all(torch.equal(one[name], two[name]) for name in one)


# The ladder.


def climbed(device: str, settings, **changes) -> list[str]:
    """What each rung changes, from the lowest to the top."""
    config = settings(**changes)
    now, said = config.memory, []
    while rung := ladder.next_rung(now, config, config.batch_size, device):
        said += [f"{name}={value}" for name, value in rung[0].model_dump().items() if value != now.model_dump()[name]]
        now = rung[0]
    return said


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
    [(SHORTAGE, True), ("CUDA out of memory. Tried to allocate 2 GiB", True), ("CUBLAS_STATUS_ALLOC_FAILED when calling", True), ("shapes differ", False)],
)
def test_shortages_are_told_from_other_errors(text: str, short: bool) -> None:
    assert mechanics.is_shortage(RuntimeError(text)) == short
    assert not mechanics.is_shortage(ValueError(text)) and mechanics.is_shortage(MemoryError())


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch):
    """`short_of_memory(until)`: from the third step on memory runs out in the middle of a step until `until(studio.memory)` holds."""
    real = loop.learn

    def patch(until) -> None:
        def learn(studio, step):
            found = real(studio, step)  # gradients are there when it runs out, as they would be
            if step >= 2 and not until(studio.memory):
                raise RuntimeError(SHORTAGE)
            return found

        monkeypatch.setattr(loop, "learn", learn)

    return patch


def test_a_run_that_runs_out_takes_the_step_again_one_rung_up(short_of_memory, settings, tmp_path: Path) -> None:
    _, whole = train(settings(max_steps=6), tmp_path / "whole")
    short_of_memory(lambda now: now.gradient_checkpointing)
    run, told = train(settings(max_steps=6), tmp_path / "short")
    assert [event.step for event in told if isinstance(event, Adjusted)] == [3, 3, 3]
    assert losses(told) == pytest.approx(losses(whole), abs=1e-5)
    kept = checkpoint.load_latest(run.checkpoints)[0].state["memory"]
    assert kept["micro_batch"] == 1 and kept["gradient_checkpointing"]


@pytest.mark.parametrize("kind", ["int8", KINDS[-1]])
def test_a_base_quantised_on_the_way_is_the_one_a_resumed_run_makes(kind: str, short_of_memory, settings, tmp_path: Path) -> None:
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
    with pytest.raises(RunError, match="memory ran out in step 3, and no memory setting is left .* can't allocate memory.* lower resolution_px"):
        train(settings(memory__micro_batch=1, memory__gradient_checkpointing=True, adapter__init="olora"), tmp_path)


def test_a_base_that_does_not_fit_is_loaded_on_the_cpu_and_fetched(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose base runs out of memory while it is loaded: at the top of the ladder a sentence, else blocks that are fetched, as a resumed run does too."""
    monkeypatch.setattr(ladder, "can_offload", lambda device: True)
    real, tried = bases.open_pipeline, []

    def small(family, folder, device, dtype):
        tried.append(device)
        if len(tried) % 2:  # the whole base does not fit, the denoiser in the CPU's memory does
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return real(family, folder, device, dtype)

    monkeypatch.setattr(bases, "open_pipeline", small)
    with pytest.raises(RunError, match="memory ran out while the base was loaded, .* CUDA out of memory.* smaller base"):
        train(settings(adapter__method="dora"), tmp_path / "dora")
    tried.clear()
    run, told = train(settings(), tmp_path / "whole")
    assert [event.message for event in told if isinstance(event, Adjusted)] == ["the base waits on the CPU, and its blocks are fetched ahead of their use"]
    assert checkpoint.load_latest(run.checkpoints)[0].state["memory"]["offload"] == "blocks" and len(tried) == 2
    tried.append("")  # which fits at once
    asked, _ = train(settings(memory__offload="blocks"), tmp_path / "asked")
    (ours, _), (wanted, _) = (checkpoint.load_latest(one.checkpoints) for one in (run, asked))
    assert all(torch.equal(ours.tensors["adapter"][name], tensor) for name, tensor in wanted.tensors["adapter"].items())


_LIMITED = """
import json, resource, sys
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
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_run_that_really_runs_out_climbs_and_finishes(settings, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(32):
        Image.new("RGB", (96, 96), (8 * number, 0, 0)).save(tmp_path / "data" / f"{number}.png")
        (tmp_path / "data" / f"{number}.txt").write_text("red")
    config = settings(max_steps=1, resolution_px=96, batch_size=32, data__folder=str(tmp_path / "data"))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    done = subprocess.run([sys.executable, "-c", _LIMITED, tmp_path / "config.json", tmp_path, "500"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = done.stdout.split("\n")
    assert done.returncode == 0, done.stderr
    assert "pictures at once: 16 instead of 32" in said[0] and said[-2].startswith("finished")


def test_measuring_halves_what_it_does_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def attempt(size: int) -> str:
        asked.append(size)
        if size > 2:
            raise MemoryError
        return "done"

    assert mechanics.halving(9, attempt) == "done" and asked == [9, 4, 2]
    with pytest.raises(MemoryError):
        mechanics.halving(8, lambda size: attempt(9))


def test_a_preview_that_runs_out_is_a_warning(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(self, prompt):
        raise RuntimeError(SHORTAGE)

    monkeypatch.setattr(TrainingModel, "draw", draw)
    _, told = train(settings(preview_every_steps=2), tmp_path)
    assert [event for event in told if isinstance(event, Warned) and "can't allocate" in event.message]


def test_a_run_that_holds_more_than_its_budget_says_so_and_changes_nothing(settings, tmp_path: Path) -> None:
    _, told = train(settings(memory__budget_gib=0.001), tmp_path)
    (said,) = [event.message for event in told if isinstance(event, Warned)]
    assert "more than memory.budget_gib (0.001); --rehearse" in said
    _, told = train(settings(memory__budget_gib=900), tmp_path / "enough")
    assert not [event for event in told if isinstance(event, Warned)]


def test_a_peak_can_be_measured_anew() -> None:
    held = torch.ones(64 << 20, dtype=torch.uint8)
    before = mechanics.peak_bytes()
    del held
    mechanics.reset_peak()
    assert 0 < mechanics.peak_bytes() <= before


# The base's dtype.


def test_on_a_cpu_only_a_large_base_is_computed_in_bfloat16(tmp_path: Path, imprimatura_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet").mkdir()
    head = json.dumps({"__metadata__": {"format": "pt"}, "weight": {"dtype": "F16", "shape": [20000, 20000], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "unet" / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    assert bases.num_parameters(tmp_path) == 400_000_000 and 1e7 < bases.num_parameters(imprimatura_folder) < 3e7
    for computes, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(bases, "_computes_bf16", lambda computes=computes: computes)
        assert bases.hardware("cpu", "auto", tmp_path) == ("cpu", wanted)
        assert bases.hardware("cpu", "auto", imprimatura_folder) == bases.hardware("cpu", "auto") == ("cpu", torch.float32)


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
    pipe = SimpleNamespace(components={"vae": Part("vae"), "text_encoder": Part("text_encoder"), "unet": unet, "tokenizer": None})
    now = MemoryConfig(offload="encoders")
    studio = SimpleNamespace(pipe=pipe, denoiser=unet, trains_text=False, device="cuda", memory=now, fetched=now.offload == "blocks")
    with arranging.drawing(studio):
        assert moved == [("vae", "cuda"), ("text_encoder", "cuda")]
    assert sorted(moved[2:]) == [("text_encoder", "cpu"), ("vae", "cpu")]
