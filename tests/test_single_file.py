"""Single-file checkpoints: what is detected, what is refused, and that every tensor arrives where the folder it was written from has it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import single_files
import torch
from safetensors.torch import load_file, save_file
from single_files import add, velatura

from tests import plain
from trainer import bases, families, lora_file, model_registry, presets, session, single_file
from trainer.config import AdapterChoice, StackConfig
from trainer.errors import ModelError
from trainer.render.engine import Engine
from trainer.single_file import blueprints, texts

WRITERS = {"sd": single_files.sd_file, "sdxl": single_files.sdxl_file, "sd3": single_files.sd3_file}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module", params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A family, its tiny diffusers folder, and the same as one file."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny = families.registry()[request.param].tiny(folder / "tiny")
    return request.param, tiny, WRITERS[request.param](tiny, folder / "artist.safetensors")


def head_only(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F16", metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file whose tensors are holes on the disk, as large as they claim to be."""
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end, size = 0, {"F16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
    for name, shape in shapes.items():
        start, end = end, end + size * int(torch.tensor(shape).prod())
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(fields).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(raw)) + raw)
        opened.truncate(8 + len(raw) + end)
    return file


# The way from a file to a picture.


def test_every_tensor_arrives_as_the_folder_has_it(written: tuple[str, Path, Path]) -> None:
    name, tiny, file = written
    family = families.registry()[name]
    add(str(file), "--name", "mine", "--like", str(tiny))
    assert bases.family_of("mine") == bases.family_of(str(file)) == name
    folder = bases.resolve("mine", family)
    assert bases.resolve(str(file), family) == folder, "by its path it is the same registered file"
    ours, theirs = (bases.open_pipeline(family, one, "cpu", torch.float32) for one in (folder, tiny))
    for part in [name for name, one in theirs.components.items() if isinstance(one, torch.nn.Module)]:
        state, truth = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert state.keys() == truth.keys() and all(torch.equal(state[key], truth[key]) for key in truth), part
    assert family.prediction_of(folder) == family.prediction_of(tiny) and bases.multiple_px(folder) == bases.multiple_px(tiny)


def test_a_lora_trained_on_a_file_draws_as_on_its_folder(tmp_path: Path, draw_dots: Callable[..., Path]) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    file = single_files.sd_file(tiny, tmp_path / "artist.safetensors")
    add(str(file), "--like", str(tiny))
    changes = {
        "family": "sd", "base": "artist", "resolution_px": 64, "max_steps": 2, "batch_size": 1, "preview_every_steps": 0, "learning_rate": 0.05,
        "data.folder": str(draw_dots(tmp_path / "dots", "a {colour} dot", num=2)), "dtype": "float32", "adapter.rank": 3,
    }  # fmt: skip
    run, stream = session.start(presets.load(plain.STYLE, changes), tmp_path / "runs", "tiny", None)
    assert list(stream)[-1].kind == "finished" and lora_file.inspect(run.lora_file).rank == 3

    def draw(base: str, weight: float) -> bytes:
        choice = AdapterChoice(file=str(run.lora_file), weight=weight)
        stack = StackConfig(base=base, family="sd", prompt="a red dot", steps=2, width_px=64, height_px=64, adapters=(choice,))
        return Engine(base, "sd", dtype="float32").render(stack).image.tobytes()

    assert draw("artist", 1.0) == draw(str(tiny), 1.0) != draw("artist", 0.0)
    proofs = json.loads(velatura("lora", "verify", str(run.lora_file), "--base", "artist", "--json"))
    assert [proof["holds"] for proof in proofs if proof["through"] == "diffusers' pipeline"] == [True]


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_denoiser_alone_in_diffusers_names_takes_the_rest_from_its_like(name: str, tmp_path: Path) -> None:
    family = families.registry()[name]
    tiny, denoiser = family.tiny(tmp_path / "tiny"), next(iter(family.components))
    truth = {key: tensor + 1 for key, tensor in single_files.weights(tiny, denoiser).items()}
    save_file(truth, tmp_path / "tuned.safetensors")
    with pytest.raises(ModelError, match="--like FOLDER"):
        add(str(tmp_path / "tuned.safetensors"))
    add(str(tmp_path / "tuned.safetensors"), "--like", str(tiny))
    folder = bases.resolve("tuned", family)
    found = single_files.weights(folder, denoiser)
    assert found.keys() == truth.keys() and all(torch.equal(found[key], truth[key]) for key in truth)
    bases.open_pipeline(family, folder, "cpu", torch.float32)


def test_a_header_as_long_as_a_pickle_begins_is_read(tmp_path: Path) -> None:
    raw = json.dumps({"__metadata__": {"x": "x"}, "head.modulation": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode().ljust(0x280)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0\0")
    assert single_file.detect(single_file.read_head(tmp_path / "a.safetensors")).family == "wan"


def test_precision_is_kept_and_float8_is_widened(tmp_path: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    whole = load_file(single_files.sd_file(tiny, tmp_path / "whole.safetensors"))
    for dtype, kept in ((torch.float16, torch.float16), (torch.float8_e4m3fn, torch.bfloat16)):
        file = tmp_path / f"{dtype}.safetensors".replace("torch.", "")
        save_file({name: tensor.to(dtype) for name, tensor in whole.items()}, file)
        add(str(file), "--like", str(tiny))
        folder = bases.resolve(file.stem, families.registry()["sd"])
        truth = single_files.weights(tiny, "unet")
        for name, tensor in single_files.weights(folder, "unet").items():
            assert tensor.dtype == kept and torch.equal(tensor, truth[name].to(dtype).to(kept))


def test_a_missing_layer_or_one_too_many_is_refused(tmp_path: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    whole = load_file(single_files.sd_file(tiny, tmp_path / "whole.safetensors"))
    unet = "model.diffusion_model."
    cases = {
        "less": {name: tensor for name, tensor in whole.items() if name != f"{unet}middle_block.0.in_layers.2.weight"},
        "more": whole | {f"{unet}middle_block.0.strange.weight": torch.ones(3)},
        "text": {name: tensor for name, tensor in whole.items() if not name.endswith("layers.1.mlp.fc2.weight")},
        "shape": whole | {f"{unet}time_embed.0.weight": torch.ones(3, 16)},
    }
    for name, tensors in cases.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        add(str(tmp_path / f"{name}.safetensors"), "--like", str(tiny))
        with pytest.raises(ModelError, match=r"doesn't fit"):
            bases.resolve(name, families.registry()["sd"])
    assert not [folder for folder in model_registry.shelf().iterdir() if folder.is_dir()], "nothing half made stays"


def test_parts_a_file_lacks_come_from_where_they_are_named(tmp_path: Path) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    whole = load_file(single_files.sd_file(tiny, tmp_path / "whole.safetensors"))
    save_file({name: one for name, one in whole.items() if name.startswith("model.diffusion_model.")}, tmp_path / "unet.safetensors")
    vae = {name: tensor * 2 for name, tensor in single_files.ldm_vae(single_files.weights(tiny, "vae")).items()}
    save_file({name: one.contiguous() for name, one in vae.items()}, tmp_path / "vae.safetensors")
    clip = {name: tensor * 3 for name, tensor in single_files.hugging_face(single_files.weights(tiny, "text_encoder")).items()}
    save_file(clip, tmp_path / "clip.safetensors")
    named = [word for name, file in (("vae", "vae"), ("text_encoder", "clip")) for word in ("--part", f"{name}={tmp_path / file}.safetensors")]
    add(str(tmp_path / "unet.safetensors"), "--like", str(tiny), *named)
    folder = bases.resolve("unet", families.registry()["sd"])
    truth, text = single_files.weights(tiny, "vae"), single_files.hugging_face(single_files.weights(tiny, "text_encoder"))
    assert all(torch.equal(tensor, 2 * truth[name]) for name, tensor in single_files.weights(folder, "vae").items())
    assert all(torch.equal(tensor, 3 * text[name]) for name, tensor in single_files.weights(folder, "text_encoder").items())
    with pytest.raises(ModelError, match=r"--part tokenizer is .*, a file; CLIPTokenizer is a folder"):
        add(str(tmp_path / "unet.safetensors"), "--name", "two", "--like", str(tiny), "--part", f"tokenizer={tmp_path / 'vae.safetensors'}")
    with pytest.raises(ModelError, match=r"--part names clip, .*allowed: "):
        add(str(tmp_path / "unet.safetensors"), "--name", "two", "--like", str(tiny), "--part", f"clip={tiny}")


# What ships.


def test_clip_tokenizer_gives_the_published_ids() -> None:
    tokenizer = texts.clip_tokenizer("!")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 0)
    lines = gzip.decompress(texts._VOCABULARY.read_bytes()).decode().split("\n")
    assert tokenizer.convert_ids_to_tokens([512, 49405]) == ["".join(lines[1].split()), "".join(lines[49152 - 256 - 2].split())]


def test_open_clip_layers_beyond_those_wanted_are_left_out(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2))
    found = texts.clip_tensors(single_files.open_clip(model.state_dict()) | {"text_projection": torch.ones(16, 16)}, 2, False)
    truth = {name: one for name, one in single_files.hugging_face(model.state_dict()).items() if ".layers.2." not in name}
    assert found.keys() == truth.keys() and all(torch.equal(found[name], truth[name]) for name in truth)


# Parameters as the models' cards and diffusers' own documentation count them.
SIZES = {
    ("sd1", "unet"): 859_520_964, ("sd1", "vae"): 83_653_863, ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "unet"): 865_910_724, ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "unet"): 2_567_463_684, ("sdxl", "text_encoder_2"): 694_659_840,
}  # fmt: skip


@pytest.mark.parametrize(("variant", "part"), SIZES, ids="-".join)
def test_shipped_architectures_have_the_published_sizes(variant: str, part: str, tmp_path: Path) -> None:
    import diffusers
    import transformers

    head = single_file.Head(tmp_path, {}, {}, {}, 0)
    made = blueprints.blueprint(head, single_file.Detected(variant[:2], "", variant, "", "epsilon", ""))
    assert made is not None
    one = made[part]
    with torch.device("meta"):
        if one.library == "diffusers":
            model = getattr(diffusers, one.kind).from_config(one.config)
        else:
            model = getattr(transformers, one.kind)(transformers.CLIPTextConfig(**one.config))
    assert sum(tensor.numel() for tensor in model.parameters()) == SIZES[variant, part]


# Which model it is.

UNET = "model.diffusion_model."
TIMES = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), f"{UNET}time_embed.0.weight": (1280, 320)}
KEY = f"{UNET}input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight"
WIDE = {f"{UNET}input_blocks.11.0.in_layers.0.weight": (1280,)}
MODELS: dict[str, tuple[dict[str, tuple[int, ...]], tuple[str, str, str | None]]] = {
    "sd1": (TIMES | WIDE | {KEY: (1280, 768)}, ("sd", "sd1", "epsilon")),
    "sd1-v": (TIMES | WIDE | {KEY: (1280, 768), "v_pred": (1,)}, ("sd", "sd1", "v")),
    "sd2": (TIMES | WIDE | {KEY: (1280, 1024)}, ("sd", "sd2", "v")),
    "segmind": (TIMES | {KEY: (1280, 768)}, ("sd", "", "epsilon")),
    "sdxl": (
        TIMES | {KEY: (1280, 2048), KEY.replace("blocks.0.attn2", "blocks.9.attn2"): (1280, 2048), f"{UNET}label_emb.0.0.weight": (1280, 2816)},
        ("sdxl", "sdxl", "epsilon"),
    ),
    "flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64)}, ("flux", "flux", None)),
    "flux-in-a-checkpoint": ({f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, ("flux", "flux", None)),
    "sd3": ({f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}, ("sd3", "sd3", None)),
    "flux2": ({"single_stream_modulation.lin.weight": (3, 2), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, ("flux2", "flux2", None)),
    "chroma": (
        {"distilled_guidance_layer.in_proj.weight": (3, 2), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, ("chroma", "chroma", None)
    ),
    "qwen": ({f"{UNET}transformer_blocks.0.img_mod.1.weight": (3, 2)}, ("qwen", "qwen", None)),
    "zimage": ({"layers.0.adaLN_modulation.0.weight": (3, 2), "cap_embedder.0.weight": (2,)}, ("zimage", "zimage", None)),
    "lumina2": ({"layers.0.adaLN_modulation.1.weight": (3, 2), "cap_embedder.0.weight": (2,)}, ("lumina2", "lumina2", None)),
    "wan": ({"head.modulation": (1, 2, 3)}, ("wan", "wan", None)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_models_are_known_by_their_names_and_shapes(name: str, tmp_path: Path) -> None:
    shapes, wanted = MODELS[name]
    found = single_file.detect(single_file.read_head(head_only(tmp_path / "model.safetensors", shapes)))
    assert (found.family, found.variant, found.prediction) == wanted


def test_what_a_file_says_of_its_prediction_is_read(tmp_path: Path) -> None:
    marked = head_only(tmp_path / "noob.safetensors", MODELS["sdxl"][0] | {"v_pred": (1,), "ztsnr": (1,)})
    made = single_file.plan(marked, single_file.Wishes())
    scheduler = made.parts["scheduler"].config
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]
    said = head_only(tmp_path / "said.safetensors", MODELS["sd2"][0], metadata={"modelspec.prediction_type": "epsilon"})
    assert single_file.detect(single_file.read_head(said)).prediction == "epsilon"
    wished = single_file.plan(head_only(tmp_path / "two.safetensors", MODELS["sd2"][0]), single_file.Wishes(prediction="epsilon"))
    assert wished.parts["scheduler"].config["prediction_type"] == "epsilon" and wished.parts["unet"].config["sample_size"] == 64


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "inpainting": (TIMES | {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting model"),
    "pix2pix": (TIMES | {f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, "instruct-pix2pix model"),
    "refiner": (TIMES | {KEY: (1280, 1280), f"{UNET}label_emb.0.0.weight": (1280, 2560)}, "SDXL refiner"),
    "flux fill": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 384)}, "FLUX.1 Fill"),
    "lora": ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "is a LoRA, not a base"),
    "inpainting in a folder's names": (
        {"conv_in.weight": (320, 9, 3, 3), "time_embedding.linear_1.weight": (9,), "down_blocks.0.resnets.0.conv1.weight": (9,), "conv_out.weight": (9,)},
        "inpainting model",
    ),
    "controlnet in a folder's names": (
        {
            "conv_in.weight": (9, 4, 3, 3),
            "time_embedding.linear_1.weight": (9,),
            "down_blocks.0.resnets.0.conv1.weight": (9,),
            "controlnet_mid_block.bias": (9,),
        },
        "a ControlNet",
    ),
    "controlnet": ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "a ControlNet"),
    "vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "autoencoder .* alone"),
    "text": ({"text_model.embeddings.token_embedding.weight": (9, 9)}, "text encoder alone"),
    "embedding": ({"emb_params": (4, 768)}, "an embedding"),
    "scaled fp8": (TIMES | {f"{UNET}out.2.scale_weight": (1,)}, "quantised weights with scales"),
    "strange": ({"hello.weight": (3,)}, "no model that is known here"),
    "nothing": ({}, "no model that is known here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_base_is_refused_as_what_it_is(name: str, tmp_path: Path) -> None:
    shapes, message = REFUSED[name]
    file = head_only(tmp_path / "model.safetensors", shapes)
    with pytest.raises(ModelError, match=message):
        bases.resolve(str(file), families.registry()[bases.family_of(str(file))])


def test_a_wrong_family_is_refused_with_the_detected_one(tmp_path: Path) -> None:
    file = head_only(tmp_path / "model.safetensors", MODELS["sdxl"][0])
    with pytest.raises(ModelError, match=r"Stable Diffusion XL \(family sdxl\).*family is 'sd'"):
        bases.resolve(str(file), families.registry()["sd"])
    with pytest.raises(ModelError, match=r"family sdxl.*'flux'"):
        add(str(file), "--family", "flux")
    stranger = head_only(tmp_path / "wan.safetensors", MODELS["wan"][0])
    with pytest.raises(ModelError, match=r"is Wan, which no family here trains yet; allowed: .*sdxl"):
        bases.resolve(str(stranger), families.registry()["sd"])


def test_missing_parts_are_named(tmp_path: Path) -> None:
    file = head_only(tmp_path / "flux.safetensors", MODELS["flux"][0])
    with pytest.raises(
        ModelError, match=r"has no vae \(AutoencoderKL\), text_encoder \(CLIPTextModel\), text_encoder_2 \(T5.*tokenizer_2 \(T5.*--part vae=PATH"
    ):
        bases.resolve(str(file), families.registry()["flux"])
    assert not model_registry.shelf().exists()


@pytest.mark.parametrize(("name", "content"), [("a.ckpt", b"x"), ("a.safetensors", b"\x80\x02}q\x00."), ("b.safetensors", b"PK\x03\x04rest"), ("c.pt", b"")])
def test_pickles_are_refused_unopened_with_how_to_convert_them(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s)is a pickle.*weights_only=True"):
        bases.resolve(str(tmp_path / name), families.registry()["sd"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\x00\x00\x00", "GGUF"), (b"", "claims 0 bytes of 0"), (struct.pack("<Q", 2**60) + b"{}", "claims"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"), (struct.pack("<Q", 3) + b"{:}", "not a safetensors file"),
        (struct.pack("<Q", 9999) + b"{}", "claims 9999"), (struct.pack("<Q", 100_000) + b"[" * 100_000, "not a safetensors file"),
        *(
            (struct.pack("<Q", len(raw)) + raw, message)
            for raw, message in (
                (b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}', "cut short"),
                (b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,0]}}', "tensors of X"),
                (b'{"a":{"dtype":"F16","shape":[-2],"data_offsets":[0,0]}}', "cut short"), (b'{"a":1}', "not a safetensors file"),
                (b'{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}', "twice"),
            )
        ),
    ],
    ids=range(12),
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        bases.resolve(str(tmp_path / "model.safetensors"), families.registry()["sd"])
