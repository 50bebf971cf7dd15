"""What only SDXL has: sizes, two text encoders, SGM's names, bases that predict v at zero terminal SNR."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers, _maybe_map_sgm_blocks_to_diffusers
from PIL import Image

from trainer import bases, data, families, session
from trainer.config import DataConfig, StackConfig
from trainer.data import buckets
from trainer.render.engine import Engine

SDXL = families.registry()["sdxl"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SDXL.tiny(tmp_path_factory.mktemp("sdxl"))


def test_layers_of_the_real_unet_have_the_names_that_diffusers_reads_sgm_checkpoints_by() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, layers_per_block=2, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            use_linear_projection=True, transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    config = unet.config
    ours = {path: SDXL._sgm(path, config) for path, module in unet.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    assert len(set(ours.values())) == len(ours) == 794
    # A file with a number of its own in every layer, as diffusers' loader of kohya's files reads it.
    spelled = {path: f"lora_unet_{name.replace('.', '_')}" for path, name in ours.items()}
    file = {}
    for number, name in enumerate(spelled.values()):
        file |= {f"{name}.lora_down.weight": torch.full((1, 1), number), f"{name}.lora_up.weight": torch.ones(1, 1), f"{name}.alpha": torch.tensor(1.0)}
    read, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(file, config))
    found = {
        re.sub(r"\.processor|^unet\.|[._]lora[._]down.*", "", key).replace("to_out", "to_out.0"): int(tensor) for key, tensor in read.items() if "down.w" in key
    }
    assert found == {path: number for number, path in enumerate(spelled)}


def test_a_frame_says_what_diffusers_script_says_of_a_cut_picture(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a dot")
    (item,) = data.scan(_config(tmp_path, tmp_path)).items
    bucket = buckets.assign(300, 200, 128, DataConfig(folder="x", buckets=False), 8)
    assert bucket == (128, 128)
    # Scaled to 192 x 128, cut at the centre, at the right, and at the right of the mirrored one.
    assert data.frame(item, bucket, 0, False) == (200, 300, 0, 32, 128, 128)
    assert data.frame(item, bucket, 4, False) == (200, 300, 0, 64, 128, 128)
    assert data.frame(item, bucket, 4, True) == (200, 300, 0, 0, 128, 128)


def _config(folder: Path, base: Path, **changes: Any) -> Any:
    settings = {
        "family": "sdxl",
        "base": str(base),
        "resolution_px": 64,
        "max_steps": 2,
        "preview_every_steps": 0,
        "learning_rate": 0.02,
        "optimizer.warmup_steps": 0,
    }
    pairs = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in (settings | changes).items()]
    return session.preset_config("sdxl-character", str(folder), None, pairs)


def test_the_sizes_that_the_denoiser_is_told_are_the_pictures(tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path) -> None:
    from trainer.studio import Studio

    settings = _config(draw_dots(tmp_path / "dots", "a {colour} dot", num=2, wider_px=24), tiny, data__flip=True, batch_size=2)
    studio = Studio.open(settings)
    studio.prepare(tmp_path / "cache", data.scan(settings), None)
    told = []
    studio.denoiser.register_forward_pre_hook(lambda module, args, kwargs: told.append(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True)
    (batch, *_) = studio.material.batches(0)
    with torch.no_grad():
        studio.predict(batch.latents, torch.tensor([500] * len(batch)), batch.captions, batch.frames)
        studio.predict(batch.latents, torch.tensor([500] * len(batch)), batch.captions)
    assert told[0] == batch.frames.tolist() and all(frame[:2] in ([40, 40], [40, 64]) for frame in told[0])
    height, width = (2 * side for side in batch.latents.shape[-2:])
    assert told[1] == [[height, width, 0, 0, height, width]] * len(batch)


def test_what_a_long_caption_says_as_a_whole_is_its_first_windows(tiny: Path) -> None:
    pipe = bases.open_pipeline(SDXL, tiny, "cpu", torch.float32)
    words = ", ".join(["a red fox"] * 30)
    chunks = SDXL.num_chunks(pipe, words)
    with torch.no_grad():
        long, first = SDXL.encode_text(pipe, [words], chunks)[0], SDXL.encode_text(pipe, [words], 1)[0]
    length = pipe.tokenizer.model_max_length
    assert chunks > 1 and long["encoder_hidden_states"].shape == (chunks * length, 64)
    torch.testing.assert_close(long["pooled"], first["pooled"])
    torch.testing.assert_close(long["encoder_hidden_states"][:length], first["encoder_hidden_states"])


def test_a_base_like_noobai_predicts_v_at_zero_terminal_snr(tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "noob"
    shutil.copytree(tiny, base)
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    assert SDXL.prediction_of(base) == "v"
    schedule = SDXL.schedule(bases.open_pipeline(SDXL, base, "cpu", torch.float32))
    assert schedule.prediction == "v" and float(schedule.alphas_cumprod[-1]) < 1e-6
    folder = draw_dots(tmp_path / "dots", "a {colour} dot")
    run, stream = session.start(_config(folder, base), tmp_path / "runs", "v", None)
    assert list(stream)[-1].kind == "finished"
    from trainer import lora_file

    header = lora_file.read_header(run.lora_file).metadata
    assert header["modelspec.prediction_type"] == "v" and header["ss_base_model_version"] == "sdxl_base_v1-0"
    stack = StackConfig(family="sdxl", base=str(base), prompt="a dot", steps=3, width_px=64, height_px=64, adapters=[{"file": str(run.lora_file)}])
    image = Engine(str(base), "sdxl", device="cpu", dtype="float32").render(stack).image
    assert image.size == (64, 64) and image.convert("L").getextrema()[0] < image.convert("L").getextrema()[1]


def test_an_autoencoder_that_overflows_in_float16_is_computed_in_float32(tiny: Path) -> None:
    pipe = bases.open_pipeline(SDXL, tiny, "cpu", torch.float32)
    seen = []
    pipe.vae.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    pipe.vae.to(torch.float16)
    latents = SDXL.encode_image(pipe, torch.zeros(1, 3, 32, 32))
    assert seen == [torch.float32] and latents.dtype == pipe.vae.dtype == torch.float16


def test_files_of_another_family_do_not_fit(tiny: Path, trained: Path) -> None:
    from trainer.errors import AdapterError

    engine = Engine(str(tiny), "sdxl", device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="does not fit this base: "):
        engine.render(StackConfig(family="sdxl", base=str(tiny), width_px=64, height_px=64, steps=1, adapters=[{"file": str(trained)}]))
    word = SimpleNamespace(words={"mokka": torch.zeros(1, 32)})
    with pytest.raises(AdapterError, match="brings the word 'mokka'; new words are not known for"):
        engine.vocabulary.check(word.words, "x.safetensors")
