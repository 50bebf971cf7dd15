"""A preset as a config of SimpleTuner, in JSON, and its dataloader config beside it."""

from __future__ import annotations

import json
from typing import Any

from trainer.config import TrainConfig
from trainer.other_trainers import out_parts

_FAMILIES = {
    "sd": "sd1x", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux2": "flux2", "flux2dev": "flux2",
    "chroma": "chroma", "zimage": "z_image", "qwen": "qwen_image", "pixart": "pixart_sigma", "sana": "sana",
    "lumina2": "lumina2", "hidream": "hidream", "auraflow": "auraflow",
}  # fmt: skip
_FLAVOURS = {"flux2": "klein-4b", "flux2dev": "dev"}
# Its own adafactor was taken out "in favour of optimi-stableadamw"; torch's, which it has, scales each rate by the size
# of the weights, a thousandth of a LoRA's at its start, and the number that turns this off can't be said in its texts.
_OPTIMIZERS = {
    "adamw": "adamw_bf16", "adamw8bit": "bnb-adamw8bit", "lion": "optimi-lion", "prodigy": "prodigy",
    "schedule-free": "adamw_schedulefree",
}  # fmt: skip
_INSTEAD = {"adafactor": "optimi-stableadamw"}
_DTYPES = {"auto": "bf16", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_PRECISIONS = {"none": "no_change", "int8": "int8-quanto", "fp8": "fp8-torchao", "nf4": "nf4-bnb"}
_SCHEDULES = {"linear": "linear", "cosine": "cosine", "restarts": "cosine_with_restarts"}


def texts(config: TrainConfig, dataloader: str) -> tuple[str, str]:
    """The JSON, and that of the dataloader config, which has this name. Raises: ConfigError for another family."""
    family = out_parts.family_of(config, _FAMILIES, "SimpleTuner")
    values: dict[str, Any] = {
        "model_type": "lora", "model_family": family, "pretrained_model_name_or_path": config.base,
        "data_backend_config": dataloader, "output_dir": "output", **_adapter(config), **_learning(config),
        **_objective(config), **_running(config),
    }  # fmt: skip
    if config.family in _FLAVOURS:
        values["model_flavour"] = _FLAVOURS[config.family]
    return json.dumps(values, indent=2) + "\n", json.dumps(_dataloader(config), indent=2) + "\n"


def _adapter(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    values: dict[str, Any] = {
        "lora_type": "standard", "lora_rank": getattr(adapter, "rank", 16), "lora_alpha": getattr(adapter, "alpha", 16),
        "lora_dropout": getattr(adapter, "dropout", 0.0),
    }  # fmt: skip
    if adapter.method == "dora":
        values["use_dora"] = True
    if (start := getattr(adapter, "init", "default")) in ("gaussian", "pissa", "olora"):
        values["lora_init_type"] = start
    if config.family == "flux":
        layers = {"attention": "all", "attention-ff": "all+ffs", "linear": "ai-toolkit"}
        values["flux_lora_target"] = layers.get(adapter.targets, "all+ffs")
    return values


def _learning(config: TrainConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    told = out_parts.optimizer_arguments(config, _OPTIMIZERS)
    if optimizer.name in ("adamw", "adamw8bit"):  # its classes have a thousandth more
        told.setdefault("eps", "1e-08")
    if optimizer.name == "prodigy":  # whose second is 0.99 there
        told.setdefault("betas", "(0.9,0.999)")
    betas = told.pop("betas", "").strip("()").split(",")  # a text of theirs is split at each comma
    arguments = ",".join(f"{key}={value}" for key, value in told.items() if "," not in value)
    constant = "constant_with_warmup" if optimizer.warmup_steps else "constant"
    warmup = optimizer.warmup_steps
    if optimizer.schedule in ("cosine", "restarts"):  # theirs have no warm-up: it is how long the rate falls
        warmup = max(1, config.max_steps // (optimizer.cycles if optimizer.schedule == "restarts" else 1))
    if optimizer.name == "adamw" and config.dtype == "float32":  # adamw_bf16 is for weights in bfloat16
        name = "torch-adamw"
    else:
        name = _OPTIMIZERS.get(optimizer.name, _INSTEAD.get(optimizer.name, "adamw_bf16"))
    values = {
        "learning_rate": config.learning_rate, "max_train_steps": config.max_steps, "num_train_epochs": 0,
        "train_batch_size": config.batch_size, "gradient_accumulation_steps": config.accumulation,
        "optimizer": name, "optimizer_config": arguments,
        "lr_scheduler": _SCHEDULES.get(optimizer.schedule, constant), "lr_warmup_steps": warmup,
        "max_grad_norm": 0.0 if optimizer.max_grad_norm >= 1e9 else optimizer.max_grad_norm,
        "grad_clip_method": "norm",
    }  # fmt: skip
    if len(betas) == 2:
        values |= {f"optimizer_beta{number}": float(beta) for number, beta in enumerate(betas, 1)}
    if optimizer.ema_decay:
        values |= {"use_ema": True, "ema_decay": optimizer.ema_decay}
    return values


def _objective(config: TrainConfig) -> dict[str, Any]:
    objective = config.objective
    values: dict[str, Any] = {"loss_type": objective.loss}
    if objective.loss != "l2":
        values |= {"huber_c": objective.huber_delta, "huber_schedule": "constant"}
    if objective.input_perturbation:
        values["input_perturbation"] = objective.input_perturbation
    if config.family in ("sd", "sdxl", "pixart"):
        if objective.weighting == "min-snr":
            values["snr_gamma"] = objective.min_snr_gamma
        if objective.noise_offset:
            values |= {"offset_noise": True, "noise_offset": objective.noise_offset}
        return values
    if objective.timesteps == "uniform":
        values["flow_use_uniform_schedule"] = True
    else:
        values["flow_sigmoid_scale"] = objective.timesteps_std if objective.timesteps == "logit-normal" else 1.0
    if objective.shift == "resolution":
        return values | {"flow_schedule_auto_shift": True}
    # 0 is none; left out, it would be 3.
    return values | {"flow_schedule_shift": objective.shift_factor if objective.shift == "fixed" else 0.0}


def _running(config: TrainConfig) -> dict[str, Any]:
    preview = config.preview
    values: dict[str, Any] = {
        "seed": config.seed, "mixed_precision": _DTYPES[config.dtype],
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "base_model_precision": _PRECISIONS[config.memory.quantise],
        "checkpoint_step_interval": config.checkpoint_every_steps, "checkpoints_total_limit": config.keep_checkpoints,
        "validation_step_interval": config.preview_every_steps, "validation_seed": preview.seed,
        "validation_num_inference_steps": preview.steps, "validation_guidance": preview.guidance_scale,
        "validation_guidance_rescale": preview.guidance_rescale,
        "caption_dropout_probability": config.data.caption_dropout,
    }  # fmt: skip
    if not config.preview_every_steps:
        values["validation_disable"] = True
    if preview.prompts:
        values["validation_prompt"] = preview.prompts[0]
    if config.memory.offload == "blocks":
        values["enable_group_offload"] = True
    return values


def _dataloader(config: TrainConfig) -> list[dict[str, Any]]:
    data = config.data
    sizes = [config.resolution_px, *data.more_resolutions_px]
    pictures = [
        {
            "id": f"pictures-{size}", "type": "local", "dataset_type": "image",
            "instance_data_dir": "/path/to/pictures",
            "caption_strategy": "textfile", "resolution": size, "resolution_type": "pixel_area", "repeats": 0,
            "cache_dir_vae": f"cache/vae/{size}", "crop": not data.buckets or data.crop == "random",
            "crop_style": data.crop if data.crop == "random" else "center",
            "crop_aspect": "preserve" if data.buckets else "square",
            **({"instance_prompt": data.trigger} if data.trigger else {}),
        }
        for size in sizes
    ]  # fmt: skip
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
    return [*pictures, texts]
