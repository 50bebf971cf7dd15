"""A preset as a job config of ai-toolkit, in YAML."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import yaml

from trainer.config import TrainConfig
from trainer.other_trainers import out_parts

_ARCHITECTURES = {
    "sd": "sd1", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux", "flux2": "flux2_klein_4b", "flux2dev": "flux2",
    "chroma": "chroma", "qwen": "qwen_image", "zimage": "zimage", "lumina2": "lumina2", "hidream": "hidream",
    "pixart": "pixart_sigma", "auraflow": "auraflow",
}  # fmt: skip
_DTYPES = {"auto": "bf16", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_SAVED = {"float32": "float32", "bfloat16": "bf16", "float16": "float16"}
_OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "adafactor": "adafactor",
    "lion": "lion",
    "prodigy": "prodigy",
}


def text(config: TrainConfig) -> str:
    """The YAML. Raises: ConfigError for a family that ai-toolkit doesn't train."""
    architecture = out_parts.family_of(config, _ARCHITECTURES, "ai-toolkit")
    process: dict[str, Any] = {
        "type": "sd_trainer", "training_folder": "output", "device": "cuda:0", "training_seed": config.seed,
        "network": _network(config), "save": _save(config), "datasets": [_dataset(config)], "train": _train(config),
        "model": _model(config, architecture), "sample": _sample(config),
    }  # fmt: skip
    if config.data.trigger:
        process["trigger_word"] = config.data.trigger
    job = {"job": "extension", "config": {"name": "velatura", "process": [process]}}
    return str(yaml.safe_dump(job, sort_keys=False, allow_unicode=True))


def _network(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    values: dict[str, Any] = {
        "type": adapter.method,
        "linear": getattr(adapter, "rank", 16),
        "linear_alpha": getattr(adapter, "alpha", 16.0),
    }

    # A LoKr is the whole matrix there unless it is told otherwise.
    if adapter.method == "lokr":
        values |= {"lokr_full_rank": False, "lokr_factor": getattr(adapter, "factor", -1)}
    if getattr(adapter, "dropout", 0.0):
        values["dropout"] = getattr(adapter, "dropout", 0.0)

    # Layers: convolutions are what `all` adds in a UNet; in a transformer it adds what lies outside the blocks.
    if config.family in ("sd", "sdxl") and adapter.targets == "all":
        values |= {"conv": values["linear"], "conv_alpha": values["linear_alpha"]}
    elif config.family not in ("sd", "sdxl"):
        values["transformer_only"] = adapter.targets != "all"

    # A path has dots alone there; here a slash parts the component from the rest.
    only, without = (list(getattr(adapter, key, ())) for key in ("only_layers", "without_layers"))
    kwargs = {"only_if_contains": only or ["attn"] * (adapter.targets == "attention"), "ignore_if_contains": without}
    if any(kwargs.values()):
        values["network_kwargs"] = {
            key: [line.replace("/", ".") for line in lines] for key, lines in kwargs.items() if lines
        }
    return values


def _save(config: TrainConfig) -> dict[str, Any]:
    return {
        "dtype": _SAVED[config.save_dtype],
        "save_every": config.checkpoint_every_steps,
        "max_step_saves_to_keep": config.keep_checkpoints,
    }


def _dataset(config: TrainConfig) -> dict[str, Any]:
    data, captions = config.data, config.captions
    values: dict[str, Any] = {
        "folder_path": "/path/to/pictures", "caption_ext": "txt", "caption_dropout_rate": data.caption_dropout,
        "resolution": sorted({config.resolution_px, *data.more_resolutions_px}), "flip_x": data.flip,
        "buckets": data.buckets, "random_crop": data.crop == "random", "shuffle_tokens": captions.shuffle_tags,
    }  # fmt: skip
    if captions.shuffle_tags or captions.tag_dropout:
        values |= {"token_dropout_rate": captions.tag_dropout, "keep_tokens": captions.keep_tags}
    if data.buckets:
        values["bucket_tolerance"] = data.bucket_step_px or 64
    if data.mask == "alpha":
        values |= {"alpha_mask": True, "mask_min_value": config.objective.unmasked_weight}
    return values


def _train(config: TrainConfig) -> dict[str, Any]:
    optimizer, objective = config.optimizer, config.objective
    rates = list(out_parts.text_rates(config).values())
    # A schedule that it doesn't have becomes the nearest that falls to zero.
    schedules = {"constant": "constant_with_warmup" if optimizer.warmup_steps else "constant", "cosine": "cosine"}
    values: dict[str, Any] = {
        "steps": config.max_steps, "batch_size": config.batch_size, "gradient_accumulation": config.accumulation,
        "lr": config.learning_rate, "train_unet": True, "train_text_encoder": bool(rates),
        "optimizer": _OPTIMIZERS.get(optimizer.name, "adamw"),
        "lr_scheduler": schedules.get(optimizer.schedule, "cosine"),
        "optimizer_params": {
            key: value
            for key, value in out_parts.optimizer_values(config, _OPTIMIZERS).items()
            if key != "eps"  # ai-toolkit sets it itself, and refuses it twice
        },
        "max_grad_norm": optimizer.max_grad_norm, "dtype": _DTYPES[config.dtype],
        "gradient_checkpointing": config.memory.gradient_checkpointing,
        "noise_scheduler": "ddpm" if config.family in ("sd", "sdxl", "pixart") else "flowmatch",
        **_range(config),
    }  # fmt: skip
    if values["lr_scheduler"] == "constant_with_warmup":  # torch's classes, which the others are, take no warm-up
        values["lr_scheduler_params"] = {"num_warmup_steps": optimizer.warmup_steps}

    # The mean of the weights, and what changes the loss.
    if optimizer.ema_decay:
        values["ema_config"] = {"use_ema": True, "ema_decay": optimizer.ema_decay}
    if objective.weighting == "min-snr":
        values["min_snr_gamma"] = objective.min_snr_gamma
    if objective.noise_offset:
        values["noise_offset"] = objective.noise_offset
    if objective.preservation_weight:
        values |= {
            "diff_output_preservation": True,
            "diff_output_preservation_multiplier": objective.preservation_weight,
        }
        values["diff_output_preservation_class"] = config.data.class_caption

    # Flow models: how timesteps are drawn.
    if config.family not in ("sd", "sdxl", "pixart"):
        uniform = "shift" if objective.shift == "resolution" else "linear"
        values["timestep_type"] = uniform if objective.timesteps == "uniform" else "sigmoid"
    return values


def _range(config: TrainConfig) -> dict[str, int]:
    """The range as places in a list that falls from all noise; sigmoid's is drawn and sorted: places are quantiles."""
    objective = config.objective
    low, high = objective.timesteps_low, objective.timesteps_high
    if config.family not in ("sd", "sdxl", "pixart") and objective.timesteps != "uniform":
        low, high = (_quantile(level) for level in (low, high))
    first, last = round((1 - high) * 1000), round((1 - low) * 1000)
    return {"min_denoising_steps": first, "max_denoising_steps": min(last, 999)}


def _quantile(level: float) -> float:
    """The share of sigmoid timesteps below a noise level."""
    return NormalDist().cdf(math.log(level / (1 - level))) if 0 < level < 1 else level


def _model(config: TrainConfig, architecture: str) -> dict[str, Any]:
    values: dict[str, Any] = {"name_or_path": config.base, "arch": architecture}
    # Its names for 8 and 4 bits.
    kinds = {"int8": "qint8", "fp8": "qfloat8", "nf4": "uint4"}
    if config.memory.quantise in kinds:
        values |= {"quantize": True, "qtype": kinds[config.memory.quantise]}
    if config.memory.offload == "blocks":
        values["layer_offloading"] = True
    return values


def _sample(config: TrainConfig) -> dict[str, Any]:
    preview = config.preview
    return {
        "sample_every": config.preview_every_steps, "prompts": list(preview.prompts), "seed": preview.seed,
        "sample_steps": preview.steps, "guidance_scale": preview.guidance_scale, "width": config.resolution_px,
        "height": config.resolution_px,
    }  # fmt: skip
