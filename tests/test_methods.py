"""What every adapter method must show on the tiny model, on each kind of layer it offers, over a float32 and a bfloat16
base.
"""

import copy
import functools
import typing
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from trainer import attaching, families, lora_file, methods
from trainer.adapter import Attachment, attach
from trainer.config import TrainConfig
from trainer.export import write

SD = families.registry()["sd"]
# Attention, feed-forward, and convolutions where they are offered; "linear" adds no other kind of layer.
LAYERS = [
    (name, targets)
    for name, module in methods.registry().items()
    for targets in typing.get_args(module.Config.model_fields["targets"].annotation)
    if targets != "linear"
]
DTYPES = [torch.float32, torch.bfloat16]
# What changes the formula, the scale or the start; each loads as plain LoRA everywhere if it is one.
VARIANTS = {
    "alpha": {"alpha": 12.0},
    "rank-stabilised": {"rank_stabilised": True, "alpha": 3.0},
    "block-ranks": {"block_ranks": ("up_blocks=2", "attn1=5"), "alpha": 6.0},
    "stabilised-block-ranks": {"rank_stabilised": True, "block_ranks": ("attn2.to_q=7",)},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa", "alpha": 2.0},
    "olora": {"init": "olora"},
    "stabilised-pissa": {"init": "pissa", "rank_stabilised": True, "block_ranks": ("to_k=3",)},
    "eva": {"init": "eva"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SD.tiny(tmp_path_factory.mktemp("tiny"))


@functools.cache
def opened(folder: Path) -> StableDiffusionPipeline:
    return SD.load(folder, "cpu", torch.float32)


def unet(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A UNet of its own, frozen, its biases and norms no longer trivial."""
    return copy.deepcopy(opened(folder).unet).to(dtype)


def run(model: nn.Module) -> Tensor:
    """The prediction for a fixed question."""
    rng, dtype = torch.Generator().manual_seed(7), next(model.parameters()).dtype
    noised, hidden = torch.randn(2, 4, 8, 8, generator=rng).to(dtype), torch.randn(2, 9, 32, generator=rng).to(dtype)
    with torch.no_grad():
        return model(noised, torch.tensor([100, 900]), hidden).sample


def settings(name: str, **values):
    """The method's settings, small, alpha unlike rank."""
    module, small = methods.registry()[name], {"rank": 4, "alpha": 6.0, "block_size": 8, "factor": 4}
    known = {key: value for key, value in (small | values).items() if key in module.Config.model_fields}
    return module.Config(method=name, **known)


def put_on(model: nn.Module, config, saved: dict[str, Tensor] | None = None) -> Attachment:
    return attach(
        model, methods.registry()[config.method], config, SD.targets[config.targets], 3, saved, lambda: run(model)
    )


def stir(attachment: Attachment, size: float = 0.05) -> None:
    """As if trained."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter += size * torch.randn(parameter.shape, generator=rng)


def written(attachment: Attachment, config, tiny: Path, folder: Path) -> Path:
    """A UNet's adapter in a file."""
    keys, method, path = SD.file_keys(opened(tiny)), methods.registry()[config.method], folder / "x.safetensors"
    modules = {keys[f"unet.{layer}"]: method.to_file(parts, config) for layer, parts in attachment.modules().items()}
    lora_file.save(path, modules, method.header(config), torch.float32)
    return path


def read(path: Path, tiny: Path) -> dict[str, typing.Any]:
    pipe = opened(tiny)
    keys = SD.file_keys(pipe)
    shapes = {
        module: tuple(getattr(pipe, module.partition(".")[0]).get_submodule(module.partition(".")[2]).weight.shape)
        for module in keys
    }
    return {module.removeprefix("unet."): update for module, update in lora_file.read(path, keys, shapes).items()}


def fold(model: nn.Module, updates: dict[str, typing.Any]) -> nn.Module:
    """A float32 copy of the model with the updates in its weights."""
    model = copy.deepcopy(model).float()
    for path, update in updates.items():
        weight = model.get_submodule(path).weight
        weight.data = weight.data + update.dense(weight.data, torch.float32)
    return model


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "targets"), LAYERS)
def test_the_start_is_the_base_bit_for_bit_and_off_and_detach_give_it_back(
    name: str, targets: str, dtype: torch.dtype, tiny: Path
) -> None:
    model = unet(tiny, dtype)
    wanted, before, names = run(model), copy.deepcopy(model.state_dict()), [path for path, _ in model.named_modules()]
    attachment = put_on(model, settings(name, targets=targets))
    assert torch.equal(run(model), wanted)
    assert {parameter.dtype for parameter in attachment.parameters().values()} == {torch.float32}
    stir(attachment)
    moved = run(model)
    assert not torch.equal(moved, wanted)
    with attachment.off():
        assert torch.equal(run(model), wanted)
    assert torch.equal(run(model), moved) and all(
        parameter.requires_grad for parameter in attachment.parameters().values()
    )
    attachment.detach()
    assert [path for path, _ in model.named_modules()] == names and torch.equal(run(model), wanted)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()) and not hasattr(
        model, "peft_config"
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "targets"), LAYERS)
def test_the_file_in_a_clean_base_is_the_live_adapter(
    name: str, targets: str, dtype: torch.dtype, tiny: Path, tmp_path: Path
) -> None:
    model, config = unet(tiny, dtype), settings(name, targets=targets)
    attachment = put_on(model, config)
    stir(attachment)
    updates = read(written(attachment, config, tiny, tmp_path), tiny)
    assert set(updates) == set(attachment.layers)
    live, merged, base = (
        run(copy.deepcopy(model).float()),
        run(fold(unet(tiny, dtype), updates)),
        run(unet(tiny, dtype).float()),
    )
    assert float((live - base).norm()) > 2e-3 * float(base.norm())
    torch.testing.assert_close(merged, live, rtol=1e-4, atol=1e-4)
    for path, update in updates.items():
        weight, change = attachment.base(path), attachment.change(path)
        assert float((update.dense(weight, torch.float64) - change).norm()) <= 1e-6 * float(change.norm())
        square = update.squared_norm()
        assert square is None or abs(square**0.5 - float(change.norm())) <= 1e-5 * float(change.norm())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_scale_and_start_of_lora_loads_elsewhere_with_the_same_deltas(
    variant: str, tiny: Path, tmp_path: Path
) -> None:
    model, config = unet(tiny), settings("lora", targets="linear", **VARIANTS[variant])
    wanted = run(model)
    attachment = put_on(model, config)
    torch.testing.assert_close(run(model), wanted, rtol=1e-5, atol=1e-5)
    with attachment.off():
        assert torch.equal(run(model), wanted)
    stir(attachment)
    path = written(attachment, config, tiny, tmp_path)
    torch.testing.assert_close(run(fold(unet(tiny), read(path, tiny))), run(model), rtol=1e-4, atol=1e-4)
    pipe = SD.load(tiny, "cpu", torch.float32)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name, use_safetensors=True)
    theirs = {
        name: module.get_delta_weight("default_0")
        for name, module in pipe.unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert set(theirs) == set(attachment.layers)
    for layer, delta in theirs.items():
        change = attachment.change(layer)
        assert float((delta.detach() - change).norm()) <= 2e-6 * float(change.norm()), layer
    attachment.detach()
    before = unet(tiny).state_dict()
    assert torch.equal(run(model), wanted) and all(
        torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()
    )


@pytest.mark.parametrize("name", methods.registry())
def test_settings_that_the_formula_knows_change_what_is_attached(name: str, tiny: Path) -> None:
    plain, fields = settings(name), methods.registry()[name].Config.model_fields
    if "block_ranks" in fields:
        ranked = put_on(unet(tiny), settings(name, block_ranks=("up_blocks.0=2", "up=3")))
        small = {path for path, layer in ranked.layers.items() if layer.r["default"] == 2}
        assert small == {path for path in ranked.layers if "up_blocks.0" in path} and small
        assert {layer.scaling["default"] for layer in ranked.layers.values()} == {plain.alpha / plain.rank}
    if "dropout" in fields:
        attachment = put_on(model := unet(tiny), settings(name, dropout=0.5))
        stir(attachment)
        calm = run(model)
        assert torch.equal(run(model), calm)
        for layer in attachment.dropouts():
            layer.train()
        torch.manual_seed(0)
        assert not torch.equal(run(model), calm)
        with attachment.off():
            assert torch.equal(run(model), run(unet(tiny)))


@pytest.mark.parametrize(
    "name", [name for name, module in methods.registry().items() if "text_encoder" in module.Config.model_fields]
)
def test_the_text_encoder_is_adapted_and_read_back(name: str, tiny: Path, tmp_path: Path) -> None:
    pipe, config = SD.load(tiny, "cpu", torch.float32), settings(name)
    before = copy.deepcopy(pipe.text_encoder.state_dict())
    keys = SD.file_keys(pipe)
    attachment = attach(pipe.text_encoder, methods.registry()[name], config, SD.text_targets, 1)
    assert len(attachment.layers) == 2 * 6
    stir(attachment)
    path = tmp_path / "x.safetensors"
    lora_file.save(
        path,
        {
            keys[f"text_encoder.{layer}"]: methods.registry()[name].to_file(parts, config)
            for layer, parts in attachment.modules().items()
        },
        {},
        torch.float32,
    )
    updates = read(path, tiny)
    for layer in attachment.layers:
        change = attachment.change(layer)
        dense = updates[f"text_encoder.{layer}"].dense(attachment.base(layer), torch.float64)
        assert float((dense - change).norm()) <= 1e-6 * float(change.norm())
    attachment.detach()
    assert all(torch.equal(tensor, before[key]) for key, tensor in pipe.text_encoder.state_dict().items())
    if name == "lora":
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name, use_safetensors=True)
        theirs = {path for path, module in pipe.text_encoder.named_modules() if hasattr(module, "get_delta_weight")}
        assert {f"text_encoder.{layer.replace('text_model.', '')}" for layer in theirs} == {
            layer.replace("text_model.", "") for layer in updates
        }


@pytest.mark.parametrize("save_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", methods.registry())
def test_the_export_proves_what_it_wrote(
    name: str, save_dtype: str, tiny: Path, tmp_path: Path, examples: Path
) -> None:
    from trainer import data
    from trainer.training_model import TrainingModel

    adapter = settings(name, targets="linear", text_encoder=True).model_dump()
    folder = examples / "grey-cat" / "train"
    config = TrainConfig.model_validate(
        {
            "family": "sd",
            "base": str(tiny),
            "resolution_px": 32,
            "save_dtype": save_dtype,
            "adapter": adapter,
            "data": {"folder": str(folder)},
        }
    )
    studio, dataset = TrainingModel.open(config), data.scan(config)
    attaching.attach(studio, None)
    with pytest.raises(Exception, match="would do nothing"):
        write(studio, tmp_path / "zero.safetensors", dataset)
    for attachment in studio.attachments.values():
        stir(attachment)
    norm = write(studio, tmp_path / "x.safetensors", dataset, {"velatura.best": "step 3"})
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["x.safetensors"]
    info = lora_file.inspect(tmp_path / "x.safetensors")
    assert info.method == name and info.metadata["velatura.best"] == "step 3" and info.metadata["ss_network_dim"]
    assert info.num_modules == sum(len(attachment.layers) for attachment in studio.attachments.values())
    assert info.norm is None or abs(info.norm - norm) <= 1e-2 * norm
    again = (tmp_path / "x.safetensors").read_bytes()
    write(studio, tmp_path / "y.safetensors", dataset, {"velatura.best": "step 3"})
    assert (tmp_path / "y.safetensors").read_bytes() == again


@pytest.mark.parametrize("line", ["up_blocks.1", "up=0", "up=257", "=4", "up=x", "up=1.5"])
def test_a_block_rank_that_cannot_be_read_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(ValueError, match=f"adapter.block_ranks has {line!r}"):
        settings("lora", block_ranks=(line,))


@pytest.mark.parametrize("init", ["pissa", "olora", "eva"])
def test_a_start_for_linear_layers_is_refused_on_convolutions(init: str) -> None:
    with pytest.raises(ValueError, match=f"adapter.init is '{init}'.*adapter.targets is 'all'"):
        settings("lora", init=init, targets="all")


def test_oft_offers_no_convolutions() -> None:
    module: ModuleType = methods.registry()["oft"]
    assert "all" not in typing.get_args(module.Config.model_fields["targets"].annotation)
