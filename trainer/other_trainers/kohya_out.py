"""A preset as a training config of sd-scripts, in TOML; kohya_ss reads it as an advanced config too."""

from __future__ import annotations

from typing import Any

import tomli_w

from trainer.config import TrainConfig
from trainer.other_trainers import out_parts

_FAMILIES = {
    "sd": "train_network.py", "sdxl": "sdxl_train_network.py", "sd3": "sd3_train_network.py",
    "flux": "flux_train_network.py", "chroma": "flux_train_network.py", "lumina2": "lumina_train_network.py",
}  # fmt: skip
_MODULES = {
    "sd3": "networks.lora_sd3",
    "flux": "networks.lora_flux",
    "chroma": "networks.lora_flux",
    "lumina2": "networks.lora_lumina",
}
# Files that a family's script asks for beside the base; they tell the family too, whatever the network is.
_FILES = {
    "flux": ("ae", "clip_l", "t5xxl"), "sd3": ("clip_l", "clip_g", "t5xxl"), "chroma": ("ae", "t5xxl"),
    "lumina2": ("ae", "gemma2"),
}  # fmt: skip
_PRECISIONS = {"auto": "bf16", "float32": "no", "bfloat16": "bf16", "float16": "fp16"}
_SAVED = {"float32": "float", "bfloat16": "bf16", "float16": "fp16"}


def text(config: TrainConfig) -> str:
    """The TOML. Raises: ConfigError for a family that sd-scripts doesn't train."""
    script = out_parts.family_of(config, _FAMILIES, "sd-scripts")
    values = {
        **_base(config),
        **_network(config),
        **learning(config),
        **_objective(config),
        **_data(config),
        **running(config),
    }
    head = f"# Made by Velatura for sd-scripts 0.10.1: accelerate launch {script} --config_file THIS\n"
    return head + tomli_w.dumps(values)


def _base(config: TrainConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"pretrained_model_name_or_path": config.base, "output_name": "velatura"}
    if config.family == "chroma":
        values["model_type"] = "chroma"
    return values | {key: f"{key}.safetensors" for key in _FILES.get(config.family, ())}


def _network(config: TrainConfig) -> dict[str, Any]:
    adapter, family = config.adapter, config.family
    arguments: dict[str, Any] = {}
    module = _MODULES.get(family, "networks.lora")
    plain = adapter.method == "lora" and not getattr(adapter, "rank_stabilised", False)
    frozen = out_parts.FROZEN.get(family, ())

    # networks.lora where it adapts the same layers; LyCORIS for whatever else a UNet or a method has.
    if family in out_parts.FROZEN and plain and adapter.targets == "all" and out_parts.other_rates(config) == ():
        arguments |= {"conv_dim": adapter.rank, "conv_alpha": adapter.alpha}
    elif not (family in out_parts.FROZEN and plain and out_parts.other_rates(config) == frozen) and (
        family in out_parts.FROZEN or not plain
    ):
        module = "lycoris.kohya"
        presets = {"all": "full", "linear": "full-lin", "attention": "attn-only"}
        arguments["preset"] = presets.get(adapter.targets, "attn-mlp")
        arguments["algo"] = {"dora": "lora", "oft": "diag-oft"}.get(adapter.method, adapter.method)
        if adapter.method == "dora":
            arguments["dora_wd"] = True
        if getattr(adapter, "rank_stabilised", False):
            arguments["rs_lora"] = True
        if adapter.method == "lokr":
            arguments |= {
                "factor": getattr(adapter, "factor", -1),
                "decompose_both": getattr(adapter, "decompose_both", False),
            }
        if adapter.method in ("loha", "lokr"):
            arguments["module_dropout"] = getattr(adapter, "dropout", 0.0)
        if arguments["preset"] == "full" and adapter.method != "oft":
            arguments |= {"conv_dim": adapter.rank, "conv_alpha": adapter.alpha}

    # Transformers: query, key and value apart, as here, and the rank 0 for what isn't adapted.
    if family in ("flux", "sd3", "chroma"):
        arguments["split_qkv"] = True
    if family == "flux" and adapter.targets in ("attention", "attention-ff"):
        arguments |= {"img_mod_dim": 0, "txt_mod_dim": 0, "single_mod_dim": 0}
    if family == "sd3" and adapter.targets in ("attention", "attention-ff"):
        arguments |= {"x_mod_dim": 0, "context_mod_dim": 0}
        arguments |= {"x_mlp_dim": 0, "context_mlp_dim": 0} if adapter.targets == "attention" else {}
    if config.optimizer.loraplus_ratio != 1:
        arguments["loraplus_lr_ratio"] = config.optimizer.loraplus_ratio

    # A rotation has a block size instead of rank and alpha.
    values: dict[str, Any] = {
        "network_module": module,
        "network_args": [f"{key}={value}" for key, value in arguments.items()],
    }
    if adapter.method == "oft":
        return values | {"network_dim": getattr(adapter, "block_size", 32)}
    values |= {"network_dim": adapter.rank, "network_alpha": adapter.alpha}
    return values | (
        {"network_dropout": getattr(adapter, "dropout", 0.0)} if adapter.method in ("lora", "dora") else {}
    )


def learning(config: TrainConfig) -> dict[str, Any]:
    """Rates, optimizer, schedule and steps, which musubi-tuner says alike."""
    optimizer = config.optimizer
    rates = list(out_parts.text_rates(config).values())
    values: dict[str, Any] = {"learning_rate": config.learning_rate, "unet_lr": config.learning_rate}
    values |= {"text_encoder_lr": rates} if rates else {"network_train_unet_only": True}

    # The optimizer: adafactor takes the rate that is set.
    name = out_parts.OPTIMIZERS.get(optimizer.name, f"pytorch_optimizer.{optimizer.other}")
    arguments = out_parts.optimizer_arguments(config, (*out_parts.OPTIMIZERS, optimizer.other))
    if optimizer.name == "adafactor":
        arguments |= dict.fromkeys(("relative_step", "scale_parameter", "warmup_init"), "False")

    # The schedule.
    schedules = {"linear": "linear", "cosine": "cosine", "restarts": "cosine_with_restarts", "rex": "cosine"}
    constant = "constant_with_warmup" if optimizer.warmup_steps else "constant"
    return values | {
        "optimizer_type": name,
        "optimizer_args": [f"{key}={value}" for key, value in arguments.items()],
        "lr_scheduler": schedules.get(optimizer.schedule, constant),
        "lr_scheduler_num_cycles": optimizer.cycles if optimizer.schedule == "restarts" else 1,
        "lr_warmup_steps": optimizer.warmup_steps,
        "max_grad_norm": 0.0 if optimizer.max_grad_norm >= 1e9 else optimizer.max_grad_norm,
        "max_train_steps": config.max_steps,
        "train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        **({"scale_weight_norms": optimizer.max_weight_norm} if optimizer.max_weight_norm else {}),
    }


def _objective(config: TrainConfig) -> dict[str, Any]:
    objective = config.objective
    values: dict[str, Any] = {"loss_type": objective.loss}
    if objective.loss != "l2":
        values |= {"huber_c": objective.huber_delta, "huber_schedule": "constant"}
    if objective.input_perturbation:
        values["ip_noise_gamma"] = objective.input_perturbation

    # Diffusion models. The first of its levels of noise is as fine as the noise, so it has one more.
    if config.family in ("sd", "sdxl"):
        if objective.weighting == "min-snr":
            values["min_snr_gamma"] = objective.min_snr_gamma
        elif objective.weighting == "debiased":
            values["debiased_estimation_loss"] = True
        if objective.noise_offset:
            values["noise_offset"] = objective.noise_offset
        if objective.multires_noise:
            values |= {
                "multires_noise_iterations": objective.multires_noise + 1,
                "multires_noise_discount": objective.multires_discount,
            }

    # The range, in thousandths; the scripts of other families read none.
    if config.family in ("sd", "sdxl", "sd3"):
        if objective.timesteps_low:
            values["min_timestep"] = round(objective.timesteps_low * 1000)
        if objective.timesteps_high < 1:
            values["max_timestep"] = round(objective.timesteps_high * 1000)
    return values | (flow(config) if config.family not in ("sd", "sdxl") else {})


def flow(config: TrainConfig) -> dict[str, Any]:
    """Timesteps of a flow model."""
    objective = config.objective
    density: dict[str, Any] = {"weighting_scheme": "uniform"}
    mean = objective.timesteps_mean if objective.timesteps == "logit-normal" else 0.0
    std = objective.timesteps_std if objective.timesteps == "logit-normal" else 1.0

    # The density. SD3's script draws noise levels, the others places in a list that falls.
    if objective.timesteps in ("logit-normal", "sigmoid"):
        turned = mean if config.family == "sd3" else -mean
        density = {"weighting_scheme": "logit_normal", "logit_mean": turned, "logit_std": std}
    elif objective.timesteps == "mode":
        density = {"weighting_scheme": "mode", "mode_scale": objective.timesteps_mode_scale}

    # The shift.
    factor = objective.shift_factor if objective.shift == "fixed" else 1.0
    if config.family == "sd3":
        return density | {"training_shift": factor}
    values: dict[str, Any] = {"model_prediction_type": "raw"}
    if config.family in ("flux", "chroma"):  # one script for both; Lumina's has no such argument
        values["guidance_scale"] = 1.0

    # A sampling of its own where one fits; a density otherwise, which `sigma` reads.
    if objective.timesteps in ("logit-normal", "sigmoid") and mean == 0:
        kind = {"none": "sigmoid", "fixed": "shift", "resolution": "flux_shift"}[objective.shift]
        return values | {"timestep_sampling": kind, "sigmoid_scale": std, "discrete_flow_shift": factor}
    if objective.timesteps == "uniform" and objective.shift == "none":
        return values | {"timestep_sampling": "uniform"}
    return values | density | {"timestep_sampling": "sigma", "discrete_flow_shift": factor}


def _data(config: TrainConfig) -> dict[str, Any]:
    data, captions, size = config.data, config.captions, config.resolution_px
    values: dict[str, Any] = {
        "resolution": f"{size},{size}",
        "enable_bucket": data.buckets,
        "caption_extension": ".txt",
        "caption_dropout_rate": data.caption_dropout,
        "flip_aug": data.flip,
        "random_crop": data.crop == "random",
    }

    # Buckets are bounded by sides: those of the widest ratio at this area.
    if data.buckets:
        smallest = round(size / data.max_aspect_ratio**0.5)
        values |= {
            "bucket_reso_steps": data.bucket_step_px or 64,
            "min_bucket_reso": smallest,
            "max_bucket_reso": round(smallest * data.max_aspect_ratio),
        }

    # Captions.
    if captions.shuffle_tags or captions.tag_dropout:
        values |= {"shuffle_caption": captions.shuffle_tags, "caption_tag_dropout_rate": captions.tag_dropout}
        values |= {"keep_tokens": captions.keep_tags, "caption_separator": captions.separator}
    if captions.prefix:
        values["caption_prefix"] = captions.prefix
    if captions.suffix:
        values["caption_suffix"] = captions.suffix
    if captions.wildcards and captions.lines == "choose":
        values["enable_wildcard"] = True
    if captions.long == "chunk":
        # Three chunks of 75 tokens.
        values["max_token_length"] = 225
    if data.mask == "alpha":
        values["alpha_mask"] = True
    return values


def running(config: TrainConfig) -> dict[str, Any]:
    """Seed, precision, memory, saves and previews."""
    memory = config.memory
    values: dict[str, Any] = {
        "seed": config.seed,
        "mixed_precision": _PRECISIONS[config.dtype],
        "save_precision": _SAVED[config.save_dtype],
        "gradient_checkpointing": memory.gradient_checkpointing,
        "save_every_n_steps": config.checkpoint_every_steps,
        "validate_every_n_steps": config.validate_every_steps,
        "sdpa": True,
        "cache_latents": True,
    }
    if config.keep_checkpoints > 1:
        # It keeps by age in steps, not by number.
        values["save_last_n_steps"] = (config.keep_checkpoints - 1) * config.checkpoint_every_steps
    if config.preview_every_steps:
        values["sample_every_n_steps"] = config.preview_every_steps
    if memory.quantise == "fp8":
        values["fp8_base"] = True
    if memory.offload == "blocks":
        values["blocks_to_swap"] = 18
    return values
