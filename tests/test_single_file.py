"""Single-file checkpoints: every tensor arrives where the folder it was written from has it."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

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


# The way from a file to a picture.


def test_every_tensor_arrives_as_the_folder_has_it(written: tuple[str, Path, Path]) -> None:
    name, tiny, file = written
    family = families.registry()[name]
    add(str(file), "--name", "mine", "--like", str(tiny))
    assert bases.family_of("mine") == bases.family_of(str(file)) == name
    folder = bases.resolve("mine", family)
    assert bases.resolve(str(file), family) == folder, "by its path it is the same registered file"
    ours, theirs = (bases.open_pipeline(family, base, "cpu", torch.float32) for base in (folder, tiny))
    for part in [name for name, component in theirs.components.items() if isinstance(component, torch.nn.Module)]:
        state, truth = getattr(ours, part).state_dict(), getattr(theirs, part).state_dict()
        assert state.keys() == truth.keys() and all(torch.equal(state[key], truth[key]) for key in truth), part
    assert family.prediction_of(folder) == family.prediction_of(tiny) and bases.multiple_px(
        folder
    ) == bases.multiple_px(tiny)


def test_a_lora_trained_on_a_file_draws_as_on_its_folder(tmp_path: Path, draw_dots: Callable[..., Path]) -> None:
    tiny = families.registry()["sd"].tiny(tmp_path / "tiny")
    file = single_files.sd_file(tiny, tmp_path / "artist.safetensors")
    add(str(file), "--like", str(tiny))
    changes = {
        "family": "sd", "base": "artist", "resolution_px": 64, "max_steps": 2, "batch_size": 1,
        "preview_every_steps": 0, "learning_rate": 0.05,
        "data.folder": str(draw_dots(tmp_path / "dots", "a {colour} dot", num=2)), "dtype": "float32",
        "adapter.rank": 3,
    }  # fmt: skip
    run, stream = session.start(presets.load(plain.STYLE, changes), tmp_path / "runs", "tiny", None)
    assert list(stream)[-1].kind == "finished" and lora_file.inspect(run.lora_file).rank == 3

    def draw(base: str, weight: float) -> bytes:
        choice = AdapterChoice(file=str(run.lora_file), weight=weight)
        stack = StackConfig(
            base=base, family="sd", prompt="a red dot", steps=2, width_px=64, height_px=64, adapters=(choice,)
        )
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
    tensors = single_files.weights(folder, denoiser)
    assert tensors.keys() == truth.keys() and all(torch.equal(tensors[key], truth[key]) for key in truth)
    bases.open_pipeline(family, folder, "cpu", torch.float32)


def test_a_header_as_long_as_a_pickle_begins_is_read(tmp_path: Path) -> None:
    raw = (
        json.dumps(
            {"__metadata__": {"x": "x"}, "head.modulation": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
        )
        .encode()
        .ljust(0x280)
    )
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
    save_file(
        {name: weight for name, weight in whole.items() if name.startswith("model.diffusion_model.")},
        tmp_path / "unet.safetensors",
    )
    vae = {name: tensor * 2 for name, tensor in single_files.ldm_vae(single_files.weights(tiny, "vae")).items()}
    save_file({name: weight.contiguous() for name, weight in vae.items()}, tmp_path / "vae.safetensors")
    clip = {
        name: tensor * 3
        for name, tensor in single_files.hugging_face(single_files.weights(tiny, "text_encoder")).items()
    }
    save_file(clip, tmp_path / "clip.safetensors")
    named = [
        word
        for name, file in (("vae", "vae"), ("text_encoder", "clip"))
        for word in ("--part", f"{name}={tmp_path / file}.safetensors")
    ]
    add(str(tmp_path / "unet.safetensors"), "--like", str(tiny), *named)
    folder = bases.resolve("unet", families.registry()["sd"])
    truth, text = (
        single_files.weights(tiny, "vae"),
        single_files.hugging_face(single_files.weights(tiny, "text_encoder")),
    )
    assert all(torch.equal(tensor, 2 * truth[name]) for name, tensor in single_files.weights(folder, "vae").items())
    assert all(
        torch.equal(tensor, 3 * text[name]) for name, tensor in single_files.weights(folder, "text_encoder").items()
    )
    with pytest.raises(ModelError, match=r"--part tokenizer is .*, a file; CLIPTokenizer is a folder"):
        add(
            str(tmp_path / "unet.safetensors"),
            "--name",
            "two",
            "--like",
            str(tiny),
            "--part",
            f"tokenizer={tmp_path / 'vae.safetensors'}",
        )
    with pytest.raises(ModelError, match=r"--part names clip, .*allowed: "):
        add(str(tmp_path / "unet.safetensors"), "--name", "two", "--like", str(tiny), "--part", f"clip={tiny}")


# What ships.


def test_clip_tokenizer_gives_the_published_ids() -> None:
    tokenizer = texts.clip_tokenizer("!")
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, 0)
    lines = gzip.decompress(texts._VOCABULARY.read_bytes()).decode().split("\n")
    assert tokenizer.convert_ids_to_tokens([512, 49405]) == [
        "".join(lines[1].split()),
        "".join(lines[49152 - 256 - 2].split()),
    ]


def test_open_clip_layers_beyond_those_wanted_are_left_out(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    model = CLIPTextModel(
        CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    )
    tensors = texts.clip_tensors(
        single_files.open_clip(model.state_dict()) | {"text_projection": torch.ones(16, 16)}, 2, False
    )
    truth = {
        name: tensor
        for name, tensor in single_files.hugging_face(model.state_dict()).items()
        if ".layers.2." not in name
    }
    assert tensors.keys() == truth.keys() and all(torch.equal(tensors[name], truth[name]) for name in truth)


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
    component = made[part]
    with torch.device("meta"):
        if component.library == "diffusers":
            model = getattr(diffusers, component.kind).from_config(component.config)
        else:
            model = getattr(transformers, component.kind)(transformers.CLIPTextConfig(**component.config))
    assert sum(tensor.numel() for tensor in model.parameters()) == SIZES[variant, part]
