"""An imported recipe trains as the same settings written by hand: the loss of every step, to float tolerance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import family_runs
from tests.other_trainers import RECIPES
from tests.test_other_trainers_recipes import EXPECTED
from trainer.config import TrainConfig, parse
from trainer.families import registry
from trainer.other_trainers import importing

KOHYA = """
[all]
pretrained_model_name_or_path = "{base}"
network_module = "networks.lora"
network_dim = 4
network_alpha = 2
network_args = ["loraplus_lr_ratio=4"]
learning_rate = 5e-3
text_encoder_lr = 1e-3
optimizer_type = "AdamW"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 2
lr_warmup_steps = 1
max_train_epochs = 2
train_batch_size = 2
gradient_accumulation_steps = 1
resolution = 64
enable_bucket = false
min_snr_gamma = 5
noise_offset = 0.05
ip_noise_gamma = 0.1
multires_noise_iterations = 4
caption_dropout_rate = 0.5
min_timestep = 100
flip_aug = true
seed = 7
"""
BY_HAND: dict[str, Any] = {
    "learning_rate": 5e-3, "max_steps": 6, "batch_size": 2, "resolution_px": 64, "seed": 7, "dtype": "float32",
    "preview_every_steps": 0,
    "adapter": {"method": "lora", "rank": 4, "alpha": 2.0, "text_encoder": True},
    "data": {"caption_dropout": 0.5, "flip": True, "buckets": False, "max_upscale": 16.0},
    "objective": {"weighting": "min-snr", "noise_offset": 0.05, "input_perturbation": 0.1, "multires_noise": 3,
                  "timesteps_low": 0.1},
    "optimizer": {"schedule": "restarts", "cycles": 2, "warmup_steps": 1, "weight_decay": 0.1, "loraplus_ratio": 4.0,
                  "options": ["betas=(0.9,0.99)"]},
}  # fmt: skip
ONETRAINER = {
    "model_type": "FLUX_DEV_1", "training_method": "LORA", "base_model_name": "x", "epochs": 4, "batch_size": 2,
    "resolution": "64", "aspect_ratio_bucketing": False, "learning_rate": 5e-3, "learning_rate_scheduler": "LINEAR",
    "learning_rate_warmup_steps": 2, "lora_rank": 3, "lora_alpha": 1.5, "layer_filter_preset": "attn-mlp",
    "timestep_distribution": "LOGIT_NORMAL", "noising_bias": 0.5, "timestep_shift": 3.0, "train_dtype": "FLOAT_32",
    "sample_after_unit": "NEVER", "text_encoder": {"train": False},
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.02},
    "concepts": [{"path": "x", "balancing": 2, "balancing_strategy": "SAMPLES", "text": {},
                  "image": {"enable_crop_jitter": False}}],
}  # fmt: skip


def losses(values: dict[str, Any], base: Path | str, folder: Path, parent: Path) -> tuple[list[float], Path]:
    """The loss of each step, and the file."""
    parent.mkdir()
    whole = {**values, "base": str(base), "data": {**values.get("data", {}), "folder": str(folder)}}
    file, events = family_runs.train(parse(TrainConfig, whole, "test"), parent, "x")
    return [event.loss for event in events if event.kind == "step"], file


@pytest.mark.parametrize("family", ["imprimatura", "sdxl"])
def test_a_kohya_recipe_has_the_loss_curve_of_the_same_written_by_hand(
    family: str, tmp_path: Path, draw_dots: Any
) -> None:
    # On Imprimatura, and on the tiny model of SDXL.
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(KOHYA.format(base=family))
    is_sdxl = family == "sdxl"
    base: Any = registry()["sdxl"].tiny(tmp_path / "tiny") if is_sdxl else "imprimatura"
    imported = importing.read(recipe, pictures=6, family="sdxl" if is_sdxl else "sd").settings

    # The layers that kohya's network adapts: all in the transformers, none in the residual blocks.
    by_hand = json.loads(json.dumps(BY_HAND)) | {"family": "sdxl" if is_sdxl else "sd"}
    by_hand["adapter"] |= {"targets": "linear" if is_sdxl else "all"}
    text = ["text_encoder/=0.2", *(["text_encoder_2/=0.2"] if is_sdxl else [])]
    by_hand["optimizer"]["block_rates"] = [*text, "resnets.=0", *([] if is_sdxl else ["samplers.=0"])]
    if not is_sdxl:
        by_hand["adapter"]["block_ranks"] = ["resnets.=1", "samplers.=1"]

    pictures = draw_dots(tmp_path / "dots", "a {colour} dot", num=6)
    theirs, file = losses(imported, base, pictures, tmp_path / "theirs")
    ours, _ = losses(by_hand, base, pictures, tmp_path / "ours")
    assert len(theirs) == 6
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-6, atol=0)

    # What kohya's network leaves alone is left alone, and its projections are learned.
    ups = {name: tensor.abs().max() for name, tensor in load_file(file).items() if "lora_up" in name}
    assert all(ups[name] == 0 for name in ups if "resnets" in name or "samplers" in name)
    assert all(ups[name] > 0 for name in ups if "attn1_to_q" in name)
    assert any("proj_in" in name and ups[name] > 0 for name in ups) or not is_sdxl


def test_a_onetrainer_recipe_has_the_loss_curve_of_the_same_written_by_hand(tmp_path: Path, draw_dots: Any) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(ONETRAINER))
    base = registry()["flux"].tiny(tmp_path / "tiny")
    imported = importing.read(recipe).settings
    imported["memory"]["gradient_checkpointing"] = False
    by_hand = {
        "family": "flux", "learning_rate": 5e-3, "max_steps": 4, "batch_size": 2, "resolution_px": 64,
        "dtype": "float32", "preview_every_steps": 0,
        "adapter": {"method": "lora", "rank": 3, "alpha": 1.5, "targets": "attention-ff"},
        "data": {"caption_dropout": 0.0, "buckets": False, "max_upscale": 16.0}, "captions": {"lines": "choose"},
        "objective": {"timesteps": "logit-normal", "timesteps_mean": 0.5, "shift": "fixed", "shift_factor": 3.0},
        "optimizer": {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.02},
    }  # fmt: skip
    pictures = draw_dots(tmp_path / "dots", "a {colour} dot", num=4)
    theirs, _ = losses(imported, base, pictures, tmp_path / "theirs")
    ours, _ = losses(by_hand, base, pictures, tmp_path / "ours")
    assert len(theirs) == 4
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_trains_on_its_familys_tiny_model_with_every_line_of_its_rates(
    name: str, tmp_path: Path, draw_dots: Any
) -> None:
    settings = importing.read(RECIPES / name, pictures=4).settings
    base = registry()[settings["family"]].tiny(tmp_path / "tiny")

    # As it is, but for size, and what needs a GPU or the memory of one.
    settings |= {"resolution_px": 64, "max_steps": 2, "preview_every_steps": 0, "dtype": "float32", "batch_size": 1}
    settings["save_dtype"] = "float32"  # two steps from nothing are lost in a DoRA's rounding to 16 bits
    settings["memory"] = {}
    settings["preview"] = {}
    for section, key in (
        ("data", "more_resolutions_px"), ("data", "bucket_step_px"), ("data", "mask"), ("objective", "unmasked_weight"),
    ):  # fmt: skip
        settings[section].pop(key, None)
    settings["optimizer"]["warmup_steps"] = 0
    if settings["optimizer"]["name"] == "adamw8bit":
        settings["optimizer"]["name"] = "adamw"
    curve, _ = losses(settings, base, draw_dots(tmp_path / "dots", "a {colour} dot"), tmp_path / "run")
    assert len(curve) == 2
