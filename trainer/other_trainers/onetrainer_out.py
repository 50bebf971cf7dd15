"""A preset as a config of OneTrainer, in JSON.

It counts epochs. A concept that is balanced by samples, as many as a step sees, makes each epoch one step, however many
pictures there are.
"""

from __future__ import annotations

import json
from typing import Any

from trainer.config import TrainConfig
from trainer.other_trainers import onetrainer_versions, out_parts

_MODELS = {
    "sd": "STABLE_DIFFUSION_15", "sdxl": "STABLE_DIFFUSION_XL_10_BASE", "sd3": "STABLE_DIFFUSION_35",
    "pixart": "PIXART_SIGMA", "flux": "FLUX_DEV_1", "flux2": "FLUX_2", "flux2dev": "FLUX_2", "sana": "SANA",
    "hidream": "HI_DREAM_FULL", "chroma": "CHROMA_1", "qwen": "QWEN", "zimage": "Z_IMAGE",
}  # fmt: skip
_DTYPES = {"auto": "BFLOAT_16", "float32": "FLOAT_32", "bfloat16": "BFLOAT_16", "float16": "FLOAT_16"}
_QUANTISED = {"int8": "INT_8", "nf4": "NFLOAT_4", "fp8": "FLOAT_8"}
_OPTIMIZERS = {
    "adamw": "ADAMW", "adamw8bit": "ADAMW_8BIT", "adafactor": "ADAFACTOR", "lion": "LION", "prodigy": "PRODIGY",
    "schedule-free": "SCHEDULE_FREE_ADAMW",
}  # fmt: skip
_OTHERS = {
    "CAME": "CAME", "AdEMAMix": "AdEMAMix", "ADOPT": "ADOPT", "Lamb": "LAMB", "AdaBelief": "ADABELIEF", "Yogi": "YOGI",
    "Tiger": "TIGER", "DAdaptAdam": "DADAPT_ADAM", "DAdaptLion": "DADAPT_LION", "DAdaptAdan": "DADAPT_ADAN",
    "DAdaptAdaGrad": "DADAPT_ADA_GRAD", "DAdaptSGD": "DADAPT_SGD",
}  # fmt: skip


def text(config: TrainConfig) -> str:
    """The JSON. Raises: ConfigError for a family that OneTrainer doesn't train."""
    model = out_parts.family_of(config, _MODELS, "OneTrainer")
    values = {
        # Without it OneTrainer takes a config for its first version's and changes it step by step to today's.
        "__version": onetrainer_versions.NOW,
        "training_method": "LORA", "model_type": model, "base_model_name": config.base,
        **_adapter(config), **_parts(config), **_learning(config), **_objective(config), **_running(config),
        "concepts": [_concept(config)],
        "samples": [_sample(config, prompt) for prompt in config.preview.prompts],
    }  # fmt: skip
    return json.dumps(values, indent=4)


def _adapter(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    kinds = {"lora": "LORA", "dora": "LORA", "loha": "LOHA", "lokr": "LOKR", "oft": "OFT_2"}
    values: dict[str, Any] = {"peft_type": kinds[adapter.method], "lora_decompose": adapter.method == "dora"}
    if adapter.method == "oft":
        values["oft_block_size"] = getattr(adapter, "block_size", 32)
    else:
        values |= {
            "lora_rank": adapter.rank,
            "lora_alpha": adapter.alpha,
            "dropout_probability": getattr(adapter, "dropout", 0.0),
        }
    if adapter.method == "lokr":
        values |= {"lokr_dim": adapter.rank, "lokr_decompose_factor": getattr(adapter, "factor", -1)}
        values["lokr_decompose_both"] = getattr(adapter, "decompose_both", False)

    # Layers: a preset where it means the same, else a filter by parts of paths.
    unet = config.family in out_parts.FROZEN
    if (
        adapter.targets == "all"
        and (only := getattr(adapter, "only_layers", ()))
        and not any("*" in text for text in only)
    ):
        values |= _filter(",".join(only))
    elif unet and out_parts.other_rates(config) == out_parts.FROZEN[config.family]:
        values["layer_filter_preset"] = "attn-mlp"
    elif adapter.targets == "all":
        values["layer_filter_preset"] = "full"
    elif adapter.targets == "attention":
        values |= _filter("attn1,attn2") if unet else {"layer_filter_preset": "attn-only"}
    elif adapter.targets == "attention-ff":
        values |= _filter("attn1,attn2,ff.net") if unet else {"layer_filter_preset": "attn-mlp"}
    else:
        values["layer_filter_preset"] = "blocks"
    return values


def _filter(words: str) -> dict[str, str]:
    return {"layer_filter_preset": "custom", "layer_filter": words}


def _parts(config: TrainConfig) -> dict[str, Any]:
    denoiser = "unet" if config.family in out_parts.FROZEN else "transformer"
    memory, dropout = config.memory, config.data.caption_dropout
    part: dict[str, Any] = {
        "train": True, "learning_rate": config.learning_rate,
        "weight_dtype": _QUANTISED.get(memory.quantise, _DTYPES[config.dtype]),
        "gradient_checkpointing": memory.gradient_checkpointing,
        "activation_offloading": memory.offload_activations,
    }  # fmt: skip
    if memory.offload == "blocks":
        part["offload_fraction"] = 0.5
    rates = out_parts.text_rates(config)
    parts: dict[str, Any] = {denoiser: part}
    # It leaves captions out by text encoder, so each is given the share.
    for name in out_parts.TEXT_ENCODERS.get(config.family, ("text_encoder",)):
        rate = rates.get(name, 0.0)
        parts[name] = {"train": rate > 0, "dropout_probability": dropout, "stop_training_after_unit": "NEVER"}
        if rate > 0:
            parts[name]["learning_rate"] = rate
    return parts


def _learning(config: TrainConfig) -> dict[str, Any]:
    optimizer = config.optimizer
    schedules = {
        "constant": "CONSTANT",
        "linear": "LINEAR",
        "cosine": "COSINE",
        "restarts": "COSINE_WITH_HARD_RESTARTS",
        "rex": "REX",
    }
    warmup = optimizer.warmup_steps
    values: dict[str, Any] = {
        "learning_rate": config.learning_rate, "epochs": config.max_steps, "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation, "learning_rate_scheduler": schedules[optimizer.schedule],
        "learning_rate_cycles": float(optimizer.cycles) if optimizer.schedule == "restarts" else 1.0,
        # It counts batches; a half more, as up to 1 is a share of all.
        "learning_rate_warmup_steps": warmup * config.accumulation + 0.5 if warmup else 0.0,
        "clip_grad_norm": optimizer.max_grad_norm,
    }  # fmt: skip

    # The mean of the weights, taken at each step as here.
    if optimizer.ema_decay:
        values |= {"ema": "GPU", "ema_decay": optimizer.ema_decay, "ema_update_step_interval": 1}

    # The optimizer: its betas stand apart.
    name = _OPTIMIZERS.get(optimizer.name, _OTHERS.get(optimizer.other, "ADAMW"))
    arguments: dict[str, Any] = {"optimizer": name}
    for key, value in out_parts.optimizer_arguments(config, {*_OPTIMIZERS, *_OTHERS}).items():
        if key == "betas" and value.count(",") == 1:
            arguments["beta1"], arguments["beta2"] = (float(part) for part in value.strip("()").split(","))
        else:
            arguments[key] = _value(value)
    return values | {"optimizer": arguments}


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _objective(config: TrainConfig) -> dict[str, Any]:
    objective = config.objective
    values: dict[str, Any] = {}
    # It adds losses up by their strengths; here there is one loss.
    if objective.loss == "huber":
        values |= {"mse_strength": 0.0, "huber_strength": 1.0, "huber_delta": objective.huber_delta}
    weightings = {"min-snr": "MIN_SNR_GAMMA", "debiased": "DEBIASED_ESTIMATION"}
    if objective.weighting in weightings:
        values |= {"loss_weight_fn": weightings[objective.weighting], "loss_weight_strength": objective.min_snr_gamma}
    if objective.noise_offset:
        values["offset_noise_weight"] = objective.noise_offset

    # Timesteps: the spread is 1 more than the weight there.
    if objective.timesteps in ("logit-normal", "sigmoid"):
        normal = objective.timesteps == "logit-normal"
        values |= {"timestep_distribution": "LOGIT_NORMAL", "noising_bias": objective.timesteps_mean if normal else 0.0}
        values["noising_weight"] = objective.timesteps_std - 1.0 if normal else 0.0
    elif objective.timesteps == "mode":
        values |= {"timestep_distribution": "HEAVY_TAIL", "noising_weight": objective.timesteps_mode_scale}
    if objective.shift == "resolution":
        values["dynamic_timestep_shifting"] = True
    elif objective.shift == "fixed":
        values["timestep_shift"] = objective.shift_factor
    return values | {"min_noising_strength": objective.timesteps_low, "max_noising_strength": objective.timesteps_high}


def _running(config: TrainConfig) -> dict[str, Any]:
    sizes = [config.resolution_px, *config.data.more_resolutions_px]
    values: dict[str, Any] = {
        "resolution": ",".join(map(str, sizes)), "aspect_ratio_bucketing": config.data.buckets,
        "train_dtype": _DTYPES[config.dtype], "output_dtype": _DTYPES[config.save_dtype],
        "backup_after": config.checkpoint_every_steps, "backup_after_unit": "STEP", "rolling_backup": True,
        "rolling_backup_count": config.keep_checkpoints, "validate_after": config.validate_every_steps,
        "validate_after_unit": "STEP", "compile": config.memory.compile == "blocks",
    }  # fmt: skip
    if config.preview_every_steps:
        values |= {"sample_after": config.preview_every_steps, "sample_after_unit": "STEP"}
    else:
        values["sample_after_unit"] = "NEVER"
    if config.data.mask == "file":
        values |= {"masked_training": True, "unmasked_weight": config.objective.unmasked_weight}
    return values


def _concept(config: TrainConfig) -> dict[str, Any]:
    data, captions = config.data, config.captions
    tags: dict[str, Any] = {"prompt_source": "sample", "enable_tag_shuffling": captions.shuffle_tags}
    if captions.shuffle_tags or captions.tag_dropout:
        tags |= {"tag_delimiter": captions.separator, "keep_tags_count": captions.keep_tags}
    if captions.tag_dropout:
        tags |= {
            "tag_dropout_enable": True,
            "tag_dropout_mode": "RANDOM",
            "tag_dropout_probability": captions.tag_dropout,
        }
    return {
        "__version": onetrainer_versions.CONCEPT_NOW,
        "name": "pictures", "path": "", "enabled": True, "type": "STANDARD", "balancing_strategy": "SAMPLES",
        "balancing": float(config.batch_size * config.accumulation),
        "image": {"enable_crop_jitter": data.crop == "random", "enable_random_flip": data.flip},
        "text": tags,
    }  # fmt: skip


def _sample(config: TrainConfig, prompt: str) -> dict[str, Any]:
    preview = config.preview
    return {
        "enabled": True, "prompt": prompt, "seed": preview.seed, "diffusion_steps": preview.steps,
        "cfg_scale": preview.guidance_scale, "width": config.resolution_px, "height": config.resolution_px,
    }  # fmt: skip
