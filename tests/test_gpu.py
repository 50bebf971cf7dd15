"""What a GPU alone can prove; `make test-gpu`. Everything is tiny, made here, and trained through `session.start`.

VELATURA_TEST_DEVICE=cpu runs what of it a CPU can do, to try the tests themselves where there is no GPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import UNet2DConditionModel

from tests import plain
from trainer import families, loop, lora_file, presets, runs, session
from trainer.config import AdapterChoice, StackConfig, TrainConfig
from trainer.errors import ConfigError
from trainer.events import Adjusted, Finished, Step, Warned
from trainer.families.contract import Family
from trainer.memory import frozen, quantising
from trainer.rehearsal import measuring
from trainer.render.engine import Engine
from trainer.training_model import TrainingModel

DEVICE = os.environ.get("VELATURA_TEST_DEVICE", "cuda")
GPU_ALONE = pytest.mark.skipif(DEVICE != "cuda", reason="needs a GPU's memory")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device here"),
]
SIZE_PX = 64
MIB = 1 << 20


@pytest.fixture(scope="module")
def dots(tmp_path_factory: pytest.TempPathFactory, draw_dots: Callable[..., Path]) -> Path:
    return draw_dots(tmp_path_factory.mktemp("dots"), "mokka, a {colour} dot")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`bases("flux")`: that family's tiny model, made once."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def base(name: str) -> Path:
        if name not in made:
            made[name] = families.registry()[name].tiny(root / name)
        return made[name]

    return base


@pytest.fixture
def config(bases: Callable[[str], Path], dots: Path) -> Callable[..., TrainConfig]:
    """`config("sd", memory__quantise="int8")`: four steps on a tiny base on the GPU, in bfloat16."""

    def make(name: str = "sd", **changes: Any) -> TrainConfig:
        values = {
            "family": name, "base": str(bases(name)), "data.folder": str(dots), "resolution_px": SIZE_PX,
            "data.max_upscale": 4.0, "max_steps": 4,
            "batch_size": 2, "checkpoint_every_steps": 2, "preview_every_steps": 0, "learning_rate": 1e-2,
            "adapter.rank": 4, "adapter.alpha": 4.0,
            "preview.guidance_rescale": 0.0, "device": DEVICE, "dtype": "bfloat16",
        }  # fmt: skip
        return presets.load(plain.CHARACTER, values | {key.replace("__", "."): value for key, value in changes.items()})

    return make


def train(config: TrainConfig, parent: Path) -> tuple[runs.Run, list[Any]]:
    run, stream = session.start(config, parent, "x", runs.find_resumable(parent, "x"))
    events = list(stream)
    assert isinstance(events[-1], Finished)
    return run, events


def losses(events: list[Any]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


def peak(config: TrainConfig, parent: Path) -> tuple[int, list[float]]:
    """The most bytes that the run's tensors took on the GPU, and its losses."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, events = train(config, parent)
    return torch.cuda.max_memory_allocated(), losses(events)


# Every family.


@pytest.fixture(params=sorted(families.registry()))
def family(request: pytest.FixtureRequest) -> Family:
    return families.registry()[request.param]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_family_is_trained_written_and_drawn(
    dtype: str, family: Family, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    settings = config(
        family.name,
        dtype=dtype,
        preview_every_steps=4,
        preview__prompts=["a dot"],
        preview__steps=1,
        memory__attention="fused",  # `auto` tries kernels in a child for each shape, which other tests do
    )
    run, events = train(settings, tmp_path)
    assert [event.kind for event in events].count("sampled") == 2, [event for event in events if event.kind == "warned"]
    assert events[-1].adapter_norm > 0
    engine = Engine(run.config().base, family.name, device=DEVICE, dtype=dtype)
    pictures = [numpy.asarray(engine.render(stack(engine, run.lora_file, weight)).image, int) for weight in (0.0, 1.0)]
    assert (pictures[0] != pictures[1]).any()


def stack(engine: Engine, file: Path, weight: float, **values: Any) -> StackConfig:
    adapters = (AdapterChoice(file=str(file), weight=weight),)
    sized = {"steps": 2, "guidance_scale": 3.0, "width_px": SIZE_PX, "height_px": SIZE_PX}
    return StackConfig(
        family=engine.family.name, base=engine.base, prompt="mokka, a dot", adapters=adapters, **sized | values
    )


# Resuming.


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sd", {}),
        ("flux", {}),
        ("sd", {"memory__compile": "blocks"}),
        pytest.param("sd", {"memory__compile": "graphs", "max_steps": 8}, marks=GPU_ALONE),
        ("sd", {"dtype": "float16"}),
    ],
    ids=str,
)
def test_a_run_that_is_broken_off_goes_on_to_the_same_bytes(
    name: str, changes: dict[str, Any], config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    settings = config(name, **changes)
    unbroken, _ = train(settings, tmp_path / "unbroken")
    _, stream = session.start(settings, tmp_path / "broken", "x", None)
    for event in stream:
        if event.kind == "saved":
            break
    stream.close()
    resumed, _ = train(settings, tmp_path / "broken")
    assert resumed.lora_file.read_bytes() == unbroken.lora_file.read_bytes()


# Memory settings.


@GPU_ALONE
def test_checkpointing_and_offload_take_less_memory_for_the_same_losses(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    large = {
        "resolution_px": 256,
        "batch_size": 4,
        "data__max_upscale": 16.0,
        "memory__compile": "off",
        "dtype": "float32",
    }
    whole, wanted = peak(config(**large), tmp_path / "whole")
    for number, changes in enumerate(
        ({"gradient_checkpointing": True}, {"offload_activations": True}, {"micro_batch": 1})
    ):
        less, measured = peak(
            config(**large, **{f"memory__{name}": value for name, value in changes.items()}), tmp_path / str(number)
        )
        assert less < 0.9 * whole, changes
        assert measured == pytest.approx(wanted, rel=1e-3), changes


@GPU_ALONE
def test_offload_keeps_encoders_and_blocks_on_the_cpu(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[dict[str, set[str]]] = []
    learn = loop.learn

    def looked(studio: TrainingModel, step: int) -> object:
        devices = {
            name: {parameter.device.type for parameter in part.parameters()}
            for name, part in studio.pipe.components.items()
            if isinstance(part, torch.nn.Module)
        }
        pinned = {
            str(parameter.is_pinned()) for parameter in studio.denoiser.parameters() if parameter.device.type == "cpu"
        }
        places.append(devices | {"pinned": pinned})
        return learn(studio, step)

    monkeypatch.setattr(loop, "learn", looked)
    _, wanted = train(
        config(memory__compile="off", preview_every_steps=2, preview__prompts=["a dot"], preview__steps=1),
        tmp_path / "on",
    )
    for offload in ("encoders", "blocks"):
        places.clear()
        settings = config(
            memory__compile="off",
            memory__offload=offload,
            preview_every_steps=2,
            preview__prompts=["a dot"],
            preview__steps=1,
        )
        _, events = train(settings, tmp_path / offload)
        assert losses(events) == pytest.approx(losses(wanted), rel=1e-2)
        assert [event.kind for event in events].count("sampled") == 3, [
            event for event in events if event.kind == "warned"
        ]
        assert places[-1]["vae"] == places[-1]["text_encoder"] == {"cpu"}
        assert places[-1]["unet"] == ({"cuda"} if offload == "encoders" else {"cuda", "cpu"})
        assert places[-1]["pinned"] == (set() if offload == "encoders" else {"True"})


@GPU_ALONE
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_run_held_to_a_small_budget_climbs_the_ladder_and_finishes(
    name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    large = {"resolution_px": 256, "batch_size": 8, "data__max_upscale": 16.0, "max_steps": 2}
    whole, _ = peak(config(name, **large), tmp_path / "whole")
    budget = 0.7 * whole / 2**30 + 0.05  # the context and the allocator's own are outside it
    try:
        _, events = train(config(name, **large, memory__budget_gib=budget), tmp_path / "held")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [event for event in events if isinstance(event, Adjusted)]


@GPU_ALONE
def test_a_base_larger_than_the_budget_is_loaded_on_the_cpu_and_fetched(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    """The base alone is more than the budget: a run must still train, with blocks that are fetched."""
    base = families.registry()["sd"].tiny(tmp_path / "base")
    narrow = UNet2DConditionModel.load_config(base / "unet")
    wide = UNet2DConditionModel.from_config(
        {**narrow, "block_out_channels": [24 * width for width in narrow["block_out_channels"]]}
    )
    wide.to(torch.bfloat16).save_pretrained(base / "unet")
    held = sum(parameter.nbytes for parameter in wide.parameters())
    try:
        _, events = train(
            config("sd", base=str(base), dtype="bfloat16", memory__budget_gib=0.8 * held / 2**30), tmp_path / "held"
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("blocks are fetched" in event.message for event in events if isinstance(event, Adjusted))


@pytest.mark.parametrize("kind", ["int8", "fp8", "nf4"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_quantised_base_trains_nearly_what_the_whole_base_would(
    kind: str, name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    if kind == "nf4" and not quantising.has_nf4():
        pytest.skip("needs bitsandbytes")
    _, whole = train(config(name), tmp_path / "whole")
    _, events = train(config(name, memory__quantise=kind), tmp_path / "narrow")
    assert losses(events) == pytest.approx(losses(whole), rel=0.05)


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has graphs")
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_graphs_are_refused_where_there_are_none(name: str, config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="graphs"):
        train(config(name, memory__compile="graphs"), tmp_path)


@pytest.mark.parametrize("way", ["blocks", "graphs"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_compiled_blocks_train_what_eager_ones_do(
    way: str, name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    if way == "graphs" and DEVICE == "cpu":
        pytest.skip("a CPU has no graphs")
    _, eager = train(config(name, memory__compile="off", max_steps=8), tmp_path / "off")
    _, events = train(config(name, memory__compile=way, max_steps=8), tmp_path / way)
    assert losses(events) == pytest.approx(losses(eager), rel=0.02)


@GPU_ALONE
def test_the_rehearsal_measures_both_ways_and_the_run_goes_by_it(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    (said,) = [line for line in measuring.measure(config(), tmp_path).warnings if "memory.compile=auto" in line]
    assert "as measured on this machine" in said
    _, events = train(config(), tmp_path / "run")
    assert said in [event.message for event in events if isinstance(event, Warned)]


@GPU_ALONE
@pytest.mark.parametrize("name", ["sd", "flux", "flux2", "qwen", "zimage"])
def test_a_steps_own_code_waits_for_the_device_nowhere(
    name: str, config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's one transfer comes after `learn`. What diffusers' models do themselves is theirs."""
    waits: list[str] = []
    learn = loop.learn

    def watched(model: TrainingModel, step: int) -> object:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return learn(model, step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.extend(
                    f"{Path(warning.filename).name}:{warning.lineno}"
                    for warning in caught
                    if step and "synchroniz" in str(warning.message) and "trainer" in Path(warning.filename).parts
                )

    monkeypatch.setattr(loop, "learn", watched)
    train(config(name, memory__compile="off"), tmp_path)
    assert not waits


@GPU_ALONE
@pytest.mark.parametrize("changes", [{"accumulation": 2}, {"memory__micro_batch": 1}], ids=str)
def test_recorded_passes_add_their_gradients_up(
    changes: dict[str, Any], config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    _, eager = train(config(memory__compile="off", max_steps=8, **changes), tmp_path / "off")
    _, events = train(config(memory__compile="graphs", max_steps=8, **changes), tmp_path / "graphs")
    assert losses(events) == pytest.approx(losses(eager), rel=0.02)


# Stacks.


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_stack_on_a_quantised_base_is_the_sum_quantised_and_leaves_it_bitwise(
    kind: str, name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run, _ = train(config(name), tmp_path)
    whole = Engine(run.config().base, name, device=DEVICE, dtype="bfloat16")
    narrow = Engine(run.config().base, name, device=DEVICE, dtype="bfloat16", quantise=kind)
    layers = {
        path: layer
        for path, layer in getattr(narrow.pipe, narrow.component).named_modules()
        if isinstance(layer, frozen.NarrowLinear)
    }
    before = {path: frozen.full_weight(layer).clone() for path, layer in layers.items()}
    made = stack(narrow, run.lora_file, 0.7)
    with whole.folded(made), narrow.folded(made):
        for path, layer in layers.items():
            summed = getattr(whole.pipe, whole.component).get_submodule(path)
            wanted = frozen.full_weight(frozen.NarrowLinear(summed, kind))  # type: ignore[arg-type]
            assert torch.equal(frozen.full_weight(layer), wanted), path
    narrow.restore()
    assert all(torch.equal(frozen.full_weight(layer), before[path]) for path, layer in layers.items())


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_stack_is_the_dense_sum_and_leaves_the_base_bitwise(
    name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run, _ = train(config(name), tmp_path)
    engine = Engine(run.config().base, name, device=DEVICE, dtype="float32")
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    updates = lora_file.read(run.lora_file, engine.file_keys, engine.shapes)
    with engine.folded(stack(engine, run.lora_file, 0.7)):
        for path, base in before.items():
            wanted = base.double() + (0.7 * updates[path].dense(base, torch.float64) if path in updates else 0)
            assert float((engine.weights[path].double() - wanted).norm()) <= 1e-5 * float(wanted.norm())
    engine.restore()
    assert all(torch.equal(engine.weights[path], base) for path, base in before.items())


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_pictures_of_other_weights_in_one_batch_are_those_drawn_alone(
    name: str, config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    run, _ = train(config(name), tmp_path)
    engine = Engine(run.config().base, name, device=DEVICE, dtype="float32")
    stacks = [stack(engine, run.lora_file, weight, seed=seed) for weight, seed in ((0.3, 1), (1.0, 2), (-0.5, 3))]
    together = [numpy.asarray(picture.image, int) for picture in engine.render_all(stacks)]
    for made, batched in zip(stacks, together, strict=True):
        alone = numpy.asarray(engine.render(made).image, int)
        assert abs(alone - batched).max() <= 2
