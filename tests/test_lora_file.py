"""LoRA files: what is written loads elsewhere with the same numbers; what is read is checked first."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from trainer import families, lora_file
from trainer.errors import AdapterError
from trainer.render.engine import Engine

SD = families.registry()["sd"]


@pytest.mark.parametrize("which", ["trained", "trained_style"])
def test_diffusers_loads_our_file_with_the_same_deltas_and_no_key_left_over(
    which: str, request: pytest.FixtureRequest, engine: Engine, imprimatura_folder: Path
) -> None:
    path = request.getfixturevalue(which)
    ours = lora_file.read(path, engine.file_keys, engine.shapes)
    pipe = StableDiffusionPipeline.from_pretrained(
        str(imprimatura_folder), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    theirs = {
        name: module.get_delta_weight(module.active_adapters[0])
        for name, module in pipe.unet.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {f"unet.{name}" for name in theirs} == set(ours)
    for name, delta in theirs.items():
        mine = ours[f"unet.{name}"].dense(engine.weights[f"unet.{name}"], torch.float32)
        assert float((mine - delta.detach()).norm() / delta.detach().norm()) <= 1e-5


def test_alpha_is_one_file_wide_value_on_every_module(trained: Path) -> None:
    tensors = load_file(trained)
    modules = {name.split(".")[0] for name in tensors}
    assert {float(tensors[f"{module}.alpha"]) for module in modules} == {2.0}
    assert all(name.startswith("lora_unet_") for name in modules)


def test_the_header_says_what_other_tools_read_and_the_hash_is_that_of_the_tensors(trained: Path) -> None:
    with safe_open(trained, "pt") as file:
        metadata = file.metadata()
    raw = trained.read_bytes()
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest() == lora_file.inspect(trained).sha256
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert json.loads(metadata["ss_tag_frequency"])
    recipe = json.loads(metadata[lora_file.RECIPE_KEY])
    assert recipe["config"]["adapter"]["rank"] == 4
    assert str(Path.home()) not in json.dumps(metadata) and str(trained.parents[1]) not in json.dumps(metadata)


def test_a_lora_can_be_the_preset_of_the_next_training(trained: Path) -> None:
    from trainer import presets

    config = presets.load(str(trained), {"seed": 9})
    assert config.adapter.rank == 4 and config.seed == 9 and config.max_steps == 6


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    modules = {
        "lora_unet_x": {
            "lora_down.weight": torch.ones(2, 3),
            "lora_up.weight": torch.ones(4, 2),
            "alpha": torch.tensor(1.0),
        }
    }
    metadata = {f"ss_{number}": "v" for number in range(20)}
    for name in "ab":
        lora_file.save(tmp_path / name, modules, metadata, torch.float32)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_names_are_those_of_sd_scripts_for_sd_1_5() -> None:
    """Against a table listed by running sd-scripts on SD 1.5."""
    table = json.loads((Path(__file__).parent / "key_tables" / "sd15_kohya.json").read_text())["modules"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=768, attention_head_dim=8
        )
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    pipe = type("Pipe", (), {"unet": unet, "text_encoder": text})()
    ours = SD.file_keys(pipe)
    by_key = {key: path for path, key in ours.items()}
    assert set(table) <= set(by_key), sorted(set(table) - set(by_key))[:3]
    for key, (down, up) in table.items():
        component, _, path = by_key[key].partition(".")
        weight = getattr(pipe, component).get_submodule(path).weight
        assert [weight.shape[0], *weight.shape[1:]] == [up[0], *down[1:]]


@pytest.mark.parametrize("spelling", ["kohya", "diffusers", "peft"])
def test_a_file_is_read_in_every_spelling(spelling: str, trained: Path, engine: Engine, tmp_path: Path) -> None:
    ours = lora_file.read(trained, engine.file_keys, engine.shapes)
    tensors = {}
    for path, delta in ours.items():
        plain = path.removeprefix("unet.")
        base, down, up = {
            "kohya": (engine.file_keys[path], "lora_down.weight", "lora_up.weight"),
            "diffusers": (path, "lora_A.weight", "lora_B.weight"),
            "peft": (f"base_model.model.{plain}", "lora_A.weight", "lora_B.weight"),
        }[spelling]
        tensors |= {f"{base}.{down}": delta.down * delta.scale, f"{base}.{up}": delta.up}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "other.safetensors")
    read = lora_file.read(tmp_path / "other.safetensors", engine.file_keys, engine.shapes)
    assert set(read) == set(ours)
    for path, delta in read.items():
        base = engine.weights[path]
        torch.testing.assert_close(
            delta.dense(base, torch.float32), ours[path].dense(base, torch.float32), rtol=1e-5, atol=1e-7
        )


def test_a_file_that_half_matches_is_refused_with_the_names(trained: Path, engine: Engine, tmp_path: Path) -> None:
    tensors = load_file(trained)
    renamed = {name.replace("mid_block", "middle_thing"): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "half.safetensors")
    with pytest.raises(AdapterError, match=r"48 of 56 modules matched.*middle_thing"):
        lora_file.read(tmp_path / "half.safetensors", engine.file_keys, engine.shapes)


def test_a_file_of_another_width_is_refused_with_both_shapes(trained: Path, engine: Engine, tmp_path: Path) -> None:
    tensors = {
        name: torch.cat([tensor, tensor], 1) if name.endswith("lora_down.weight") else tensor
        for name, tensor in load_file(trained).items()
    }
    save_file(tensors, tmp_path / "wide.safetensors")
    with pytest.raises(AdapterError, match="another base"):
        lora_file.read(tmp_path / "wide.safetensors", engine.file_keys, engine.shapes)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_file_with_a_number_that_is_none_is_refused(poison: float, trained: Path, tmp_path: Path) -> None:
    tensors = load_file(trained)
    next(iter(tensors.values())).view(-1)[0] = poison
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(AdapterError, match="NaN"):
        lora_file.inspect(tmp_path / "nan.safetensors")


def test_a_method_we_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    save_file(
        {"lora_unet_x.oft_blocks": torch.ones(2, 2, 2), "lora_unet_x.alpha": torch.ones(())},
        tmp_path / "oft.safetensors",
    )
    with pytest.raises(AdapterError, match="oft_blocks.*none of dora"):
        lora_file.inspect(tmp_path / "oft.safetensors")


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_new_words_travel_in_the_file_as_a1111_bundles_them(tmp_path: Path) -> None:
    modules = {
        "lora_unet_x": {
            "lora_down.weight": torch.ones(2, 3),
            "lora_up.weight": torch.ones(4, 2),
            "alpha": torch.tensor(1.0),
        }
    }
    words = {
        "mokka": {"string_to_param.*": numbers(2, 32)},
        "v1.5-style": {"clip_l": numbers(1, 32), "clip_g": numbers(1, 48)},
    }
    lora_file.save(tmp_path / "x.safetensors", modules, {}, torch.float16, words)
    keys = {"bundle_emb.mokka.string_to_param.*", "bundle_emb.v1.5-style.clip_l", "bundle_emb.v1.5-style.clip_g"}
    assert keys == {name for name in load_file(tmp_path / "x.safetensors") if "bundle" in name}
    embeddings = lora_file.embeddings(tmp_path / "x.safetensors")
    assert (
        all(
            torch.equal(embeddings[word][key], tensor.half())
            for word, parts in words.items()
            for key, tensor in parts.items()
        )
        and len(embeddings) == 2
    )
    info = lora_file.inspect(tmp_path / "x.safetensors")
    assert info.embeddings == {"mokka": 2, "v1.5-style": 1} and info.num_modules == 1
    assert set(lora_file.read(tmp_path / "x.safetensors", {"unet.x": "lora_unet_x"}, {"unet.x": (4, 3)})) == {"unet.x"}


def test_a_word_with_vectors_of_no_shape_is_refused(tmp_path: Path) -> None:
    parts = {"lora_unet_x.lora_down.weight": torch.ones(2, 3), "lora_unet_x.lora_up.weight": torch.ones(4, 2)}
    save_file(parts | {"bundle_emb.mokka.string_to_param.*": torch.ones(5)}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=r"'mokka' has vectors of shape \(5,\)"):
        lora_file.inspect(tmp_path / "x.safetensors")
    uneven = {"bundle_emb.mokka.clip_l": torch.ones(1, 5), "bundle_emb.mokka.clip_g": torch.ones(2, 6)}
    save_file(parts | uneven, tmp_path / "x.safetensors")
    with pytest.raises(
        AdapterError, match=r"'mokka' has a number of vectors for each text encoder \(.*\); allowed: one for all"
    ):
        lora_file.inspect(tmp_path / "x.safetensors")


VALID = save(
    {"lora_unet_x.lora_down.weight": torch.ones(2, 3), "lora_unet_x.lora_up.weight": torch.ones(4, 2)}, {"ss_x": "y"}
)


@given(
    st.binary(max_size=300)
    | st.builds(
        lambda at, byte: VALID[:at] + bytes([byte]) + VALID[at + 1 :],
        st.integers(0, len(VALID) - 1),
        st.integers(0, 255),
    )
    | st.integers(0, len(VALID)).map(lambda cut: VALID[:cut])
)
@settings(max_examples=400)
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(content)
    try:
        lora_file.inspect(path)
    except AdapterError as error:
        assert "x.safetensors" in str(error)


def test_a_header_that_claims_two_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    path.write_bytes((2 << 30).to_bytes(8, "little") + b"{}")
    with pytest.raises(AdapterError, match=str(2 << 30)):
        lora_file.read_header(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nothing.safetensors"):
        lora_file.inspect(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(
    ("down", "up", "alpha"),
    [
        ((2, 3, 3, 3), (4, 2, 3, 3), (1,)),
        ((2, 3), (4, 2), (2,)),
        ((2, 3), (4, 5), (1,)),
        ((2, 3), (4, 2, 1, 1), (1,)),
        ((0, 3), (4, 0), (1,)),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(down, up, alpha, tmp_path: Path) -> None:
    tensors = {"lora_down.weight": torch.ones(down), "lora_up.weight": torch.ones(up), "alpha": torch.ones(alpha)}
    save_file({f"lora_unet_x.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="lora_unet_x"):
        lora_file.inspect(tmp_path / "x.safetensors")


def test_the_alpha_in_the_header_of_a_diffusers_file_counts(
    imprimatura_folder: Path, engine: Engine, tmp_path: Path
) -> None:
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig, get_peft_model_state_dict

    pipe = StableDiffusionPipeline.from_pretrained(
        str(imprimatura_folder), torch_dtype=torch.float32, local_files_only=True
    )
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["to_q"], init_lora_weights=False))
    layers, metadata = get_peft_model_state_dict(pipe.unet), _collate_lora_metadata({"unet": pipe.unet})
    pipe.save_lora_weights(str(tmp_path), unet_lora_layers=layers, weight_name="theirs.safetensors", **metadata)
    read = lora_file.read(tmp_path / "theirs.safetensors", engine.file_keys, engine.shapes)
    theirs = {
        name: module.get_delta_weight("default").detach()
        for name, module in pipe.unet.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert {path.removeprefix("unet.") for path in read} == set(theirs)
    for name, delta in theirs.items():
        torch.testing.assert_close(
            read[f"unet.{name}"].dense(engine.weights[f"unet.{name}"], torch.float32), delta, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("recipe", ["{", "[]", '{"config": 3}', '{"config": {"base": 5, "family": []}}', "[" * 5000])
def test_a_strange_recipe_in_a_header_breaks_nothing(recipe: str, trained: Path, tmp_path: Path) -> None:
    from trainer import presets
    from trainer.errors import UserError

    save_file(load_file(trained), tmp_path / "x.safetensors", {lora_file.RECIPE_KEY: recipe})
    assert lora_file.inspect(tmp_path / "x.safetensors").base is None
    with pytest.raises(UserError):
        presets.load(str(tmp_path / "x.safetensors"), {})
