"""What every family must show on its tiny model."""

from pathlib import Path

import diffusers
import numpy
import pytest
import torch

from trainer import families, lora_file, presets, session
from trainer.config import AdapterChoice, StackConfig
from trainer.render.draw import draw
from trainer.render.engine import Engine


@pytest.fixture(scope="module", params=sorted(families.registry()))
def family(request: pytest.FixtureRequest):
    return families.registry()[request.param]


@pytest.fixture(scope="module")
def tiny(family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.tiny(tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def lora(family, tiny: Path, tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Trained on everything the family can target, alpha unlike rank."""
    settings = {
        "family": family.name, "base": str(tiny), "resolution_px": 32, "max_steps": 4, "batch_size": 2, "learning_rate": 0.05, "preview_every_steps": 0,
        "adapter.targets": "all", "adapter.rank": 3, "adapter.alpha": 6.0, "data.folder": str(examples / "grey-cat" / "train"),
    }  # fmt: skip
    run, stream = session.start(presets.load("imprimatura-style", settings), tmp_path_factory.mktemp("run"), family.name, None)
    list(stream)
    return run.lora_file


def test_tiny_is_the_same_every_time_and_small(family, tiny: Path, tmp_path: Path) -> None:
    again = family.tiny(tmp_path)
    names = sorted(path.relative_to(tiny) for path in tiny.rglob("*.safetensors"))
    assert names and all((tiny / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert sum((tiny / name).stat().st_size for name in names) < 4_000_000


def test_every_target_setting_matches_layers_and_every_layer_has_a_key_of_its_own(family, tiny: Path) -> None:
    import re

    pipe = family.load(tiny, "cpu", torch.float32)
    keys = family.file_keys(pipe)
    assert len(set(keys.values())) == len(keys)
    component = next(iter(family.components))
    paths = [path.removeprefix(f"{component}.") for path in keys if path.startswith(component)]
    counts = [sum(bool(re.fullmatch(pattern, path)) for path in paths) for pattern in family.targets.values()]
    assert counts[0] > 0 and counts == sorted(counts)


def test_the_file_in_the_familys_own_pipeline_gives_our_deltas_and_our_picture(family, tiny: Path, lora: Path) -> None:
    engine = Engine(str(tiny), family.name, device="cpu", dtype="float32")
    adapters = (AdapterChoice(file=str(lora), weight=0.8),)
    stack = StackConfig(family=family.name, base=str(tiny), prompt="mokka, a cat", steps=2, width_px=32, height_px=32, adapters=adapters)
    ours = engine.render(stack).image
    pipe = getattr(diffusers, family.pipeline).from_pretrained(str(tiny), torch_dtype=torch.float32, local_files_only=True)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True, adapter_name="a")
    deltas = lora_file.read(lora, engine.file_keys, engine.shapes)
    component = next(iter(family.components))
    layers = {name: module for name, module in getattr(pipe, component).named_modules() if hasattr(module, "get_delta_weight")}
    theirs = {f"{component}.{name}": module.get_delta_weight("a") for name, module in layers.items()}
    assert set(theirs) == set(deltas)
    for path, delta in theirs.items():
        assert float((deltas[path].dense(engine.weights[path], torch.float32) - delta.detach()).norm() / delta.detach().norm()) <= 1e-5
    pipe.set_adapters(["a"], [0.8])
    difference = numpy.asarray(ours).astype(int) - numpy.asarray(draw(pipe, stack)).astype(int)
    assert abs(difference).max() <= 1
    assert engine.render(stack.model_copy(update={"adapters": ()})).image.tobytes() != ours.tobytes()


def test_half_precision_rendering_restores_the_base_bitwise(family, tiny: Path, lora: Path) -> None:
    engine = Engine(str(tiny), family.name, device="cpu", dtype="bfloat16")
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    stack = StackConfig(family=family.name, base=str(tiny), adapters=(AdapterChoice(file=str(lora), weight=-1.7),))
    with engine.folded(stack):
        assert any(not torch.equal(weight, before[path]) for path, weight in engine.weights.items())
    assert all(torch.equal(weight, before[path]) for path, weight in engine.weights.items())
