"""Files that are called `.safetensors` and are none, or hold no LoRA: said what they are and what to do; odd but good
ones are read.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from trainer import lora_file
from trainer.errors import AdapterError
from trainer.lora_tools.opening import open_file, updates

MID = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = f"lora_{MID.replace('.', '_')}"
SIZE = 256


def _pt() -> bytes:
    file = io.BytesIO()
    torch.save({"x": torch.ones(2)}, file)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("fox.safetensors", b"x")
    return file.getvalue()


def _picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    return file.getvalue()


def good(**more: torch.Tensor) -> bytes:
    return save(
        {f"{KOHYA}.lora_down.weight": torch.ones(2, SIZE), f"{KOHYA}.lora_up.weight": torch.ones(SIZE, 2), **more}
    )


FOREIGN = {
    "html": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "page of a website"),
    "html with a mark": (b"\xef\xbb\xbf\n  <HTML>" + b"x" * 5000, "page of a website"),
    "html of two bytes a letter": ("<html>" + "x" * 5000).encode("utf-16"), 
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "page of a website"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 151111711\n", "git lfs pull"),
    "zip": (_zip(), "zip archive"),
    "pt": (_pt(), "pickles and not opened"),
    "pickle": (pickle.dumps({"x": list(range(999))}), "a pickle"),
    "old pickle": (pickle.dumps({"x": 1}, 2), "a pickle"),
    "gzip": (gzip.compress(good()), "gzip archive"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(99), "7z archive"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(99), "GGUF"),
    "npy": (b"\x93NUMPY\x01\x00v\x00" + bytes(99), "NumPy"),
    "json": (b'{"error": "Unauthorized"}', "JSON"),
    "text": (b"Invalid username or password.", "a text: 'Invalid username"),
    "short text": (b"no", "a text: 'no'"),
    "png": (_picture("PNG"), "PNG picture"),
    "jpeg": (_picture("JPEG"), "JPEG picture"),
    "webp": (_picture("WEBP"), "WebP picture"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(5000), "nothing but zeros"),
    "cut in the header": (good()[:60], "is cut off in its header"),
    "cut in the numbers": (good()[:-1], "is cut off"),
    "more than there should be": (good() + b"x", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_safetensors_file_is_named_by_the_commands(
    kind: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    example = FOREIGN[kind]
    raw, says = (example, "page of a website") if isinstance(example, bytes) else example
    (tmp_path / "x.safetensors").write_bytes(raw)
    for words in (("inspect", "x.safetensors"), ("render", "--lora", "x.safetensors:1", "--out", "x.png")):
        done = run_velatura(*words)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


OTHERS = {
    "an IA3": {f"{KOHYA}.weight": torch.ones(4), f"{KOHYA}.on_input": torch.tensor(0)},
    "IA3": {f"base_model.model.{MID}.ia3_l": torch.ones(4, 1)},
    "a BOFT": {
        f"base_model.model.{MID}.boft_R": torch.ones(1, 2, 2, 2),
        f"base_model.model.{MID}.boft_s": torch.ones(4, 1),
    },
    "a GLoRA": {f"{KOHYA}.{part}.weight": torch.ones(2, 2) for part in ("a1", "a2", "b1", "b2")},
    "a VeRA": {
        f"base_model.model.{MID}.vera_lambda_b": torch.ones(4),
        f"base_model.model.{MID}.vera_lambda_d": torch.ones(4),
    },
    "an embedding": {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 8)},
    "a whole model": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4)},
    "an autoencoder": {"encoder.conv_in.weight": torch.ones(4, 4, 3, 3)},
    "a whole denoiser": {"transformer_blocks.0.attn.to_q.weight": torch.ones(4, 4)},
    "oft_blocks": {f"{KOHYA}.oft_blocks": torch.ones(2, 2, 2)},
    "lora_E": {f"base_model.model.{MID}.{part}": torch.ones(2, 2) for part in ("lora_A", "lora_B", "lora_E")},
}


@pytest.mark.parametrize("says", OTHERS)
def test_an_adapter_of_another_kind_is_refused_by_name(
    says: str, tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    save_file(OTHERS[says], tmp_path / "x.safetensors")
    done = run_velatura("inspect", "x.safetensors")
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr, done.stderr


def read(path: Path) -> lora_file.Update:
    return lora_file.read(path, {MID: KOHYA}, {MID: (SIZE, SIZE)})[MID]


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_numbers_of_eight_bits_are_read(kind: torch.dtype, tmp_path: Path) -> None:
    down, up = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(kind) for shape in ((4, SIZE), (SIZE, 4))
    )
    save_file(
        {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up, f"{KOHYA}.alpha": torch.tensor(2.0)},
        tmp_path / "x.safetensors",
    )
    wanted = 0.5 * up.float() @ down.float()
    torch.testing.assert_close(
        read(tmp_path / "x.safetensors").dense(torch.zeros(SIZE, SIZE), torch.float32), wanted, rtol=1e-5, atol=1e-5
    )
    (tmp_path / "x.safetensors").write_bytes(
        (tmp_path / "x.safetensors").read_bytes().replace(bytes(down[:1, :8].view(torch.uint8).flatten()), b"\x7f" * 8)
    )
    with pytest.raises(AdapterError, match="NaN or infinity"):
        lora_file.inspect(tmp_path / "x.safetensors")


def test_numbers_of_eight_bits_are_drawn_with(tmp_path: Path, run_velatura: Callable[..., Any]) -> None:
    low = {"lora_down.weight": torch.randn(4, SIZE), "lora_up.weight": torch.randn(SIZE, 4)}
    save_file(
        {f"{KOHYA}.{suffix}": tensor.to(torch.float8_e4m3fn) for suffix, tensor in low.items()},
        tmp_path / "x.safetensors",
    )
    done = run_velatura(
        "render", "--lora", "x.safetensors:1", "--out", "x.png", "--prompt", "a cat", "--steps", "2", "--size", "64x64"
    )
    assert done.returncode == 0 and (tmp_path / "x.png").is_file(), done.stderr


@pytest.mark.parametrize(
    "kind",
    [
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.uint16,
        torch.int32,
        torch.uint32,
        torch.int64,
        torch.uint64,
        torch.bool,
    ],
    ids=str,
)
def test_an_alpha_may_be_a_whole_number_and_a_weight_may_not(kind: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(good(**{f"{KOHYA}.alpha": torch.tensor(1).to(kind)}))
    assert lora_file.inspect(tmp_path / "x.safetensors").alpha == 1.0
    (tmp_path / "x.safetensors").write_bytes(good(**{f"{KOHYA}.lora_mid.weight": torch.ones(2, 2, 3, 3).to(kind)}))
    with pytest.raises(AdapterError, match="only alphas may be whole numbers"):
        lora_file.inspect(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("down_sides", "up_sides"), [(0, 0), (2, 2), (2, 0)])
@pytest.mark.parametrize("lengths", [None, 2, 4])
def test_a_linear_layers_factors_may_be_convolutions_of_one_by_one(
    down_sides: int, up_sides: int, lengths: int | None, tmp_path: Path
) -> None:
    chance = torch.Generator().manual_seed(1)
    down, up, base = (torch.randn(shape, generator=chance) for shape in ((4, SIZE), (SIZE, 4), (SIZE, SIZE)))
    parts = {
        "lora_down.weight": down.reshape(4, SIZE, *[1] * down_sides),
        "lora_up.weight": up.reshape(SIZE, 4, *[1] * up_sides),
    }
    parts["alpha"], wanted = torch.tensor(2.0), 0.5 * up @ down
    if lengths is not None and not (lengths == 4 and not down_sides + up_sides):
        length = torch.rand(SIZE, 1, generator=chance) + 0.5
        parts["dora_scale"] = length.reshape(SIZE, *[1] * (lengths - 1))
        wanted = length * (base + wanted) / (base + wanted).norm(dim=1, keepdim=True) - base
    save_file({f"{KOHYA}.{suffix}": tensor for suffix, tensor in parts.items()}, tmp_path / "x.safetensors")
    torch.testing.assert_close(
        read(tmp_path / "x.safetensors").dense(base, torch.float32), wanted, rtol=1e-4, atol=1e-4
    )
    (update,) = updates(open_file(tmp_path / "x.safetensors")).values()
    torch.testing.assert_close(update.dense(base, torch.float32), wanted, rtol=1e-4, atol=1e-4)


def with_header(folder: Path, header: dict[str, Any]) -> Path:
    raw = good()
    start = 8 + int.from_bytes(raw[:8], "little")
    text = json.dumps(json.loads(raw[8:start]) | header).encode()
    (folder / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])
    return folder / "x.safetensors"


@pytest.mark.parametrize(
    "metadata",
    [
        {"half \ud800": "1"}, {"modelspec.title": "\udfff"}, {"ss_base_model_version": "\ud800"},
        {"ss_tag_frequency": '{"1_a": {"\\ud800": 3}}'},
        {"velatura.recipe": '{"config": {"base": "\\ud800", "family": "\\udc00"}}'},
        {"modelspec.trigger_phrase": "a \ud83d cat"},
    ],
)  # fmt: skip
def test_halves_of_characters_in_what_a_file_says_are_question_marks(
    metadata: dict[str, str], tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    with_header(tmp_path, {"__metadata__": metadata})
    for words in (
        ["inspect", "x.safetensors"],
        ["inspect", "x.safetensors", "--json"],
        ["lora", "convert", "x.safetensors", "--out", "y.safetensors"],
    ):
        done = run_velatura(*words)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "header",
    [
        {"lora_unet_\ud800.alpha": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}},
        {"\udfff": 3},
        {f"{KOHYA}.alpha": {"dtype": "\ud800", "shape": [], "data_offsets": [0, 4]}},
        {f"{KOHYA}.alpha": {"dtype": "F32", "shape": ["\ud800"], "data_offsets": [0, 4]}},
        {"__metadata__": {"x": ["\ud800"]}},
    ],
)
def test_halves_of_characters_in_names_are_refused(
    header: dict[str, Any], tmp_path: Path, run_velatura: Callable[..., Any]
) -> None:
    with_header(tmp_path, header)
    for words in (("inspect", "x.safetensors"), ("render", "--lora", "x.safetensors:1", "--out", "x.png")):
        done = run_velatura(*words)
        assert (
            done.returncode == 2 and done.stderr.startswith("error: x.safetensors") and "Traceback" not in done.stderr
        ), done.stderr
