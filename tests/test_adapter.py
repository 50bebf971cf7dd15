"""Adapters on a model: what they leave alone, what a checkpoint brings back, and starts that reach into the base."""

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from trainer import eva_start, families, lora_file, methods
from trainer.adapter import Attachment, attach
from trainer.errors import ConfigError

SD = families.registry()["sd"]
LORA = methods.registry()["lora"]
DTYPES = [torch.float32, torch.bfloat16]
STARTS = ["default", "gaussian", "pissa", "olora", "eva"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return SD.load(SD.tiny(tmp_path_factory.mktemp("tiny")), "cpu", torch.float32).unet


def run(model: nn.Module) -> Tensor:
    rng, dtype = torch.Generator().manual_seed(7), next(model.parameters()).dtype
    noised, hidden = torch.randn(2, 4, 8, 8, generator=rng).to(dtype), torch.randn(2, 9, 32, generator=rng).to(dtype)
    with torch.no_grad():
        return model(noised, torch.tensor([100, 900]), hidden).sample


def lora(
    model: nn.Module, init: str = "default", saved: dict[str, Tensor] | None = None, seed: int = 3, **values
) -> Attachment:
    config = LORA.Config(method="lora", init=init, **({"rank": 4, "alpha": 6.0} | values))
    return attach(model, LORA, config, SD.targets["attention-ff"], seed, saved, lambda: run(model))


def stir(attachment: Attachment, size: float = 0.05) -> None:
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attachment.parameters().values():
            parameter += size * torch.randn(parameter.shape, generator=rng)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*methods.registry(), *STARTS[1:]])
def test_a_checkpoint_brings_back_the_very_model(name: str, dtype: torch.dtype, base: nn.Module) -> None:
    first, second = copy.deepcopy(base).to(dtype), copy.deepcopy(base).to(dtype)
    method = methods.registry().get(name, LORA)
    config = method.Config(method=method.name, **({} if name in methods.registry() else {"init": name}))
    attachment = attach(first, method, config, SD.targets["attention"], 3, None, lambda: run(first))
    stir(attachment)
    saved = load(
        save(
            {
                key: tensor.detach().contiguous()
                for key, tensor in (attachment.parameters() | attachment.constants()).items()
            }
        )
    )
    again = attach(second, method, config, SD.targets["attention"], 99, saved)
    assert torch.equal(run(second), run(first))
    assert (
        list(again.parameters()) == list(attachment.parameters())
        and again.constants().keys() == attachment.constants().keys()
    )
    assert all(torch.equal(tensor, saved[key]) for key, tensor in (again.parameters() | again.constants()).items())
    stir(again)
    assert all(not torch.equal(tensor, saved[key]) for key, tensor in again.parameters().items()), (
        "the checkpoint's own tensors stay as they were"
    )
    again.detach()
    assert torch.equal(run(second), run(copy.deepcopy(base).to(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_inside_the_base_gives_the_base_back_bit_for_bit(
    start: str, dtype: torch.dtype, base: nn.Module
) -> None:
    model = copy.deepcopy(base).to(dtype)
    wanted, before = (
        run(model),
        {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.state_dict().items()},
    )
    attachment = lora(model, start)
    assert float((run(model) - wanted).norm()) <= (1e-5 if dtype == torch.float32 else 2e-2) * float(wanted.norm())
    changed = {path: layer.base_layer.weight.clone() for path, layer in attachment.layers.items()}
    assert all(not torch.equal(weight, before[f"{path}.weight"][1]) for path, weight in changed.items())
    stir(attachment)
    moved = run(model)
    with pytest.raises(RuntimeError, match="boom"), attachment.off():
        assert torch.equal(run(model), wanted)
        raise RuntimeError("boom")
    assert torch.equal(run(model), moved)
    attachment.detach()
    after = model.state_dict()
    assert all(
        after[key].data_ptr() == place and torch.equal(after[key], tensor) for key, (place, tensor) in before.items()
    )
    assert after.keys() == before.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_small_change_from_inside_the_base_survives_a_small_file(dtype: torch.dtype, base: nn.Module) -> None:
    """[up, -up0] @ [down; down0] would be the difference of two large products and lose it in half precision."""
    attachment = lora(copy.deepcopy(base), "pissa")
    stir(attachment, 1e-3)
    config = LORA.Config(method="lora", init="pissa", rank=4, alpha=6.0)
    for path, parts in attachment.modules().items():
        spelled = {
            key: tensor if key == "alpha" else tensor.to(dtype) for key, tensor in LORA.to_file(parts, config).items()
        }
        alpha = float(spelled.pop("alpha"))
        update, change = LORA.from_file(spelled, alpha), attachment.change(path)
        assert update.rank == 8
        error = float((update.dense(attachment.base(path), torch.float64) - change).norm() / change.norm())
        assert error <= {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


def test_a_rank_beyond_a_layers_width_is_refused_and_leaves_the_base_alone(base: nn.Module) -> None:
    model = copy.deepcopy(base)
    with pytest.raises(ConfigError, match=r"adapter.rank is 64, but .* is (16|32) wide"):
        lora(model, "pissa", rank=64)
    assert model.state_dict().keys() == base.state_dict().keys() and torch.equal(run(model), run(base))


def test_the_seed_decides_the_start_and_nobody_elses_numbers(base: nn.Module) -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    first, second, other = (lora(copy.deepcopy(base), seed=seed).parameters() for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_adapter_on_a_model_in_use_is_in_use_too(base: nn.Module) -> None:
    attachment = lora(copy.deepcopy(base).eval(), dropout=0.5)
    assert not any(module.training for layer in attachment.dropouts() for module in layer.modules())


@pytest.mark.parametrize("name", methods.registry())
def test_only_plain_lora_lies_on_a_quantised_base(name: str) -> None:
    model, method = nn.ModuleDict({"to_q": nn.Linear(8, 8)}), methods.registry()[name]
    model["to_q"].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    if name == "lora":
        for init in ("pissa", "olora"):
            with pytest.raises(ConfigError, match="memory.quantise"):
                attach(model, method, method.Config(method=name, init=init), "to_q", 0)
    else:
        with pytest.raises(ConfigError, match="memory.quantise"):
            attach(model, method, method.Config(method=name), "to_q", 0)
    assert type(model["to_q"]) is nn.Linear


def test_eva_starts_along_what_flows_in(base: nn.Module) -> None:
    model, seen = copy.deepcopy(base), {}
    attachment = lora(model, "eva")
    for path, layer in attachment.layers.items():
        layer.register_forward_pre_hook(
            lambda module, inputs, path=path: seen.update({path: inputs[0].reshape(-1, inputs[0].shape[-1]).double()})
        )
    run(model)
    for path, layer in attachment.layers.items():
        rows = seen[path] - seen[path].mean(0)
        wanted = torch.linalg.svd(rows, full_matrices=False)
        down = layer.lora_A["default"].weight.double()
        torch.testing.assert_close(down @ down.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-4)
        caught = float((rows @ down.T).detach().norm() / wanted.S[:4].norm())
        assert caught >= 0.97, path


def test_eva_makes_do_with_fewer_rows_than_the_rank() -> None:
    torch.manual_seed(0)
    layers, rows = {"a": nn.Linear(16, 4), "b": nn.Linear(16, 4)}, torch.randn(3, 16)
    directions = eva_start.directions(layers, {"a": 8, "b": 8}, lambda: layers["a"](rows))
    assert directions["a"].shape == (3, 16) and len(directions["b"]) == 0
    torch.testing.assert_close(directions["a"][:2] @ directions["a"][:2].T, torch.eye(2))


def test_factors_are_the_parameters_and_tell_the_update(base: nn.Module) -> None:
    for start in ("default", "pissa"):
        attachment = lora(copy.deepcopy(base), start)
        stir(attachment)
        own = {id(parameter) for parameter in attachment.parameters().values()}
        for path, (down, up, scale) in attachment.factors().items():
            assert (
                (id(down) in own and id(up) in own) == (start == "default") and down.requires_grad and up.requires_grad
            )
            torch.testing.assert_close(
                lora_file.Delta(down, up, scale).dense(attachment.base(path), torch.float64),
                attachment.change(path),
                rtol=1e-5,
                atol=1e-6,
            )
    loha = methods.registry()["loha"]
    assert not attach(copy.deepcopy(base), loha, loha.Config(method="loha"), SD.targets["attention"], 0).factors()
