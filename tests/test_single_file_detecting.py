"""Single-file checkpoints: which model a file is, and that what is no base is refused as what it is."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from single_files import add

from trainer import bases, families, model_registry, single_file
from trainer.errors import ModelError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of the test's own."""
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def head_only(
    file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F16", metadata: dict[str, str] | None = None
) -> Path:
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
        TIMES
        | {
            KEY: (1280, 2048),
            KEY.replace("blocks.0.attn2", "blocks.9.attn2"): (1280, 2048),
            f"{UNET}label_emb.0.0.weight": (1280, 2816),
        },
        ("sdxl", "sdxl", "epsilon"),
    ),
    "flux": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 64)},
        ("flux", "flux", None),
    ),
    "flux-in-a-checkpoint": ({f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, ("flux", "flux", None)),
    "sd3": ({f"{UNET}joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)}, ("sd3", "sd3", None)),
    "flux2": (
        {"single_stream_modulation.lin.weight": (3, 2), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
        ("flux2", "flux2", None),
    ),
    "chroma": (
        {"distilled_guidance_layer.in_proj.weight": (3, 2), "double_blocks.0.img_attn.norm.key_norm.scale": (128,)},
        ("chroma", "chroma", None),
    ),
    "qwen": ({f"{UNET}transformer_blocks.0.img_mod.1.weight": (3, 2)}, ("qwen", "qwen", None)),
    "zimage": (
        {"layers.0.adaLN_modulation.0.weight": (3, 2), "cap_embedder.0.weight": (2,)},
        ("zimage", "zimage", None),
    ),
    "lumina2": (
        {"layers.0.adaLN_modulation.1.weight": (3, 2), "cap_embedder.0.weight": (2,)},
        ("lumina2", "lumina2", None),
    ),
    "wan": ({"head.modulation": (1, 2, 3)}, ("wan", "wan", None)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_known_by_their_names_and_shapes(name: str, tmp_path: Path) -> None:
    shapes, wanted = MODELS[name]
    detected = single_file.detect(single_file.read_head(head_only(tmp_path / "model.safetensors", shapes)))
    assert (detected.family, detected.variant, detected.prediction) == wanted


def test_what_a_file_says_of_its_prediction_is_read(tmp_path: Path) -> None:
    marked = head_only(tmp_path / "noob.safetensors", MODELS["sdxl"][0] | {"v_pred": (1,), "ztsnr": (1,)})
    made = single_file.plan(marked, single_file.Wishes())
    scheduler = made.parts["scheduler"].config
    assert scheduler["prediction_type"] == "v_prediction" and scheduler["rescale_betas_zero_snr"]
    file = head_only(tmp_path / "said.safetensors", MODELS["sd2"][0], metadata={"modelspec.prediction_type": "epsilon"})
    assert single_file.detect(single_file.read_head(file)).prediction == "epsilon"
    wished = single_file.plan(
        head_only(tmp_path / "two.safetensors", MODELS["sd2"][0]), single_file.Wishes(prediction="epsilon")
    )
    assert (
        wished.parts["scheduler"].config["prediction_type"] == "epsilon"
        and wished.parts["unet"].config["sample_size"] == 64
    )


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "inpainting": (TIMES | {f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)}, "inpainting model"),
    "pix2pix": (TIMES | {f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)}, "instruct-pix2pix model"),
    "refiner": (TIMES | {KEY: (1280, 1280), f"{UNET}label_emb.0.0.weight": (1280, 2560)}, "SDXL refiner"),
    "flux fill": (
        {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "img_in.weight": (3072, 384)},
        "FLUX.1 Fill",
    ),
    "lora": ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320)}, "is a LoRA, not a base"),
    "inpainting in a folder's names": (
        {
            "conv_in.weight": (320, 9, 3, 3),
            "time_embedding.linear_1.weight": (9,),
            "down_blocks.0.resnets.0.conv1.weight": (9,),
            "conv_out.weight": (9,),
        },
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
        ModelError,
        match=(
            r"has no vae \(AutoencoderKL\), text_encoder \(CLIPTextModel\), text_encoder_2 \(T5.*tokenizer_2 "
            r"\(T5.*--part vae=PATH"
        ),
    ):
        bases.resolve(str(file), families.registry()["flux"])
    assert not model_registry.shelf().exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.ckpt", b"x"), ("a.safetensors", b"\x80\x02}q\x00."), ("b.safetensors", b"PK\x03\x04rest"), ("c.pt", b"")],
)
def test_pickles_are_refused_unopened_with_how_to_convert_them(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s)is a pickle.*weights_only=True"):
        bases.resolve(str(tmp_path / name), families.registry()["sd"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"", "claims 0 bytes of 0"),
        (struct.pack("<Q", 2**60) + b"{}", "claims"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
        (struct.pack("<Q", 3) + b"{:}", "not a safetensors file"),
        (struct.pack("<Q", 9999) + b"{}", "claims 9999"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "not a safetensors file"),
        *(
            (struct.pack("<Q", len(raw)) + raw, message)
            for raw, message in (
                (b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}', "cut short"),
                (b'{"a":{"dtype":"X","shape":[],"data_offsets":[0,0]}}', "tensors of X"),
                (b'{"a":{"dtype":"F16","shape":[-2],"data_offsets":[0,0]}}', "cut short"),
                (b'{"a":1}', "not a safetensors file"),
                (
                    b'{"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}',
                    "twice",
                ),
            )
        ),
    ],
    ids=range(12),
)
def test_damaged_and_hostile_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        bases.resolve(str(tmp_path / "model.safetensors"), families.registry()["sd"])
