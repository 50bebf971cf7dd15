"""What a round trip of a LoRA file must keep, point by point: (a) to (j) of the list that the file formats were
measured by.

The oracle is the formula applied to the file's own tensors, without our reader: (alpha / rank) * up @ down, rows of a
fused weight cut at the sizes of the published models. Updates are compared by what they do to a few random inputs,
since the dense ones of a full-size model take 20 GB.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import lora_tables
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import lora_file
from trainer.errors import AdapterError
from trainer.lora_file import names, weight_shapes
from trainer.lora_tools import verify
from trainer.lora_tools.convert import convert
from trainer.lora_tools.opening import Opened, open_file, updates
from trainer.render.engine import Engine

PLAIN = [
    "sd15_lora_kohya",
    "sd15_locon_kohya",
    "sdxl_lora_kohya",
    "flux_lora_kohya",
    "flux_lora_diffusers",
    "flux_lora_diffusers_base_model",
]
PLAIN += [
    "flux_lora_aitoolkit",
    "flux_lora_xlabs",
    "qwen_image_lora_diffusers",
    "krea2_lora_kohya",
    "anima_lora_kohya",
    "anima_lora_peft",
]
_SUFFIXES = {
    "lora_down.weight": "down",
    "lora_A.weight": "down",
    "down.weight": "down",
    "lora_up.weight": "up",
    "lora_B.weight": "up",
    "up.weight": "up",
}


def probe(into: int) -> Tensor:
    """The same random inputs every time."""
    return torch.randn(into, 3, generator=torch.Generator().manual_seed(into), dtype=torch.float64)


def oracle(path: Path) -> dict[str, Tensor]:
    """What every module does to the probe, by the file's own name, from its tensors alone."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        suffix = next(suffix for suffix in (*_SUFFIXES, "alpha") if name.endswith(f".{suffix}"))
        parts.setdefault(name.removesuffix(f".{suffix}"), {})[_SUFFIXES.get(suffix, suffix)] = tensor.double()
    results = {}
    for module, part in parts.items():
        rank = len(part["down"])
        scale = float(part["alpha"]) / rank if "alpha" in part else 1.0
        down = part["down"].flatten(1)
        results[module] = scale * part["up"].flatten(1) @ (down @ probe(down.shape[1]))
    return results


def ours(path: Path) -> dict[str, Tensor]:
    """What every layer's update does to the probe, by its path, as we read it."""
    results = {}
    for layer, update in updates(open_file(path)).items():
        assert isinstance(update, lora_file.Delta)
        down = update.down.double().flatten(1)
        results[layer] = update.scale * update.up.double().flatten(1) @ (down @ probe(down.shape[1]))
    return results


def sums(results: dict[str, Tensor]) -> float:
    return float(torch.stack([tensor.square().sum() for tensor in results.values()]).sum())


@pytest.mark.parametrize("table", PLAIN)
def test_a_every_layer_is_the_formula_of_its_file_and_what_diffusers_makes_of_it(table: str, tmp_path: Path) -> None:
    path = lora_tables.write(table, tmp_path, blocks=1, rank=3, alpha=6.0)
    read, wanted, known = ours(path), oracle(path), open_file(path).known
    shapes = {
        module: weight_shapes.shape_of({suffix: tuple(t.shape) for suffix, t in content.parts.items()})
        for module, content in open_file(path).modules.items()
    }
    for module, dense in wanted.items():
        target, shape = known.targets[module], shapes[module]
        assert shape is not None
        heights = target.parts(*shape)
        assert heights and len(heights) == len(target.paths)
        pieces = dense.split(heights)
        if target.spelling != "diffusers" and target.swaps(*shape):
            pieces = (torch.cat(dense.chunk(2)[::-1]),)
        for layer, piece in zip(target.paths, pieces, strict=True):
            assert float((read[layer] - piece).norm()) <= 1e-5 * max(float(piece.norm()), 1e-12), layer
    (converter,) = [proof for proof in verify.verify(path) if proof.through == "diffusers' converter"]
    places = {place.tool: place for place in lora_file.inspect(path).places}
    assert converter.holds == (places["diffusers"].verdict == "yes") or "no pipeline" in converter.why, (
        converter,
        places["diffusers"],
    )


def _has_text(file: Opened) -> bool:
    return any(target.component.startswith("text") for target in file.known.targets.values())


@pytest.mark.parametrize("table", PLAIN)
@pytest.mark.parametrize("scheme", ["peft", "bare"])
def test_b_a_scheme_without_names_for_text_encoders_refuses_them(table: str, scheme: str, tmp_path: Path) -> None:
    path = lora_tables.write(table, tmp_path, blocks=1, rank=2)
    if not _has_text(open_file(path)):
        pytest.skip("it has no text encoder")
    with pytest.raises(AdapterError, match="no names for text encoders"):
        convert(path, tmp_path / "out.safetensors", scheme)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("table", PLAIN)
@pytest.mark.parametrize("scheme", ["kohya", "diffusers", "comfyui", "onetrainer", "lycoris", "peft", "bare"])
def test_b_no_layer_is_lost_and_none_is_added_in_any_scheme(table: str, scheme: str, tmp_path: Path) -> None:
    path = lora_tables.write(table, tmp_path, blocks=1, rank=2)
    source = open_file(path)
    if scheme in ("peft", "bare") and _has_text(source):
        pytest.skip("it has no names for text encoders")
    convert(path, tmp_path / "out.safetensors", scheme)
    written = open_file(tmp_path / "out.safetensors")
    assert set(updates(written)) == set(updates(source)) and written.family() == source.family()
    before = sum(
        tensor.numel() for name, tensor in load_file(path).items() if name.endswith(("down.weight", "lora_A.weight"))
    )
    assert before > 0 and len(written.modules) == len(
        {name.rsplit(".lora_", 1)[0].removesuffix(".alpha") for name in load_file(tmp_path / "out.safetensors")}
    )


def _uneven(tmp_path: Path, table: str = "sd15_locon_kohya", text: bool = True) -> Path:
    """A file whose ranks and alphas differ by module, one of them of rank 1."""
    parts = {
        module: weights
        for module, weights in lora_tables.modules(table, 1).items()
        if text or not module.startswith("lora_te")
    }
    tensors: dict[str, Tensor] = {}
    for number, (module, part) in enumerate(parts.items()):
        tensors |= lora_tables.fill({module: part}, rank=1 + number % 4, alpha=float(1 + number % 3), seed=number)
    save_file(tensors, tmp_path / "uneven.safetensors")
    return tmp_path / "uneven.safetensors"


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("table", ["sd15_locon_kohya", "sdxl_lora_kohya", "flux_lora_kohya"])
def test_c_ranks_and_alphas_that_differ_convolutions_and_text_encoders_come_through(
    table: str, text: bool, tmp_path: Path
) -> None:
    path = _uneven(tmp_path, table, text)
    wanted = oracle(path)
    for scheme in ("kohya", "diffusers", "comfyui"):
        convert(path, tmp_path / "out.safetensors", scheme, "float32")
        assert verify.worst_difference(open_file(path), open_file(tmp_path / "out.safetensors")) <= 1e-5
        assert sums(ours(tmp_path / "out.safetensors")) == pytest.approx(sums(wanted), rel=1e-5)
    convert(path, tmp_path / "out.safetensors", "kohya", "float32")
    tensors = load_file(tmp_path / "out.safetensors")
    assert len({float(tensor) for name, tensor in tensors.items() if name.endswith(".alpha")}) == 1, (
        "one alpha for the whole file"
    )
    ranks = {len(tensor) for name, tensor in tensors.items() if name.endswith("lora_down.weight")}
    assert 1 in ranks and len(ranks) == 4
    if table == "sd15_locon_kohya":
        kernels = {
            tuple(tensor.shape[2:])
            for name, tensor in tensors.items()
            if name.endswith("lora_down.weight") and tensor.ndim == 4
        }
        assert kernels == {(1, 1), (3, 3)}


def test_c_a_negative_weight_takes_away_what_a_positive_one_adds(trained: Path, tmp_path: Path) -> None:
    from trainer.lora_tools.merge import merge

    merged = merge([(trained, 0.75), (trained, -0.75)], tmp_path / "none.safetensors", dtype="float32")
    assert sums(ours(merged.path)) <= 1e-12 * sums(ours(trained))
    less = merge([(trained, 0.5), (trained, -1.5)], tmp_path / "minus.safetensors", dtype="float32")
    for layer, dense in ours(less.path).items():
        torch.testing.assert_close(dense, -ours(trained)[layer], rtol=1e-5, atol=1e-8)
        break


@pytest.mark.parametrize("flattened", [False, True], ids=["transformers 4", "transformers 5"])
def test_d_text_encoder_keys_are_read_with_and_without_text_model_and_written_with(
    flattened: bool, tmp_path: Path
) -> None:
    tensors = lora_tables.fill(lora_tables.modules("sd15_lora_kohya", 1), rank=2)
    if flattened:
        tensors = {name.replace("lora_te_text_model_", "lora_te_"): tensor for name, tensor in tensors.items()}
        assert any(name.startswith("lora_te_encoder_layers_0_") for name in tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    assert not open_file(tmp_path / "x.safetensors").known.unknown
    for scheme, start in {
        "kohya": "lora_te_text_model_encoder",
        "diffusers": "text_encoder.text_model.encoder",
        "comfyui": "text_encoders.clip_l",
    }.items():
        convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors", scheme)
        keys = [name for name in load_file(tmp_path / "out.safetensors") if "self_attn" in name]
        assert keys and all(name.startswith(start) and "text_model" in name for name in keys)


@pytest.mark.parametrize("table", PLAIN)
def test_e_written_read_and_written_again_is_the_same_to_the_byte(table: str, tmp_path: Path) -> None:
    path = lora_tables.write(
        table, tmp_path, blocks=1, rank=3, alpha=3.0
    )  # through PEFT's names no other alpha survives as a number
    first, back, again = (tmp_path / f"{name}.safetensors" for name in ("first", "back", "again"))
    convert(path, first)
    convert(first, back, "diffusers" if open_file(path).family().default == "kohya" else "kohya")
    convert(back, again)
    left, second = load_file(first), load_file(again)
    assert left.keys() == second.keys()
    if table in (
        "flux_lora_diffusers",
        "flux_lora_diffusers_base_model",
    ):  # three ranks side by side at one alpha: a factor of 3 there and back
        assert all(torch.allclose(left[name], second[name], rtol=2e-7, atol=0) for name in left)
    else:
        assert _body(first) == _body(again)
    path = lora_tables.write(table, tmp_path, blocks=1, rank=3, alpha=5.0)
    convert(path, first, "kohya")
    convert(first, again, "kohya")
    assert _body(first) == _body(again)


def _body(path: Path) -> bytes:
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_f_the_hash_in_the_header_is_that_of_the_tensors_whoever_wrote_the_file_before(tmp_path: Path) -> None:
    path = lora_tables.write("flux_lora_kohya", tmp_path, blocks=1)
    tensors = load_file(path)
    save_file(tensors, path, {"sshs_model_hash": "0" * 64, "ss_tag_frequency": json.dumps({"1_x": {"fox": 3}})})
    convert(path, tmp_path / "out.safetensors", "diffusers")
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(_body(tmp_path / "out.safetensors")).hexdigest()
    assert metadata["ss_tag_frequency"] and metadata["modelspec.architecture"] == "flux-1-dev/lora"
    assert json.loads(metadata["velatura.made"])["verb"] == "convert"


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-4), ("bfloat16", 4e-3), ("float32", 1e-6)])
def test_g_rounding_is_bounded_and_reported(dtype: str, bound: float, tmp_path: Path) -> None:
    path = lora_tables.write("flux_lora_kohya", tmp_path, blocks=1)
    reported = convert(path, tmp_path / "out.safetensors", "diffusers", dtype).error
    wanted, actual = ours(path), ours(tmp_path / "out.safetensors")
    measured = max(float((actual[layer] - dense).norm() / dense.norm()) for layer, dense in wanted.items())
    assert measured <= 1.2 * bound and reported <= bound and reported == pytest.approx(measured, rel=0.5, abs=1e-7)


@pytest.mark.parametrize(
    ("first", "second"), [("sd15_lora_kohya", "sd15_locon_kohya"), ("flux_lora_kohya", "flux_lora_diffusers")]
)
def test_h_two_files_merged_are_the_sum_of_their_oracles(first: str, second: str, tmp_path: Path) -> None:
    from trainer.lora_tools.merge import merge

    left, two = (
        lora_tables.write(first, tmp_path, blocks=1, rank=2),
        lora_tables.write(second, tmp_path, blocks=1, rank=3, alpha=5.0),
    )
    merged = merge([(left, 0.8), (two, -0.3)], tmp_path / "sum.safetensors", dtype="float32")
    a, b, merged_sums = ours(left), ours(two), ours(merged.path)
    assert set(merged_sums) == set(a) | set(b) and merged.residual == 0
    for layer, dense in merged_sums.items():
        wanted = 0.8 * a.get(layer, 0) - 0.3 * b.get(layer, 0)
        assert float((dense - wanted).norm()) <= 1e-5 * float(wanted.norm()), layer


def test_i_one_unknown_key_is_reported_and_refused_never_dropped(
    trained: Path, tmp_path: Path, imprimatura_folder: Path
) -> None:
    engine = Engine(str(imprimatura_folder), device="cpu", dtype="float32")
    more = {
        "lora_unet_strange_block_7_to_q.lora_down.weight": torch.ones(2, 8),
        "lora_unet_strange_block_7_to_q.lora_up.weight": torch.ones(8, 2),
    }
    save_file(load_file(trained) | more, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=r"56 of 57 modules matched.*lora_unet_strange_block_7_to_q"):
        lora_file.read(tmp_path / "x.safetensors", engine.file_keys, engine.shapes)
    with pytest.raises(AdapterError, match="1 of 57 modules have no name"):
        convert(tmp_path / "x.safetensors", tmp_path / "out.safetensors", "diffusers")
    info = lora_file.inspect(tmp_path / "x.safetensors")
    assert info.unknown == ("lora_unet_strange_block_7_to_q",) and not (tmp_path / "out.safetensors").exists()
    save_file(load_file(trained) | {"what.is.this": torch.ones(2)}, tmp_path / "y.safetensors")
    with pytest.raises(AdapterError, match=r"1 names follow no known scheme.*what\.is\.this"):
        lora_file.inspect(tmp_path / "y.safetensors")


def test_j_a_converted_file_unloads_to_the_base_bit_by_bit(trained: Path, tmp_path: Path) -> None:
    from trainer.config import AdapterChoice, StackConfig

    convert(trained, tmp_path / "peft.safetensors", "diffusers")
    engine = Engine("imprimatura", device="cpu", dtype="float32")
    before = {path: weight.clone() for path, weight in engine.weights.items()}
    held = []
    for path in (trained, tmp_path / "peft.safetensors"):
        stack = StackConfig(prompt="a fox", adapters=(AdapterChoice(file=str(path), weight=0.9),))
        with engine.folded(stack):
            held.append({name: weight.clone() for name, weight in engine.weights.items()})
    engine.restore()
    assert all(torch.equal(engine.weights[path], weight) for path, weight in before.items())
    assert any(not torch.equal(held[0][path], before[path]) for path in before)
    for path, weight in held[0].items():
        torch.testing.assert_close(held[1][path], weight, rtol=1e-5, atol=1e-6)


def test_diffusers_loads_what_is_written_in_its_names_with_its_own_header_entry(
    trained: Path, tmp_path: Path, imprimatura_folder: Path
) -> None:
    convert(trained, tmp_path / "peft.safetensors", "diffusers", "float32")
    proofs = {proof.through: proof for proof in verify.verify(tmp_path / "peft.safetensors", imprimatura_folder)}
    assert proofs["diffusers' pipeline"].holds and proofs["diffusers' converter"].holds and proofs["kohya names"].holds
    entry = json.loads(lora_file.read_header(tmp_path / "peft.safetensors").metadata["lora_adapter_metadata"])
    assert entry["unet.r"] == entry["unet.lora_alpha"] == 4


def test_families_have_the_default_scheme_that_most_tools_read() -> None:
    assert {
        name: family.default for name, family in names.registry().items() if family.default == "kohya"
    } == dict.fromkeys(("flux", "sd", "sdxl"), "kohya")
