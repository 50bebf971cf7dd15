"""A preset as a config of diffusion-pipe, in TOML, and its dataset config beside it."""

from __future__ import annotations

from typing import Any

import tomli_w

from trainer.config import TrainConfig
from trainer.other_trainers import out_parts

_TYPES = {
    "sdxl": "sdxl", "flux": "flux", "flux2": "flux2", "chroma": "chroma", "hidream": "hidream", "sd3": "sd3",
    "qwen": "qwen_image", "lumina2": "lumina_2", "auraflow": "auraflow", "zimage": "z_image",
}  # fmt: skip
_OPTIMIZERS = {
    "adamw": "adamw_optimi", "adamw8bit": "AdamW8bitKahan", "prodigy": "Prodigy", "lion": "Lion",
    "adafactor": "AdaFactor", "schedule-free": "ScheduleFreeAdamW",
}  # fmt: skip
_DTYPES = {"auto": "bfloat16", "float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
_FILES = {
    "sdxl": ("checkpoint_path",), "chroma": ("transformer_path", "diffusers_path"),
    "hidream": ("diffusers_path", "llama3_path"), "lumina2": ("transformer_path", "llm_path", "vae_path"),
    "auraflow": ("transformer_path", "text_encoder_path", "vae_path"),
}  # fmt: skip
_ENCODERS = {"flux2": "flux2", "zimage": "lumina2"}  # families whose text encoders are said with their kind
_WEIGHTS = {"fp8": "float8", "nf4": "nf4"}
_ENOUGH = 1_000_000  # epochs; the steps end it, and a schedule, which goes by epochs, falls no further there


def texts(config: TrainConfig, dataset: str) -> tuple[str, str]:
    """The TOML, and that of the dataset config, which has this name. Raises: ConfigError for another family."""
    kind = out_parts.family_of(config, _TYPES, "diffusion-pipe")
    optimizer = config.optimizer
    values: dict[str, Any] = {
        "output_dir": "output", "dataset": dataset, "epochs": _ENOUGH, "max_steps": config.max_steps,
        "micro_batch_size_per_gpu": config.batch_size, "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": 0.0 if optimizer.max_grad_norm >= 1e9 else optimizer.max_grad_norm,
        "warmup_steps": optimizer.warmup_steps, "lr_scheduler": _schedule(optimizer.schedule),
        "uncond_fraction": config.data.caption_dropout, "save_dtype": _DTYPES[config.save_dtype],
        "save_every_n_steps": config.checkpoint_every_steps, "eval_every_n_steps": config.validate_every_steps,
        "activation_checkpointing": config.memory.gradient_checkpointing,
    }  # fmt: skip
    if config.memory.offload == "blocks":
        values["blocks_to_swap"] = 18
    if config.objective.loss == "huber":
        values["pseudo_huber_c"] = config.objective.huber_delta
    values |= {"model": _model(config, kind), "adapter": _adapter(config), "optimizer": _optimizer(config)}
    head = "# Made by Velatura for diffusion-pipe: deepspeed --num_gpus=1 train.py --deepspeed --config THIS\n"
    return head + tomli_w.dumps(values), tomli_w.dumps(_dataset(config))


def _schedule(name: str) -> str:
    return name if name in ("constant", "linear", "cosine") else "cosine"


def _model(config: TrainConfig, kind: str) -> dict[str, Any]:
    objective = config.objective
    values: dict[str, Any] = {"type": kind, **_files(config), "dtype": _DTYPES[config.dtype]}
    if config.family == "sdxl":
        rates = out_parts.text_rates(config)
        values["unet_lr"] = config.learning_rate
        for number, part in ((1, "text_encoder"), (2, "text_encoder_2")):
            values[f"text_encoder_{number}_lr"] = rates.get(part, 0.0)
        if objective.weighting == "min-snr":
            values["min_snr_gamma"] = objective.min_snr_gamma
        elif objective.weighting == "debiased":
            values["debiased_estimation_loss"] = True
        return values

    # Flow models: timesteps, shift and range.
    values["timestep_sample_method"] = "uniform" if objective.timesteps == "uniform" else "logit_normal"
    if objective.timesteps == "logit-normal":
        values["sigmoid_scale"] = objective.timesteps_std
    if objective.shift == "fixed":
        values["shift"] = objective.shift_factor
    elif objective.shift == "resolution":
        values["lumina_shift" if config.family == "lumina2" else "flux_shift"] = True
    values |= {"min_t": objective.timesteps_low, "max_t": objective.timesteps_high}

    # A base in fewer bits; its key goes with the key that names the base (see `_files`).
    if config.memory.quantise in _WEIGHTS:
        is_new = config.family in _ENCODERS
        values["diffusion_model_dtype" if is_new else "transformer_dtype"] = _WEIGHTS[config.memory.quantise]
    return values


def _files(config: TrainConfig) -> dict[str, Any]:
    """The base and what the tool asks for beside it, by family as in its supported_models.md."""
    if config.family in _ENCODERS:
        texts = [{"path": "/path/to/text_encoder.safetensors", "type": _ENCODERS[config.family]}]
        return {"diffusion_model": config.base, "vae": "/path/to/vae.safetensors", "text_encoders": texts}
    base, *others = _FILES.get(config.family, ("diffusers_path",))
    return {base: config.base} | {key: f"/path/to/{key.removesuffix('_path')}" for key in others}


def _adapter(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    values: dict[str, Any] = {
        "type": "lokr" if adapter.method == "lokr" else "lora", "rank": getattr(adapter, "rank", 16),
        "dtype": "float32", "dropout": getattr(adapter, "dropout", 0.0),
    }  # fmt: skip
    if adapter.method == "lokr":
        values["decompose_factor"] = getattr(adapter, "factor", -1)
    return values


def _optimizer(config: TrainConfig) -> dict[str, Any]:
    name = _OPTIMIZERS.get(config.optimizer.name, "adamw_optimi")
    told = out_parts.optimizer_values(config, _OPTIMIZERS)
    if name == "adamw_optimi":  # whose own are others
        told = {"betas": [0.9, 0.999], "eps": 1e-8, **told}
    if name == "AdaFactor":
        # The rate that is set, not one by step and by size of the weights.
        told |= {"relative_step": False, "scale_parameter": False}
    return {"type": name, "lr": config.learning_rate, **told}


def _dataset(config: TrainConfig) -> dict[str, Any]:
    data, captions = config.data, config.captions
    values: dict[str, Any] = {
        "resolutions": sorted({config.resolution_px, *data.more_resolutions_px}), "enable_ar_bucket": data.buckets,
    }  # fmt: skip
    if data.buckets:
        values |= {"min_ar": round(1 / data.max_aspect_ratio, 6), "max_ar": data.max_aspect_ratio, "num_ar_buckets": 7}
    pictures: dict[str, Any] = {"path": "/path/to/pictures", "num_repeats": 1}
    if captions.prefix:
        pictures["caption_prefix"] = captions.prefix
    if captions.shuffle_tags:
        pictures |= {"cache_shuffle_num": captions.variants, "cache_shuffle_delimiter": f"{captions.separator} "}
    return values | {"directory": [pictures]}
