"""`velatura lora`: sums, ranks, plain LoRAs and differences of models are what dense algebra says, and losses are said
as they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora_tables
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer import families, lora_file
from trainer.errors import AdapterError, ModelError
from trainer.lora_tools import verify
from trainer.lora_tools.convert import convert
from trainer.lora_tools.extract import extract
from trainer.lora_tools.merge import merge
from trainer.lora_tools.opening import open_file, updates
from trainer.lora_tools.plain import to_plain
from trainer.lora_tools.resize import resize
from trainer.lora_tools.weights import open_weights
from trainer.rank_reduction import Cut, cut_dense

MID = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def dense(path: Path) -> dict[str, torch.Tensor]:
    """Every layer's update; small files only."""
    weights = open_weights(Path("imprimatura"))
    return {
        layer: update.dense(weights.get(layer), torch.float64) for layer, update in updates(open_file(path)).items()
    }


def written(folder: Path, parts: dict[str, torch.Tensor], name: str = MID) -> Path:
    metadata = {"ss_network_module": "peft.oft"} if "oft_R.weight" in parts else None  # as our own files say it
    save_file({f"{name}.{suffix}": tensor for suffix, tensor in parts.items()}, folder / "x.safetensors", metadata)
    return folder / "x.safetensors"


def test_a_merge_is_the_sum_and_at_a_rank_the_best_of_that_rank(
    trained: Path, trained_style: Path, tmp_path: Path
) -> None:
    whole = merge([(trained, 0.7), (trained_style, -1.1)], tmp_path / "sum.safetensors", dtype="float32")
    low = merge([(trained, 0.7), (trained_style, -1.1)], tmp_path / "low.safetensors", rank=2, dtype="float32")
    first, second, merged, cut = dense(trained), dense(trained_style), dense(whole.path), dense(low.path)
    lost = square = 0.0
    for layer, mine in merged.items():
        wanted = 0.7 * first.get(layer, 0) - 1.1 * second.get(layer, 0)
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-8)
        values = torch.linalg.svdvals(wanted.flatten(1))
        assert float((cut[layer] - wanted).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-3, abs=1e-6)
        lost, square = lost + float(values[2:].square().sum()), square + float(values.square().sum())
    assert whole.residual == 0 and whole.rank == 7 and low.rank == 2
    assert low.residual == pytest.approx((lost / square) ** 0.5, rel=1e-4)
    header = lora_file.read_header(low.path).metadata
    assert [part["weight"] for part in json.loads(header["velatura.made"])["of"]] == [0.7, -1.1]


def test_files_of_different_families_and_updates_that_need_the_base_are_not_merged(
    trained: Path, tmp_path: Path
) -> None:
    flux = lora_tables.write("flux_lora_kohya", tmp_path, blocks=1)
    with pytest.raises(AdapterError, match="different families"):
        merge([(trained, 1.0), (flux, 1.0)], tmp_path / "out.safetensors")
    dora = written(tmp_path, _parts("dora"))
    with pytest.raises(AdapterError, match="to-plain --base"):
        merge([(trained, 1.0), (dora, 1.0)], tmp_path / "out.safetensors", rank=4)
    with pytest.raises(AdapterError, match="two or more"):
        merge([(trained, 1.0)], tmp_path / "out.safetensors")


@pytest.mark.parametrize(("how", "bound"), [(Cut(rank=2), None), (Cut(energy=0.9), 0.1**0.5), (Cut(error=0.2), 0.2)])
def test_resizing_leaves_out_what_it_says_and_no_more_than_was_allowed(
    how: Cut, bound: float | None, trained: Path, tmp_path: Path
) -> None:
    done = resize(trained, tmp_path / "out.safetensors", how, dtype="float32")
    before, after = dense(trained), dense(done.path)
    lost = sum(float((after[layer] - mine).square().sum()) for layer, mine in before.items())
    whole = sum(float(mine.square().sum()) for mine in before.values())
    assert done.residual == pytest.approx((lost / whole) ** 0.5, rel=1e-3) and set(before) == set(after)
    for layer, mine in before.items():
        share = float((after[layer] - mine).norm() / mine.norm())
        assert bound is None or share <= bound + 1e-5
    assert set(load_file(trained)) == set(load_file(done.path)) and done.before == (4, 4) and done.after[1] <= 4
    if how.rank:
        assert done.after == (2, 2)


def test_resizing_by_block_and_what_fits_no_block_is_refused(trained: Path, tmp_path: Path) -> None:
    resize(trained, tmp_path / "out.safetensors", Cut(rank=3), {"mid_block": 1})
    ranks = {layer: update.rank for layer, update in updates(open_file(tmp_path / "out.safetensors")).items()}
    assert {rank for layer, rank in ranks.items() if "mid_block" in layer} == {1} and {
        rank for layer, rank in ranks.items() if "mid" not in layer
    } == {3}
    with pytest.raises(AdapterError, match="--block nowhere is in the path of no layer"):
        resize(trained, tmp_path / "out.safetensors", Cut(rank=3), {"nowhere": 1})
    with pytest.raises(AdapterError, match="give --rank, --energy or --error"):
        resize(trained, tmp_path / "out.safetensors", Cut())


def test_a_lora_is_extracted_from_the_model_that_it_was_folded_into(
    trained: Path, tmp_path: Path, imprimatura_folder: Path
) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(imprimatura_folder, tuned)
    file = next((tuned / "unet").glob("*.safetensors"))
    weights, change = load_file(file), dense(trained)
    for layer, mine in change.items():
        name = f"{layer.removeprefix('unet.')}.weight"
        weights[name] = (weights[name].double() + 20 * mine).to(torch.float32)
    others = {name: tensor.float() for name, tensor in weights.items()}
    save_file(others, file)
    extracted = extract(tuned, imprimatura_folder, tmp_path / "out.safetensors", Cut(rank=4), dtype="float32")
    assert (
        extracted.layers == len(change) == 56
        and extracted.of > 56
        and extracted.rank == 4
        and extracted.residual < 1e-2
    )
    for layer, mine in dense(extracted.path).items():
        base = open_weights(imprimatura_folder).get(layer).double()
        exact = others[f"{layer.removeprefix('unet.')}.weight"].double() - base
        assert float((mine - exact).norm() / exact.norm()) < 1e-2
    with pytest.raises(AdapterError, match="nothing to extract"):
        extract(imprimatura_folder, imprimatura_folder, tmp_path / "none.safetensors", Cut(rank=4))
    with pytest.raises(ModelError, match="no diffusers pipeline folder"):
        extract(tmp_path, imprimatura_folder, tmp_path / "none.safetensors", Cut(rank=4))


def test_models_that_are_not_alike_are_refused_with_the_first_difference(
    tiny: Path, imprimatura_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"different models: \d+ weights differ in shape"):
        extract(tiny, imprimatura_folder, tmp_path / "out.safetensors", Cut(rank=4))


def _parts(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    size = open_weights(Path("imprimatura")).shapes["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"][0]
    low = {"lora_down.weight": numbers(2, size), "lora_up.weight": numbers(size, 2), "alpha": torch.tensor(1.0)}
    return {
        "dora": {**low, "dora_scale": numbers(size, 1).abs() + 1},
        "dora input": {**low, "dora_scale": numbers(1, size).abs() + 1},
        "loha": {
            "hada_w1_a": numbers(size, 2),
            "hada_w1_b": numbers(2, size),
            "hada_w2_a": numbers(size, 2),
            "hada_w2_b": numbers(2, size),
        },
        "lokr": {"lokr_w1": numbers(4, 4), "lokr_w2": numbers(size // 4, size // 4)},
        "lokr-dora": {
            "lokr_w1": numbers(4, 4),
            "lokr_w2": numbers(size // 4, size // 4),
            "dora_scale": numbers(size).abs() + 1,
        },
        "oft": {"oft_R.weight": numbers(size // 8, 28)},
        "full": {"diff": numbers(size, size)},
    }[kind]


@pytest.mark.parametrize("kind", ["dora", "dora input", "loha", "lokr", "lokr-dora", "oft", "full"])
def test_a_plain_lora_does_what_the_other_method_did_up_to_the_residual_it_states(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, _parts(kind))
    needs_base = kind in ("dora", "dora input", "oft", "lokr-dora")
    if needs_base:
        with pytest.raises(AdapterError, match="depends on the base's weights; name them with --base"):
            to_plain(path, tmp_path / "no.safetensors", Cut(rank=6))
    base = Path("imprimatura") if needs_base else None
    done = to_plain(path, tmp_path / "plain.safetensors", Cut(rank=6), base, dtype="float32")
    (wanted,), (actual,) = dense(path).values(), dense(done.path).values()
    values = torch.linalg.svdvals(wanted)
    assert done.residual == pytest.approx(float(values[6:].norm() / values.norm()), rel=1e-3, abs=1e-6)
    assert float((actual - wanted).norm()) == pytest.approx(float(values[6:].norm()), rel=1e-3, abs=1e-5)
    assert lora_file.inspect(done.path).method == "lora" and done.changed == 1
    exact = to_plain(path, tmp_path / "exact.safetensors", Cut(error=1e-6), base, dtype="float32")
    (all_of_it,) = dense(exact.path).values()
    torch.testing.assert_close(all_of_it, wanted, rtol=1e-4, atol=1e-5)


def test_a_lokr_on_a_fused_weight_is_read_by_layers_as_its_product_says(tmp_path: Path) -> None:
    parts = {"lokr_w1": torch.randn(4, 4), "lokr_w2": torch.randn(9 * 256, 768)}
    path = written(tmp_path, parts, "lora_unet_double_blocks_3_img_attn_qkv")
    whole = torch.kron(parts["lokr_w1"].double(), parts["lokr_w2"].double())
    for number, (layer, update) in enumerate(updates(open_file(path)).items()):
        assert (
            layer == f"transformer.transformer_blocks.3.attn.to_{'qkv'[number]}"
            and update.fits((3072, 3072))
            and not update.fits((3072, 64))
        )
        torch.testing.assert_close(
            update.dense(torch.zeros(3072, 3072), torch.float64), whole[3072 * number : 3072 * (number + 1)]
        )
    file_keys = {f"transformer.transformer_blocks.3.attn.to_{part}": f"made_up_{part}" for part in "qkv"}
    read = lora_file.read(path, file_keys, dict.fromkeys(file_keys, (3072, 3072)))
    assert set(read) == set(file_keys)
    with pytest.raises(AdapterError, match="lokr module can't be taken apart"):
        convert(path, tmp_path / "out.safetensors", "diffusers")


def test_a_convolution_with_its_kernel_apart_is_the_two_step_convolution(tmp_path: Path) -> None:
    down, mid, up = torch.randn(2, 8, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(6, 2, 1, 1)
    path = written(
        tmp_path,
        {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(4.0)},
        "unet.x",
    )
    read = lora_file.read(path, {"unet.x": "lora_unet_x"}, {"unet.x": (6, 8, 3, 3)})["unet.x"].dense(
        torch.zeros(6, 8, 3, 3), torch.float32
    )
    picture = torch.randn(1, 8, 5, 5)
    conv = torch.nn.functional.conv2d
    wanted = 2.0 * conv(conv(conv(picture, down), mid, padding=1), up)
    torch.testing.assert_close(conv(picture, read, padding=1), wanted, rtol=1e-4, atol=1e-4)


def test_a_control_lora_is_read_whole_and_kept_whole_but_refused_for_a_base(tmp_path: Path) -> None:
    parts = {
        module: part
        for module, part in lora_tables.modules("flux_control_lora", 1).items()
        if "blocks" not in module or "norm" in module or "img_mlp" in module
    }
    tensors = {name: tensor.to(torch.float16) for name, tensor in lora_tables.fill(parts, rank=2).items()}
    save_file(tensors, tmp_path / "control.safetensors")
    info = lora_file.inspect(tmp_path / "control.safetensors")
    assert (info.family, info.scheme, info.unknown) == ("flux", "bfl", ()) and info.extras > 4
    convert(tmp_path / "control.safetensors", tmp_path / "comfy.safetensors", "comfyui")
    assert load_file(tmp_path / "comfy.safetensors").keys() == {f"diffusion_model.{name}" for name in tensors}
    file_keys = {"transformer.transformer_blocks.0.ff.net.0.proj": "lora_unet_double_blocks_0_img_mlp_0"}
    with pytest.raises(AdapterError, match="biases or norms"):
        lora_file.read(
            tmp_path / "control.safetensors",
            file_keys,
            {"transformer.transformer_blocks.0.ff.net.0.proj": (12288, 3072)},
        )


def test_the_largest_singular_values_of_a_large_matrix_are_found_without_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1050, 5, generator=generator) @ torch.randn(
        5, 4100, generator=generator
    ) + 0.001 * torch.randn(1050, 4100, generator=generator)
    cut_off = cut_dense(matrix, Cut(rank=5))
    wanted = float(torch.linalg.svdvals(matrix.double())[5:].norm() / matrix.double().norm())
    assert (cut_off.lost / cut_off.whole) ** 0.5 == pytest.approx(wanted, rel=1e-3)


def test_verify_finds_a_file_that_diffusers_would_change(tmp_path: Path) -> None:
    tensors = lora_tables.fill(lora_tables.modules("sd15_lora_kohya", 1), rank=2)
    save_file(tensors, tmp_path / "good.safetensors")
    proofs = {proof.through: proof for proof in verify.verify(tmp_path / "good.safetensors")}
    assert proofs["diffusers' converter"].holds and proofs["kohya names"].holds and proofs["comfyui names"].holds
    proofs = {
        proof.through: proof
        for proof in verify.verify(lora_tables.write("flux_lora_aitoolkit", tmp_path, blocks=1, rank=1))
    }
    assert (
        not proofs["diffusers' converter"].holds
        and "diffusion_model." in proofs["diffusers' converter"].why
        and proofs["kohya names"].holds
    )


def test_the_commands_say_what_they_did_and_never_write_over_what_they_read(
    trained: Path, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    done = run_velatura("lora", "convert", trained, "--to", "diffusers", "--out", "peft.safetensors", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["after"] == 56, done.stderr
    done = run_velatura(
        "lora", "resize", "peft.safetensors", "--rank", "2", "--block", "mid_block=1", "--out", "small.safetensors"
    )
    assert done.returncode == 0 and "rank 4-4 is 1-2" in done.stdout, done.stderr
    done = run_velatura("lora", "merge", f"{trained}:0.5", "small.safetensors:-1", "--out", "sum.safetensors")
    assert done.returncode == 0 and "left out" in done.stdout, done.stderr
    done = run_velatura("lora", "verify", "sum.safetensors", "--base", "imprimatura", "--json")
    proofs = {proof["through"]: proof for proof in json.loads(done.stdout)}
    assert (
        done.returncode == 0
        and proofs["diffusers' pipeline"]["holds"]
        and proofs["diffusers' converter"]["layers"] == 56
    ), done.stderr
    refused = run_velatura("lora", "convert", "sum.safetensors", "--out", "sum.safetensors")
    assert refused.returncode == 2 and "a file that is read" in refused.stderr
    shown = run_velatura("inspect", "sum.safetensors").stdout
    assert "ComfyUI" in shown and "unet.mid_block" in shown and "kohya" in shown


def test_a_modulation_with_swapped_halves_is_straightened_or_refused(tmp_path: Path) -> None:
    down, up = torch.randn(2, 3072), torch.randn(6144, 2)
    path = written(
        tmp_path,
        {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)},
        "lora_unet_final_layer_adaLN_modulation_1",
    )
    convert(path, tmp_path / "out.safetensors", "diffusers")
    tensors = load_file(tmp_path / "out.safetensors")
    assert torch.equal(tensors["transformer.norm_out.linear.lora_B.weight"], torch.cat([up[3072:], up[:3072]]))
    convert(tmp_path / "out.safetensors", tmp_path / "back.safetensors", "kohya")
    assert torch.equal(
        load_file(tmp_path / "back.safetensors")["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"], up
    )
    loha = {
        "hada_w1_a": torch.ones(6144, 1),
        "hada_w1_b": torch.ones(1, 3072),
        "hada_w2_a": torch.ones(6144, 1),
        "hada_w2_b": torch.ones(1, 3072),
    }
    path = written(tmp_path, loha, "lora_unet_final_layer_adaLN_modulation_1")
    with pytest.raises(AdapterError, match="halves the other way round"):
        convert(path, tmp_path / "out.safetensors", "diffusers")


@pytest.mark.parametrize("through", ["its name", "a link"])
def test_no_tool_writes_over_what_it_reads(
    trained: Path, tmp_path: Path, through: str, run_velatura: Callable[..., Any]
) -> None:
    """Whichever of its inputs that is, and however it is named."""
    copies = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for copied in copies:
        shutil.copy(trained, copied)
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    weights = next((tiny / "unet").glob("*.safetensors"))
    before = {path: path.read_bytes() for path in (*copies, weights)}

    def named(path: Path) -> Path:
        if through == "its name":
            return path
        link = path.with_name(f"link-{path.name}")
        link.symlink_to(path)
        return link

    second = named(copies[1])
    for arguments in (
        ["lora", "merge", *copies, "--out", second], ["stack", "bake", *copies, "--out", second],
        ["lora", "extract", tiny, tiny, "--rank", "2", "--out", named(weights)],
    ):  # fmt: skip
        refused = run_velatura(*map(str, arguments))
        assert refused.returncode == 2 and "a file that is read; name another" in refused.stderr, refused.stderr
    assert {path: path.read_bytes() for path in before} == before
