"""Layers folded together, quantised bases, and what is kept between two stacks: exact, and the same whichever way a
stack was come by.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer import bases, lora_file
from trainer.config import AdapterChoice, StackConfig
from trainer.deltas import Delta, Update, Whole
from trainer.errors import AdapterError, ConfigError
from trainer.memory import frozen, quantising
from trainer.memory.frozen import NarrowLinear, NF4Linear, full_weight
from trainer.render import baking, batch_recipe
from trainer.render import quantised as quantised_kinds
from trainer.render.engine import Engine
from trainer.render.fold_groups import Share
from trainer.render.folding import Folding
from trainer.render.packing import pack
from trainer.render.resolving import Resolving

KINDS = [
    "int8",
    "fp8",
    pytest.param("nf4", marks=pytest.mark.skipif(not quantising.has_nf4(), reason="needs bitsandbytes")),
]


def delta(rng: torch.Generator, rank: int, shape: tuple[int, ...]) -> Delta:
    down, up = (
        torch.randn(rank, *shape[1:], generator=rng),
        torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=rng),
    )
    return Delta(down.half(), up.half(), 0.5)


SHAPES = {f"unet.{number}": (24, 16) for number in range(5)} | {
    "unet.conv": (8, 4, 3, 3),
    "text_encoder.a": (24, 16),
    "text_encoder.b": (16, 16),
}


def adapters() -> list[dict[str, Update]]:
    """Three: one on every layer, one on some of them with other ranks, one with an update of another kind."""
    rng = torch.Generator().manual_seed(0)
    every = {path: delta(rng, 2, shape) for path, shape in SHAPES.items()}
    some = {
        path: delta(rng, rank, SHAPES[path])
        for path, rank in (("unet.3", 7), ("unet.1", 5), ("unet.conv", 3), ("text_encoder.b", 1), ("unet.0", 1))
    }
    whole = torch.randn(24, 16, generator=rng)
    return [every, some, {"unet.1": Whole(whole), "unet.2": delta(rng, 4, (24, 16))}]


def shares(*weights: float) -> list[Share]:
    return [
        Share((f"key{number}", component, ()), weight, packed)
        for number, (updates, weight) in enumerate(zip(adapters(), weights, strict=False))
        for component, packed in pack(updates)[1].items()
        if weight
    ]


def base(dtype: torch.dtype) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return {path: torch.randn(shape, generator=rng).to(dtype) for path, shape in SHAPES.items()}


def test_packed_updates_are_what_they_were_and_share_the_packs_memory() -> None:
    for updates in adapters():
        seen, components = pack(updates)
        packs = [part for packed in components.values() for part in packed.packs]
        for path, update in updates.items():
            if isinstance(update, Delta):
                assert (
                    torch.equal(seen[path].down, update.down)
                    and torch.equal(seen[path].up, update.up)
                    and seen[path].scale == update.scale
                )
                assert any(
                    seen[path].up.untyped_storage().data_ptr() == part.up.untyped_storage().data_ptr() for part in packs
                )
        assert sum(len(part.paths) for part in packs) + sum(
            len(packed.others) for packed in components.values()
        ) == len(updates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_layer_is_the_base_plus_the_dense_sum(dtype: torch.dtype) -> None:
    weights, before = base(dtype), base(dtype)
    folding = Folding(weights)
    assert folding.hold(shares(0.7, -1.3, 0.4)) == len(SHAPES)
    for path, weight in before.items():
        wanted = weight.double()
        for factor, updates in zip((0.7, -1.3, 0.4), adapters(), strict=True):
            wanted = wanted + (factor * updates[path].dense(weight, torch.float64) if path in updates else 0)
        torch.testing.assert_close(
            weights[path], wanted.to(dtype), rtol=1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps, atol=1e-5
        )
    folding.hold([])
    assert all(torch.equal(weights[path], weight) for path, weight in before.items()) and not folding.originals


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stack_has_the_same_bytes_whichever_way_it_was_come_by(dtype: torch.dtype) -> None:
    straight, winding = base(dtype), base(dtype)
    Folding(straight).hold(shares(0.7, -1.3, 0.4))
    folding, rng = Folding(winding), torch.Generator().manual_seed(2)
    for _ in range(30):
        picked = torch.rand(3, generator=rng).mul(4).sub(2).where(torch.rand(3, generator=rng) < 0.6, 0.0).tolist()
        folding.hold(shares(*picked)[:: 1 if picked[0] > 0 else -1])
    folding.hold(shares(0.7, -1.3, 0.4)[::-1])
    assert all(torch.equal(winding[path], weight) for path, weight in straight.items())


def test_layers_of_one_shape_are_one_product_and_what_stays_is_not_touched() -> None:
    folding = Folding(base(torch.bfloat16))
    folding.hold(shares(1.0))
    plan = folding._layout(shares(1.0))
    assert sorted(len(chunk.paths) for chunk in plan.chunks) == [1, 1, 1, 5]
    assert folding.hold(shares(1.0)) == 0
    text, unet = (
        Share(share.name, weight, share.packed) for share, weight in zip(shares(1.0)[::-1], (0.5, 1.0), strict=True)
    )
    assert folding.hold([unet, text]) == 2, "the text encoder's weight alone has changed"


def test_block_factors_count_and_zero_is_absent() -> None:
    weights, before = base(torch.float32), base(torch.float32)
    folding, (packed, update) = Folding(weights), (pack(adapters()[0])[1]["unet"], adapters()[0]["unet.1"])
    folding.hold([Share(("key", "unet", ("x",)), 2.0, packed, {"unet.0": 0.0, "unet.1": 0.25})])
    assert torch.equal(weights["unet.0"], before["unet.0"]) and "unet.0" not in folding.originals
    torch.testing.assert_close(
        weights["unet.1"] - before["unet.1"], 0.5 * update.dense(before["unet.1"], torch.float32), rtol=1e-4, atol=1e-5
    )


# Files.


def test_tensors_at_odd_places_are_read(tmp_path: Path) -> None:
    """Types of several sizes, in an order in which the larger don't start at multiples of their size."""
    parts = {
        "x.lora_down.weight": torch.randn(1, 3).half(),
        "x.lora_up.weight": torch.randn(3, 1),
        "x.alpha": torch.tensor(2.0).double(),
    }
    raw, header, at = b"", {}, 0
    for name, tensor in parts.items():
        data = tensor.numpy().tobytes()
        header[name] = {
            "dtype": {2: "F16", 4: "F32", 8: "F64"}[tensor.itemsize],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + len(data)],
        }
        raw, at = raw + data, at + len(data)
    text = str(header).replace("'", '"').encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw)
    tensors = lora_file.content(tmp_path / "x.safetensors").tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in parts.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_number_that_is_none_is_found_and_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"{name}.lora_up.weight": torch.randn(65, 7).to(dtype) for name in "abc"} | {
        "d.alpha": torch.tensor(1.0)
    }
    save_file(tensors, tmp_path / "good.safetensors")
    assert lora_file.content(tmp_path / "good.safetensors").tensors.keys() == tensors.keys()
    tensors["b.lora_up.weight"][63, 2] = value
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(AdapterError, match=r"in 1 of 4 tensors, the first is 'b\.lora_up"):
        lora_file.content(tmp_path / "bad.safetensors")


# What a stack means.


def stack(file: Path, weight: float = 1.0, **values: Any) -> StackConfig:
    return StackConfig(prompt="a fox", steps=2, adapters=(AdapterChoice(file=str(file), weight=weight, **values),))


def test_a_weight_that_moves_is_spelled_out_once_and_a_file_written_anew_again(
    engine: Engine, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, real, calls = tmp_path / "x.safetensors", Resolving._spelled_out, list[StackConfig]()
    file.write_bytes(trained.read_bytes())

    def spelled_out(self: Resolving, made: StackConfig) -> Any:
        calls.append(made)
        return real(self, made)

    monkeypatch.setattr(Resolving, "_spelled_out", spelled_out)
    first = engine.resolve(stack(file, 0.3))
    assert [engine.resolve(stack(file, weight)).adapters[0].weight for weight in (0.4, -1.0, 0.3)] == [
        0.4,
        -1.0,
        0.3,
    ] and len(calls) == 1
    assert (
        engine.resolve(stack(file, 0.3))
        == first
        == Resolving(engine.opened, engine.shelf).resolved(stack(file, 0.3)).stack
    )
    calls.clear()
    engine.resolve(stack(file, 0.0))
    assert len(calls) == 1, "a LoRA that is absent is another stack"
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    lora_file.save(
        file, {layer: {"lora_down.weight": torch.ones(1, 256), "lora_up.weight": torch.ones(256, 1)}}, {}, torch.float32
    )
    assert engine.resolve(stack(file, 0.3)).adapters[0].sha256 != first.adapters[0].sha256


def test_wildcards_are_drawn_anew_from_their_files(trained: Path, tmp_path: Path) -> None:
    engine = Engine("imprimatura", device="cpu", dtype="float32", wildcards=tmp_path)
    made = stack(trained).model_copy(update={"prompt": "a __beast__"})
    for beast in ("fox", "owl"):
        (tmp_path / "beast.txt").write_text(beast)
        assert engine.resolve(made).prompt == f"a {beast}"


# Quantised bases.


@pytest.fixture(scope="module")
def quantised() -> dict[str, Engine]:
    return {}


@pytest.fixture
def narrow(quantised: dict[str, Engine], kind: str) -> Engine:
    if kind not in quantised:
        quantised[kind] = Engine("imprimatura", device="cpu", dtype="float32", quantise=kind)
    quantised[kind].restore()
    return quantised[kind]


def state(engine: Engine) -> dict[str, Tensor]:
    """All tensors of the denoiser, those of quantised layers included."""
    tensors = {}
    for path, module in engine.pipe.unet.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            tensors[f"{path}.{name}"] = tensor.clone()
        if isinstance(module, NF4Linear):
            tensors |= {
                f"{path}.state.{name}": part.clone()
                for name, part in vars(module.state).items()
                if isinstance(part, Tensor)
            }
            tensors[f"{path}.full"] = full_weight(module).clone()
    return tensors


def is_same(left: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return left.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in left.items())


@torch.no_grad()
def prediction(engine: Engine) -> Tensor:
    rng, config = torch.Generator().manual_seed(0), engine.pipe.unet.config
    latents, hidden = (
        torch.randn(shape, generator=rng)
        for shape in ((2, config.in_channels, 16, 16), (2, 8, config.cross_attention_dim))
    )
    sample: Tensor = engine.pipe.unet(latents, 500, hidden).sample
    return sample


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_has_its_bytes_back_after_any_stack(
    kind: str, narrow: Engine, trained: Path, trained_style: Path
) -> None:
    before = state(narrow)
    assert sum(isinstance(module, (NarrowLinear, NF4Linear)) for module in narrow.pipe.unet.modules()) > 50
    narrow.fold(narrow.resolve(stack(trained, 0.0)))
    assert is_same(state(narrow), before)
    for file, weight in ((trained, 1.0), (trained, 0.3), (trained_style, -0.8)):
        narrow.fold(narrow.resolve(stack(file, weight)))
        assert not is_same(state(narrow), before)
    narrow.restore()
    assert is_same(state(narrow), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_on_a_quantised_base_is_the_whole_base_with_it_quantised(
    kind: str, narrow: Engine, engine: Engine, trained: Path
) -> None:
    with engine.folded(stack(trained, 0.6)):
        wanted = copy.deepcopy(engine.pipe.unet)
    quantising.quantise(wanted, kind)
    narrow.fold(narrow.resolve(stack(trained, 1.0)))
    narrow.fold(narrow.resolve(stack(trained, 0.6)))
    layers = {path: module for path, module in wanted.named_modules() if isinstance(module, nn.Linear)}
    for path, module in layers.items():
        assert torch.equal(full_weight(module), full_weight(narrow.pipe.unet.get_submodule(path))), path


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_layers_of_one_shape_are_quantised_at_once(
    kind: str, narrow: Engine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = frozen.narrowed

    def counted(weights: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        sizes.append(len(weights) if weights.ndim == 3 else 1)
        return whole(weights, kind)

    monkeypatch.setattr(frozen, "narrowed", counted)
    narrow.fold(narrow.resolve(stack(trained, 0.7)))
    assert sum(sizes) > 50 and len(sizes) < sum(sizes) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_on_a_quantised_base_does_what_it_does_on_the_whole_one(
    kind: str, narrow: Engine, engine: Engine, trained: Path
) -> None:
    engine.restore()
    whole, rounded = prediction(engine), prediction(narrow)
    strong = stack(trained, 2.0)  # six steps move little beside what rounding to four bits moves
    with engine.folded(strong), narrow.folded(strong):
        moved, folded = prediction(engine) - whole, prediction(narrow)
    assert float((folded - whole - moved).norm()) < 0.75 * float((rounded - whole - moved).norm())
    share = float(((folded - rounded) * moved).sum() / moved.square().sum())
    assert 0.9 < share < 1.1, "all of it, not what is left when each number is rounded"


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_runs_live_beside_a_quantised_base(kind: str, narrow: Engine, trained: Path) -> None:
    before, steady = state(narrow), stack(trained, schedule="points 0:1 1:0.999999")
    live, folded, bare = (
        torch.tensor(list(narrow.render(made).image.tobytes())).float()
        for made in (steady, stack(trained), stack(trained, 0.0))
    )
    assert float((live - folded).abs().mean()) < 0.5 * float((bare - folded).abs().mean())
    narrow.restore()
    assert is_same(state(narrow), before)


def test_weights_of_a_quantised_base_are_numbers(engine: Engine, trained: Path) -> None:
    narrow = Engine("imprimatura", device="cpu", dtype="float32", quantise="int8")
    engine.restore()
    assert list(narrow.weights) == list(engine.weights) and len(narrow.weights) == len(engine.weights)
    assert "unet.nowhere" not in narrow.weights
    for path, weight in engine.weights.items():
        torch.testing.assert_close(narrow.weights[path], weight, rtol=0, atol=float(weight.abs().max()) / 127)


def test_a_batch_knows_pictures_of_a_quantised_base_as_others() -> None:
    hashes = {batch_recipe.base_hash(bases.IMPRIMATURA, kind) for kind in quantised_kinds.KINDS}
    assert len(hashes) == len(quantised_kinds.KINDS) and batch_recipe.base_hash(bases.IMPRIMATURA) in hashes


def test_a_quantised_base_is_not_written(trained: Path, tmp_path: Path) -> None:
    narrow = Engine("imprimatura", device="cpu", dtype="float32", quantise="int8")
    with pytest.raises(ConfigError, match="the base is open in int8"):
        baking.into_base(narrow, stack(trained), tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_kind_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="quantise is 'int3'; allowed: none, int8, nf4, fp8"):
        Engine("imprimatura", device="cpu", quantise="int3")
