"""The full-size check of single files: a checkpoint of Stable Diffusion 1.5's sizes, from the file to a picture with
its LoRA.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import single_files
import torch
from safetensors.torch import save_file

from tests import plain
from trainer import bases, families, lora_file, model_registry, presets, session, single_file
from trainer.config import AdapterChoice, StackConfig
from trainer.render.engine import Engine

GIB = 2**30


def full_size_file(file: Path) -> int:
    """Random weights in SD 1.5's sizes as one file; how many there are."""
    tensors = single_files.full_size_sd("cpu")
    save_file(tensors, file)
    return sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("position_ids"))


@pytest.mark.slow
def test_a_full_size_file_trains_exports_and_renders(
    tmp_path: Path, draw_dots: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    file = tmp_path / "sd15.safetensors"
    assert full_size_file(file) == 859_520_964 + 83_653_863 + 123_060_480  # as published, without the safety checker
    changes = {
        "family": "sd", "base": str(file), "resolution_px": 128, "max_steps": 10, "batch_size": 1,
        "preview_every_steps": 0, "adapter.rank": 4,
        "adapter.alpha": 4.0, "data.folder": str(draw_dots(tmp_path / "dots", "a {colour} dot", num=2)),
        "dtype": "bfloat16", "learning_rate": 1e-3,
    }  # fmt: skip
    run, stream = session.start(presets.load(plain.STYLE, changes), tmp_path / "runs", "full", None)
    assert list(stream)[-1].kind == "finished"
    info = lora_file.inspect(run.lora_file)
    assert (info.family, info.rank, info.num_modules) == (
        "sd",
        4,
        128,
    )  # attention: 16 blocks of twice four projections
    stack = StackConfig(
        base=str(file), family="sd", prompt="a red dot", steps=2, width_px=128, height_px=128,
        adapters=(AdapterChoice(file=str(run.lora_file), weight=1.0),)
    )  # fmt: skip
    engine = Engine(str(file), "sd", dtype="bfloat16")
    with_it, without = engine.render(stack).image, engine.render(stack.model_copy(update={"adapters": ()})).image
    assert with_it.size == (128, 128) and with_it.tobytes() != without.tobytes()
    folder = bases.resolve(str(file), families.registry()["sd"])
    assert bases.num_parameters(folder) == 859_520_964
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"peak {peak_bytes / GIB:.1f} GiB")
    assert peak_bytes <= 16 * GIB


@pytest.mark.slow
def test_a_flux_transformer_of_full_width_arrives_with_parts_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block of each kind at FLUX.1 dev's width, since diffusers' reader of its files knows no other width."""
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    monkeypatch.setenv("VELATURA_HOME", str(tmp_path / "home"))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    finally:
        torch.set_default_dtype(torch.float32)
    truth = model.state_dict()
    for prefix in ("", "model.diffusion_model."):
        file = tmp_path / f"dev{len(prefix)}.safetensors"
        save_file(single_files.under(prefix, single_files.bfl(truth)), file)
        tiny = families.registry()["flux"].tiny(tmp_path / "tiny")
        parts = {part: str(tiny / part) for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer_2")}
        model_registry.save(model_registry.new("dev", file, "flux", sha256=single_file.sha256(file), parts=parts))
        folder = bases.resolve("dev", families.registry()["flux"])
        tensors = single_files.weights(folder, "transformer")
        assert tensors.keys() == truth.keys() and all(torch.equal(tensors[name], truth[name]) for name in truth)
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        assert (config["num_layers"], config["num_single_layers"], config["guidance_embeds"]) == (1, 1, True)
        assert (folder / "tokenizer" / "tokenizer.json").is_file() and (
            folder / "text_encoder_2" / "model.safetensors"
        ).is_file()
