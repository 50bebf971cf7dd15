"""What only SDXL has: sizes, two text encoders, SGM's names, bases that predict v at zero terminal SNR."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from PIL import Image
from safetensors.torch import load_file

from trainer import bases, checkpoint_files, data, families, lora_file, runs, session
from trainer.config import DataConfig, InversionConfig, StackConfig
from trainer.data import buckets
from trainer.errors import AdapterError
from trainer.families import sdxl
from trainer.new_word import Word
from trainer.render.engine import Engine

SDXL = families.registry()["sdxl"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SDXL.tiny(tmp_path_factory.mktemp("sdxl"))


def test_layers_of_the_real_unet_have_the_names_that_diffusers_reads_sgm_checkpoints_by() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, layers_per_block=2, block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True, transformer_layers_per_block=(1, 2, 10), addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    config = unet.config
    ours = {
        path: sdxl._sgm(path, config)
        for path, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    assert len(set(ours.values())) == len(ours) == 794
    # A file with a number of its own in every layer, as diffusers' loader of kohya's files reads it.
    spelled = {path: f"lora_unet_{name.replace('.', '_')}" for path, name in ours.items()}
    file = {}
    for number, name in enumerate(spelled.values()):
        file |= {
            f"{name}.lora_down.weight": torch.full((1, 1), number),
            f"{name}.lora_up.weight": torch.ones(1, 1),
            f"{name}.alpha": torch.tensor(1.0),
        }
    read, _ = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(file, config))
    numbers = {
        re.sub(r"\.processor|^unet\.|[._]lora[._]down.*", "", key).replace("to_out", "to_out.0"): int(tensor)
        for key, tensor in read.items()
        if "down.w" in key
    }
    assert numbers == {path: number for number, path in enumerate(spelled)}


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


def test_the_sizes_that_the_denoiser_is_told_are_the_pictures(
    tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    from trainer.training_model import TrainingModel

    settings = _config(
        draw_dots(tmp_path / "dots", "a {colour} dot", num=2, wider_px=24), tiny, data__flip=True, batch_size=2
    )
    studio = TrainingModel.open(settings)
    studio.prepare(tmp_path / "cache", data.scan(settings), None)
    time_ids = []
    studio.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: time_ids.append(kwargs["added_cond_kwargs"]["time_ids"].tolist()), with_kwargs=True
    )
    (batch, *_) = studio.encoded.batches(0)
    with torch.no_grad():
        studio.predict(batch.latents, torch.tensor([500] * len(batch)), batch.captions, batch.frames)
        studio.predict(batch.latents, torch.tensor([500] * len(batch)), batch.captions)
    assert time_ids[0] == batch.frames.tolist() and all(frame[:2] in ([40, 40], [40, 64]) for frame in time_ids[0])
    height, width = (2 * side for side in batch.latents.shape[-2:])
    assert time_ids[1] == [[height, width, 0, 0, height, width]] * len(batch)


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


def test_a_base_like_noobai_predicts_v_at_zero_terminal_snr(
    tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "noob"
    shutil.copytree(tiny, base)
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    )
    assert SDXL.prediction_of(base) == "v"
    schedule = SDXL.schedule(bases.open_pipeline(SDXL, base, "cpu", torch.float32))
    assert schedule.prediction == "v" and float(schedule.alphas_cumprod[-1]) < 1e-6
    folder = draw_dots(tmp_path / "dots", "a {colour} dot")
    run, stream = session.start(_config(folder, base), tmp_path / "runs", "v", None)
    assert list(stream)[-1].kind == "finished"
    header = lora_file.read_header(run.lora_file).metadata
    assert header["modelspec.prediction_type"] == "v" and header["ss_base_model_version"] == "sdxl_base_v1-0"
    stack = StackConfig(
        family="sdxl",
        base=str(base),
        prompt="a dot",
        steps=3,
        width_px=64,
        height_px=64,
        adapters=[{"file": str(run.lora_file)}],
    )
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
    engine = Engine(str(tiny), "sdxl", device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="does not fit this base: "):
        engine.render(
            StackConfig(
                family="sdxl", base=str(tiny), width_px=64, height_px=64, steps=1, adapters=[{"file": str(trained)}]
            )
        )


# A new word, which has vectors in both text encoders.


@pytest.fixture
def older(tiny: Path, tmp_path: Path) -> Path:
    """The tiny base with the mark of the end that older configs have (see `_mark_end`)."""
    base = tmp_path / "older"
    shutil.copytree(tiny, base)
    for encoder in ("text_encoder", "text_encoder_2"):
        path = base / encoder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))
    return base


def _with_words(path: Path, engine: Engine, words: dict[str, dict[str, torch.Tensor]]) -> Path:
    """A LoRA file of one layer that brings words."""
    layer = next(layer for layer in engine.file_keys if layer.endswith("attn1.to_q"))
    out, into = engine.shapes[layer]
    parts = {"lora_down.weight": torch.ones(1, into), "lora_up.weight": torch.ones(out, 1), "alpha": torch.tensor(1.0)}
    lora_file.save(path, {engine.file_keys[layer]: parts}, {}, torch.float32, words)
    return path


def _stack(engine: Engine, file: Path) -> StackConfig:
    return StackConfig(
        family="sdxl",
        base=engine.base,
        prompt="a mokka dot",
        width_px=64,
        height_px=64,
        steps=1,
        adapters=[{"file": str(file)}],
    )


def test_a_word_says_the_same_in_training_in_rendering_and_in_diffusers(
    tiny: Path, older: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    trained = bases.open_pipeline(SDXL, older, "cpu", torch.float32)
    captions, long = ["a mokka dot", "a mokka"], ", ".join(["a mokka fox"] * 20)
    before = SDXL.encode_text(trained, ["a dot"], 1)[0]
    word = Word(trained, InversionConfig(token="mokka", vectors=2, start_from="cat"))
    rng = torch.Generator().manual_seed(0)
    for vectors in word.vectors.values():
        vectors.data.normal_(generator=rng)
    engine = Engine(str(older), "sdxl", device="cpu", dtype="float32")
    file = _with_words(tmp_path / "x.safetensors", engine, {"mokka": word.in_file()})
    theirs = StableDiffusionXLPipeline.from_pretrained(str(tiny), local_files_only=True, add_watermarker=False)
    for key, encoder, tokenizer in (
        ("clip_l", theirs.text_encoder, theirs.tokenizer),
        ("clip_g", theirs.text_encoder_2, theirs.tokenizer_2),
    ):
        theirs.load_textual_inversion(
            load_file(file)[f"bundle_emb.mokka.{key}"], token="mokka", text_encoder=encoder, tokenizer=tokenizer
        )
    with torch.no_grad(), engine.folded(_stack(engine, file)):
        hidden, _, pooled, _ = theirs.encode_prompt(
            captions, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        for pipe in (trained, engine.pipe):
            for row, (embedding, whole) in zip(
                SDXL.encode_text(pipe, captions, 1), zip(hidden, pooled, strict=True), strict=True
            ):
                torch.testing.assert_close((row["encoder_hidden_states"], row["pooled"]), (embedding, whole))
        ours, drawn = (
            SDXL.encode_text(pipe, [long], SDXL.num_chunks(pipe, long))[0] for pipe in (trained, engine.pipe)
        )
        torch.testing.assert_close(ours, drawn)
        after = SDXL.encode_text(trained, ["a dot"], 1)[0]
        with word.off():
            cat = SDXL.encode_text(trained, captions, 1)[0]
    assert len(ours["encoder_hidden_states"]) > len(after["encoder_hidden_states"]) and not torch.allclose(
        cat["pooled"], pooled[0]
    )
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert engine.pipe.tokenizer_2 is engine.vocabulary.tokenizers[
        "text_encoder_2"
    ] and engine.pipe.tokenizer_2.tokenize("mokka") != ["mokka"]


def test_both_encoders_vectors_are_trained_and_a_resumed_run_ends_in_the_same_bytes(
    tiny: Path, draw_dots: Callable[..., Path], tmp_path: Path
) -> None:
    folder = draw_dots(tmp_path / "dots", "a mokka {colour} dot", num=2)
    words = {
        "inversion__token": "mokka",
        "inversion__vectors": 2,
        "inversion__start_from": "cat",
        "inversion__learning_rate": 0.1,
    }
    settings = _config(
        folder, tiny, max_steps=4, checkpoint_every_steps=2, keep_checkpoints=5, adapter__text_encoder=True, **words
    )
    whole, stream = session.start(settings, tmp_path / "runs", "whole", None)
    assert list(stream)[-1].kind == "finished"
    _, stream = session.start(settings, tmp_path / "runs", "broken", None)
    for event in stream:
        if event.kind == "step" and event.step == 3:
            break
    stream.close()
    broken, stream = session.start(
        settings, tmp_path / "runs", "broken", runs.find_resumable(tmp_path / "runs", "broken")
    )
    assert list(stream)[-1].kind == "finished" and broken.lora_file.read_bytes() == whole.lora_file.read_bytes()
    word_vectors, pipe = (
        lora_file.embeddings(whole.lora_file)["mokka"],
        bases.open_pipeline(SDXL, tiny, "cpu", torch.float32),
    )
    start = Word(pipe, settings.inversion).start
    assert {key: vectors.shape for key, vectors in word_vectors.items()} == {"clip_l": (2, 32), "clip_g": (2, 32)}
    assert all(float((word_vectors[key] - start[encoder]).abs().min()) > 0 for encoder, key in SDXL.words.items())
    engine = Engine(str(tiny), "sdxl", device="cpu", dtype="float32")
    saved = [lora_file.embeddings(file)["mokka"] for file in checkpoint_files.files(whole, "sdxl", engine.file_keys)]
    assert lora_file.is_same_word(saved[1], word_vectors) and not lora_file.is_same_word(saved[0], word_vectors)
    assert engine.render(_stack(engine, whole.lora_file)).image.size == (64, 64)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"clip_g": 32},
            "as clip_g; allowed for Stable Diffusion XL: clip_l and clip_g, vectors for each text encoder",
        ),
        ({"string_to_param.*": 32}, r"as string_to_param.\*; allowed for Stable Diffusion XL: clip_l and clip_g"),
        ({"clip_l": 32, "clip_g": 48}, r"48 wide \(clip_g\); allowed for this base: 32"),
    ],
)
def test_a_word_that_both_encoders_dont_know_is_refused_by_name(
    parts: dict[str, int], says: str, tiny: Path, tmp_path: Path
) -> None:
    engine = Engine(str(tiny), "sdxl", device="cpu", dtype="float32")
    file = _with_words(
        tmp_path / "x.safetensors", engine, {"mokka": {key: torch.ones(1, width) for key, width in parts.items()}}
    )
    with pytest.raises(AdapterError, match=f"x.safetensors brings the word 'mokka' {says}"):
        engine.render(_stack(engine, file))
