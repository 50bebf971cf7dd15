"""A preset as a shell script that starts diffusers' own training script."""

from __future__ import annotations

import shlex
from typing import Any

from trainer.config import TrainConfig
from trainer.other_trainers import out_parts
from trainer.other_trainers.diffusers_scripts import CAPTION_TO_SET, WITH_ALPHA

_SCRIPTS = {
    "sd": "train_dreambooth_lora.py", "sdxl": "train_dreambooth_lora_sdxl.py", "sd3": "train_dreambooth_lora_sd3.py",
    "flux": "train_dreambooth_lora_flux.py", "flux2": "train_dreambooth_lora_flux2_klein.py",
    "flux2dev": "train_dreambooth_lora_flux2.py", "qwen": "train_dreambooth_lora_qwen_image.py",
    "zimage": "train_dreambooth_lora_z_image.py", "lumina2": "train_dreambooth_lora_lumina2.py",
    "hidream": "train_dreambooth_lora_hidream.py", "sana": "train_dreambooth_lora_sana.py",
}  # fmt: skip
_NOT_OF_SD = ("optimizer", "random_flip", "text_encoder_lr")  # options of all scripts but the oldest
_PRECISIONS = {"auto": "bf16", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_FLOW_FF = "attn.to_k,attn.to_q,attn.to_v,attn.to_out.0,ff.net.0.proj,ff.net.2"


def text(config: TrainConfig) -> str:
    """The script. Raises: ConfigError for a family that no script of diffusers trains."""
    script = out_parts.family_of(config, _SCRIPTS, "diffusers")
    values = {**_adapter(config), **_learning(config), **_data(config)}
    # A script stops at an option that it doesn't know, so SD's is spared those it lacks.
    if config.family == "sd":
        values = {key: value for key, value in values.items() if key not in _NOT_OF_SD}
    lines = [f"  --{key}" + ("" if value is True else f"={shlex.quote(str(value))}") for key, value in values.items()]
    start = "# Made by Velatura for diffusers' examples; pictures and prompt are yours to set.\n"
    return start + " \\\n".join([f"accelerate launch {script}", *lines]) + "\n"


def _adapter(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": config.base, "instance_data_dir": "/path/to/pictures",
        "output_dir": "velatura", "rank": getattr(adapter, "rank", 4),
    }  # fmt: skip
    if config.family in WITH_ALPHA:
        values["lora_alpha"] = max(1, round(getattr(adapter, "alpha", 4.0)))  # the scripts take whole numbers alone
    if getattr(adapter, "dropout", 0.0):
        values["lora_dropout"] = getattr(adapter, "dropout", 0.0)
    if config.family not in ("sd", "sdxl"):
        values["lora_layers"] = _FLOW_FF if adapter.targets != "attention" else _FLOW_FF.partition(",ff")[0]
    # The scripts have one rate for all text encoders.
    rates = list(out_parts.text_rates(config).values())
    if rates:
        values |= {"train_text_encoder": True, "text_encoder_lr": rates[0]}
    return values


def _learning(config: TrainConfig) -> dict[str, Any]:
    optimizer, objective = config.optimizer, config.objective
    schedules = {"linear": "linear", "cosine": "cosine", "restarts": "cosine_with_restarts", "rex": "cosine"}
    constant = "constant_with_warmup" if optimizer.warmup_steps else "constant"
    values: dict[str, Any] = {
        "learning_rate": config.learning_rate, "max_train_steps": config.max_steps,
        "train_batch_size": config.batch_size, "gradient_accumulation_steps": config.accumulation,
        "optimizer": "prodigy" if optimizer.name == "prodigy" else "AdamW",
        "adam_weight_decay": optimizer.weight_decay, "lr_scheduler": schedules.get(optimizer.schedule, constant),
        "lr_warmup_steps": optimizer.warmup_steps, "max_grad_norm": optimizer.max_grad_norm, "seed": config.seed,
        "mixed_precision": _PRECISIONS[config.dtype], "checkpointing_steps": config.checkpoint_every_steps,
        "checkpoints_total_limit": config.keep_checkpoints,
    }  # fmt: skip

    # Options of some optimizers and schedules alone.
    if optimizer.name == "adamw8bit":
        values["use_8bit_adam"] = True
    if optimizer.schedule == "restarts":
        values["lr_num_cycles"] = optimizer.cycles
    if config.memory.gradient_checkpointing:
        values["gradient_checkpointing"] = True

    # Diffusion models: of these two scripts only SDXL's weighs by SNR.
    if config.family in ("sd", "sdxl"):
        if objective.weighting == "min-snr" and config.family == "sdxl":
            values["snr_gamma"] = objective.min_snr_gamma
        return values

    # Flow models. A larger number is cleaner there, so the mean changes its sign.
    values["weighting_scheme"] = {"uniform": "none", "mode": "mode"}.get(objective.timesteps, "logit_normal")
    if config.family == "sd3" and objective.timesteps == "uniform":  # its script has no "none"; a mode of 0 is that
        values |= {"weighting_scheme": "mode", "mode_scale": 0.0}
    if objective.timesteps == "logit-normal":
        values |= {"logit_mean": -objective.timesteps_mean, "logit_std": objective.timesteps_std}
    # A distilled base is trained at guidance 1 here.
    if config.family == "flux":
        values["guidance_scale"] = 1.0
    return values


def _data(config: TrainConfig) -> dict[str, Any]:
    data = config.data
    values: dict[str, Any] = {"resolution": config.resolution_px}
    # There it is the caption of every picture, without which the scripts don't start; here it stands before captions.
    values["instance_prompt"] = config.captions.prefix or CAPTION_TO_SET
    if data.crop == "centre":
        values["center_crop"] = True
    if data.flip:
        values["random_flip"] = True
    if config.preview.prompts:
        values["validation_prompt"] = config.preview.prompts[0]
    return values
