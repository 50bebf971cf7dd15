"""A recipe of every other trainer has, imported, the loss curve of the same training written by hand.

Written by hand means from the tool's documentation and code, not from what the import gives: a recipe and, beside it,
what its tool does with it. kohya's and OneTrainer's are in `test_other_trainers_training`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import test_other_trainers_training as curves
from trainer.families import registry
from trainer.other_trainers import importing

NUM_PICTURES = 4
COMMON: dict[str, Any] = {
    "learning_rate": 5e-3, "max_steps": 8, "batch_size": 2, "resolution_px": 64, "seed": 7, "dtype": "float32",
    "preview_every_steps": 0,
}  # fmt: skip

# toolkit/lora_special.py: every linear layer and 1 x 1 convolution of a UNet, no 3 x 3 one; toolkit/optimizer.py:
# AdamW's eps is a thousandth more; toolkit/buckets.py: no picture is made larger.
AI_TOOLKIT = """
job: extension
config:
  name: dots
  process:
    - type: sd_trainer
      training_seed: 7
      network: {type: lora, linear: 4, linear_alpha: 2}
      save: {dtype: float32, save_every: 100}
      datasets:
        - {folder_path: /x, caption_ext: txt, caption_dropout_rate: 0.25, resolution: 64, flip_x: true}
      train:
        batch_size: 2
        steps: 8
        train_unet: true
        train_text_encoder: false
        noise_scheduler: ddpm
        optimizer: adamw
        optimizer_params: {weight_decay: 0.1}
        lr: 5.0e-3
        lr_scheduler: constant_with_warmup
        lr_scheduler_params: {num_warmup_steps: 2}
        max_grad_norm: 0.5
        noise_offset: 0.05
        min_snr_gamma: 5.0
        gradient_checkpointing: false
        dtype: fp32
      model: {name_or_path: /x, arch: sd1}
"""
OF_AI_TOOLKIT = COMMON | {
    "family": "sd",
    "adapter": {"method": "lora", "rank": 4, "alpha": 2.0, "targets": "all"},
    "data": {"caption_dropout": 0.25, "flip": True, "buckets": True, "max_upscale": 1.0},
    "objective": {"weighting": "min-snr", "min_snr_gamma": 5.0, "noise_offset": 0.05},
    "optimizer": {"schedule": "constant", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["eps=1e-6"], "block_rates": ["conv1=0", "conv2=0", "samplers.=0"]},
}  # fmt: skip

# documentation/OPTIONS.md and optimizer_param.py: a tenth of a LoRA's inputs dropped, eps a thousandth more, sigmoid
# timesteps, shifted by what is said; flux_lora_target=all are the attention layers.
SIMPLETUNER = """{
"model_family": "flux", "model_type": "lora", "lora_type": "standard", "lora_rank": 4, "lora_alpha": 2,
"flux_lora_target": "all", "learning_rate": 5e-3, "max_train_steps": 8, "num_train_epochs": 0, "train_batch_size": 2,
"gradient_accumulation_steps": 1, "optimizer": "adamw_bf16", "optimizer_config": "weight_decay=0.1",
"optimizer_beta1": 0.9, "optimizer_beta2": 0.98, "lr_scheduler": "linear", "lr_warmup_steps": 2, "max_grad_norm": 0.5,
"grad_clip_method": "norm", "mixed_precision": "no", "seed": 7, "flow_schedule_shift": 2.0, "resolution": 64,
"resolution_type": "pixel", "caption_dropout_probability": 0.25, "loss_type": "huber", "huber_schedule": "constant",
"huber_c": 0.2, "gradient_checkpointing": false, "validation_disable": true
}"""
OF_SIMPLETUNER = COMMON | {
    "family": "flux",
    "adapter": {"method": "lora", "rank": 4, "alpha": 2.0, "dropout": 0.1, "targets": "attention"},
    "data": {"caption_dropout": 0.25, "buckets": True, "max_upscale": 16.0},
    "objective": {"loss": "huber", "huber_delta": 0.2, "timesteps": "sigmoid", "shift": "fixed", "shift_factor": 2.0},
    "optimizer": {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["eps=1e-6", "betas=(0.9,0.98)"]},
}  # fmt: skip

# train.py and models/flux.py: alpha is the rank, every linear layer of the blocks, torch's own AdamW, no seed but 0.
DIFFUSION_PIPE = """
output_dir = '/x'
dataset = 'dataset.toml'
epochs = 1
micro_batch_size_per_gpu = 2
gradient_accumulation_steps = 1
gradient_clipping = 0.5
warmup_steps = 2
uncond_fraction = 0.25
save_every_n_steps = 100
[model]
type = 'flux'
diffusers_path = '/x'
dtype = 'float32'
timestep_sample_method = 'logit_normal'
sigmoid_scale = 1.3
flux_shift = true
[adapter]
type = 'lora'
rank = 4
dropout = 0.1
[optimizer]
type = 'adamw'
lr = 5e-3
betas = [0.9, 0.98]
weight_decay = 0.1
"""
PIPE_DATASET = """
resolutions = [64]
enable_ar_bucket = false
[[directory]]
path = '/x'
num_repeats = 4
"""
OF_DIFFUSION_PIPE = COMMON | {
    "family": "flux", "seed": 0,
    "adapter": {"method": "lora", "rank": 4, "alpha": 4.0, "dropout": 0.1, "targets": "linear"},
    "data": {"caption_dropout": 0.25, "buckets": False, "max_upscale": 16.0},
    "objective": {"timesteps": "logit-normal", "timesteps_mean": 0.0, "timesteps_std": 1.3, "shift": "resolution"},
    "optimizer": {"schedule": "constant", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["betas=(0.9,0.98)"]},
}  # fmt: skip

# docs/zimage.md, docs/advanced_config.md and networks/lora_zimage.py: blocks without modulations and refiners, an alpha
# of 1 by itself; the timestep is a sigmoid's, shifted.
MUSUBI = """accelerate launch src/musubi_tuner/zimage_train_network.py --dit /x --vae /x --text_encoder /x \\
  --dataset_config dataset.toml --mixed_precision no --timestep_sampling shift --weighting_scheme none \\
  --discrete_flow_shift 2.0 --optimizer_type AdamW --optimizer_args weight_decay=0.1 betas=0.9,0.98 \\
  --learning_rate 5e-3 --lr_scheduler cosine --lr_warmup_steps 1 --max_grad_norm 0.5 \\
  --network_module networks.lora_zimage --network_dim 4 --max_train_steps 8 --seed 7 --output_dir /x --output_name dots
"""
MUSUBI_DATASET = """
[general]
resolution = [64, 64]
caption_extension = ".txt"
batch_size = 2
enable_bucket = false
[[datasets]]
image_directory = "/x"
cache_directory = "/x"
num_repeats = 1
"""
OF_MUSUBI = COMMON | {
    "family": "zimage",
    "adapter": {"method": "lora", "rank": 4, "alpha": 1.0, "targets": "attention-ff",
                "without_layers": ["_refiner."]},
    "data": {"caption_dropout": 0.0, "buckets": False, "max_upscale": 16.0},
    "objective": {"timesteps": "sigmoid", "shift": "fixed", "shift_factor": 2.0},
    "optimizer": {"schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["betas=(0.9,0.98)"]},
}  # fmt: skip

# examples/text_to_image/train_text_to_image_lora.py: alpha is the rank, gaussian init, the attention layers.
DIFFUSERS = """accelerate launch train_text_to_image_lora.py \\
  --pretrained_model_name_or_path=/x --train_data_dir=/x --resolution=64 --center_crop --random_flip \\
  --train_batch_size=2 --max_train_steps=8 --learning_rate=5e-3 --rank=4 --lr_scheduler=linear --lr_warmup_steps=2 \\
  --max_grad_norm=0.5 --noise_offset=0.05 --snr_gamma=5 --adam_weight_decay=0.1 --adam_beta2=0.98 --seed=7
"""
OF_DIFFUSERS = COMMON | {
    "family": "sd",
    "adapter": {"method": "lora", "rank": 4, "alpha": 4.0, "init": "gaussian", "targets": "attention"},
    "data": {"caption_dropout": 0.0, "flip": True, "buckets": False, "max_upscale": 16.0},
    "objective": {"weighting": "min-snr", "min_snr_gamma": 5.0, "noise_offset": 0.05},
    "optimizer": {"schedule": "linear", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["betas=(0.9,0.98)"]},
}  # fmt: skip

# app.py's gen_sh and gen_toml; flux_train_network.py: CLIP is trained too unless --network_train_unet_only stands.
FLUXGYM = """accelerate launch --mixed_precision no sd-scripts/flux_train_network.py \\
  --pretrained_model_name_or_path "/x/models/unet/flux1-dev.sft" --clip_l "/x" --t5xxl "/x" --ae "/x" \\
  --save_model_as safetensors --sdpa --seed 7 --mixed_precision no --network_module networks.lora_flux \\
  --network_dim 4 --optimizer_type adafactor \\
  --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False" \\
  --network_args "train_blocks=single" --lr_scheduler constant_with_warmup --lr_warmup_steps 1 --max_grad_norm 0.0 \\
  --learning_rate 8e-4 --max_train_epochs 4 --dataset_config "dataset.toml" --output_dir "/x" --output_name dots \\
  --timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1 --loss_type l2
"""
FLUXGYM_DATASET = """
[general]
shuffle_caption = false
caption_extension = '.txt'
keep_tokens = 1
[[datasets]]
resolution = 64
batch_size = 2
keep_tokens = 1
  [[datasets.subsets]]
  image_dir = '/x'
  class_tokens = 'c4t'
  num_repeats = 1
"""
OF_FLUXGYM = COMMON | {
    "family": "flux", "learning_rate": 8e-4,
    "adapter": {"method": "lora", "rank": 4, "alpha": 1.0, "targets": "linear", "text_encoder": True},
    "data": {"caption_dropout": 0.0, "buckets": False, "max_upscale": 16.0},
    "objective": {"timesteps": "sigmoid", "shift": "fixed", "shift_factor": 3.1582},
    "optimizer": {"name": "adafactor", "schedule": "constant", "warmup_steps": 1, "weight_decay": 0.0,
                  "max_grad_norm": 1e9, "block_rates": ["transformer/transformer_blocks.=0"]},
}  # fmt: skip

# sd3_train_network.py, library/sd3_train_utils.py and docs/config_README-en.md: every linear layer of the blocks; the
# logit's mean is of how clean it is, times 0 at all noise; the dataset's own file has batch and size.
SD_SCRIPTS = """
pretrained_model_name_or_path = "/x"
clip_l = "/x"
clip_g = "/x"
t5xxl = "/x"
dataset_config = "dataset.toml"
network_module = "networks.lora_sd3"
network_dim = 4
network_alpha = 2
network_train_unet_only = true
learning_rate = 5e-3
optimizer_type = "AdamW"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.98"]
lr_scheduler = "cosine"
lr_warmup_steps = 1
max_train_epochs = 4
max_grad_norm = 0.5
weighting_scheme = "uniform"
training_shift = 3.0
mixed_precision = "no"
seed = 7
"""
SD_SCRIPTS_DATASET = """
[general]
caption_extension = ".txt"
caption_dropout_rate = 0.25
flip_aug = true
[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = false
  [[datasets.subsets]]
  image_dir = "/x"
  num_repeats = 1
"""
OF_SD_SCRIPTS = COMMON | {
    "family": "sd3",
    "adapter": {"method": "lora", "rank": 4, "alpha": 2.0, "targets": "linear"},
    "data": {"caption_dropout": 0.25, "flip": True, "buckets": False, "max_upscale": 16.0},
    "objective": {"timesteps": "uniform", "shift": "fixed", "shift_factor": 3.0},
    "optimizer": {"schedule": "cosine", "warmup_steps": 1, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "options": ["betas=(0.9,0.98)"]},
}  # fmt: skip

# kohya_gui/lora_gui.py: a warm-up in per cent of the steps, rates of the parts beside the main one; what its network
# adapts of a UNet are the transformers' layers (networks/lora.py), and the text encoder.
KOHYA_GUI = """{
"LoRA_type": "Standard", "pretrained_model_name_or_path": "runwayml/stable-diffusion-v1-5", "output_name": "dots",
"train_data_dir": "/x", "network_dim": 4, "network_alpha": 2, "learning_rate": 5e-3, "unet_lr": 5e-3,
"text_encoder_lr": 1e-3, "optimizer": "AdamW", "optimizer_args": "weight_decay=0.1", "lr_scheduler": "cosine",
"lr_warmup": 25, "lr_warmup_steps": 0, "epoch": 1, "max_train_steps": 8, "train_batch_size": 2,
"max_resolution": "64,64", "enable_bucket": false, "noise_offset_type": "Original", "noise_offset": 0.05,
"min_snr_gamma": 5, "caption_dropout_rate": 0.25, "flip_aug": true, "max_grad_norm": 0.5, "mixed_precision": "no",
"seed": 7, "sdxl": false, "loss_type": "l2", "gradient_accumulation_steps": 1
}"""
OF_KOHYA_GUI = COMMON | {
    "family": "sd",
    "adapter": {"method": "lora", "rank": 4, "alpha": 2.0, "targets": "all", "text_encoder": True,
                "block_ranks": ["resnets.=1", "samplers.=1"]},
    "data": {"caption_dropout": 0.25, "flip": True, "buckets": False, "max_upscale": 16.0},
    "objective": {"weighting": "min-snr", "min_snr_gamma": 5.0, "noise_offset": 0.05},
    "optimizer": {"schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
                  "block_rates": ["text_encoder/=0.2", "resnets.=0", "samplers.=0"]},
}  # fmt: skip

RECIPES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "ai-toolkit": ("x.yaml", AI_TOOLKIT, "", OF_AI_TOOLKIT),
    "simpletuner": ("x.json", SIMPLETUNER, "", OF_SIMPLETUNER),
    "diffusion-pipe": ("x.toml", DIFFUSION_PIPE, PIPE_DATASET, OF_DIFFUSION_PIPE),
    "musubi-tuner": ("x.sh", MUSUBI, MUSUBI_DATASET, OF_MUSUBI),
    "diffusers": ("x.sh", DIFFUSERS, "", OF_DIFFUSERS),
    "fluxgym": ("x.sh", FLUXGYM, FLUXGYM_DATASET, OF_FLUXGYM),
    "kohya_ss": ("x.json", KOHYA_GUI, "", OF_KOHYA_GUI),
    "sd-scripts": ("x.toml", SD_SCRIPTS, SD_SCRIPTS_DATASET, OF_SD_SCRIPTS),
}


QUICKEST = "sd-scripts"
EVERY = [pytest.param(tool, marks=[] if tool == QUICKEST else [pytest.mark.slow]) for tool in RECIPES]


@pytest.mark.parametrize("tool", EVERY)
def test_a_recipe_has_the_loss_curve_of_the_same_written_by_hand(tool: str, tmp_path: Path, draw_dots: Any) -> None:
    # On Imprimatura where the recipe is of its family, else on the family's tiny model.
    name, recipe, dataset, by_hand = RECIPES[tool]
    (tmp_path / name).write_text(recipe)
    if dataset:
        (tmp_path / "dataset.toml").write_text(dataset)
    imported = importing.read(tmp_path / name, pictures=NUM_PICTURES)
    family = by_hand["family"]
    assert (imported.tool, imported.settings["family"]) == (tool, family)
    base: Any = "imprimatura" if family == "sd" else registry()[family].tiny(tmp_path / "tiny")

    pictures = draw_dots(tmp_path / "dots", "a {colour} dot", num=NUM_PICTURES)
    theirs, _ = curves.losses(imported.settings, base, pictures, tmp_path / "theirs")
    ours, _ = curves.losses(by_hand, base, pictures, tmp_path / "ours")
    assert len(theirs) == len(set(theirs)) == 8
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_blocks_own_scale_is_a_rate_of_its_second_matrix(tmp_path: Path, draw_dots: Any) -> None:
    """What an alpha by block becomes: half of alpha, or half the rate of `lora_B`, are the same update."""
    base, pictures = registry()["flux"].tiny(tmp_path / "tiny"), draw_dots(tmp_path / "dots", "a {colour} dot", num=4)
    plain = COMMON | {"family": "flux", "optimizer": {"weight_decay": 0.0, "max_grad_norm": 1e9}}
    half = plain | {"adapter": {"method": "lora", "rank": 4, "alpha": 2.0}}
    slower = plain | {"adapter": {"method": "lora", "rank": 4, "alpha": 4.0}}
    unlike, _ = curves.losses(slower, base, pictures, tmp_path / "unlike")
    slower["optimizer"] = {**plain["optimizer"], "block_rates": ["lora_B=0.5"]}
    one, two = (
        torch.tensor(curves.losses(values, base, pictures, tmp_path / name)[0])
        for name, values in (("half", half), ("slower", slower))
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=0)
    assert (one - torch.tensor(unlike)).abs().max() > 1e-3
