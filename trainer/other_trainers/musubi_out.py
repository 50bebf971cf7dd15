"""A preset as a training config of musubi-tuner, in TOML, and its dataset config beside it."""

from __future__ import annotations

import re
from typing import Any

import tomli_w

from trainer.config import TrainConfig
from trainer.other_trainers import kohya_out, out_parts
from trainer.other_trainers.musubi import REFINERS, WITH_REFINERS

_SCRIPTS = {
    "qwen": "qwen_image_train_network.py", "zimage": "zimage_train_network.py", "flux2": "flux_2_train_network.py",
    "flux2dev": "flux_2_train_network.py",
}  # fmt: skip
_MODULES = {
    "qwen": "networks.lora_qwen_image", "zimage": "networks.lora_zimage", "flux2": "networks.lora_flux_2",
    "flux2dev": "networks.lora_flux_2",
}  # fmt: skip
_VERSIONS = {"flux2": "klein-base-4b", "flux2dev": "dev"}
_SAME_NAMES = ("qwen", "zimage")  # families whose layers are called there as here
_BY_SIZE = {"qwen": "qwen_shift"}  # FLUX.2's has a name of its own, Z-Image has none
# Without a package in front it takes a name for one of torch's own.
_CLASSES = {
    "Lion": "lion_pytorch.Lion", "Prodigy": "prodigyopt.Prodigy", "AdamWScheduleFree": "schedulefree.AdamWScheduleFree",
}  # fmt: skip
_ABSENT = ("unet_lr", "network_train_unet_only", "model_prediction_type", "guidance_scale", "loss_type")


def texts(config: TrainConfig, dataset: str) -> tuple[str, str]:
    """The TOML, and that of the dataset config, which has this name. Raises: ConfigError for another family."""
    script = out_parts.family_of(config, _SCRIPTS, "musubi-tuner")
    values = {
        "dit": config.base, "dataset_config": dataset, "output_name": "velatura", **_network(config),
        **kohya_out.learning(config), **_timesteps(config), **_running(config),
    }  # fmt: skip
    if config.family in _VERSIONS:
        values["model_version"] = _VERSIONS[config.family]
    values["optimizer_type"] = _CLASSES.get(values["optimizer_type"], values["optimizer_type"])
    del values["train_batch_size"]  # the dataset config says it
    said = {key: value for key, value in values.items() if key not in _ABSENT}
    head = f"# Made by Velatura for musubi-tuner: accelerate launch {script} --config_file THIS\n"
    return head + tomli_w.dumps(said), tomli_w.dumps(_dataset(config))


def _network(config: TrainConfig) -> dict[str, Any]:
    adapter = config.adapter
    module = _MODULES[config.family] if adapter.method == "lora" else f"networks.{adapter.method}"
    values: dict[str, Any] = {
        "network_module": module,
        "network_dim": getattr(adapter, "rank", 16),
        "network_alpha": getattr(adapter, "alpha", 16.0),
        "network_dropout": getattr(adapter, "dropout", 0.0),
    }
    arguments = []
    if config.optimizer.loraplus_ratio != 1:
        arguments.append(f"loraplus_lr_ratio={config.optimizer.loraplus_ratio}")
    without = [text for text in getattr(adapter, "without_layers", ()) if text != REFINERS]
    # There, the refiners are left out unless a pattern takes them in.
    if config.family == "zimage" and REFINERS not in getattr(adapter, "without_layers", ()):
        arguments.append(f"include_patterns={[WITH_REFINERS]!r}")
    if without and config.family in _SAME_NAMES:
        patterns = [".*".join(["", *map(re.escape, text.split("*")), ""]) for text in without]
        arguments.append(f"exclude_patterns={patterns!r}")
    return values | ({"network_args": arguments} if arguments else {})


def _timesteps(config: TrainConfig) -> dict[str, Any]:
    values = kohya_out.flow(config)
    if values.get("weighting_scheme") == "uniform":  # its parser has the other name for it
        values["weighting_scheme"] = "none"
    if values.get("timestep_sampling") == "flux_shift":
        values["timestep_sampling"] = _BY_SIZE.get(config.family, "flux2_shift")
    return values


def _running(config: TrainConfig) -> dict[str, Any]:
    values = kohya_out.running(config)
    for absent in ("cache_latents", "validate_every_n_steps"):
        values.pop(absent, None)
    if values.pop("fp8_base", False):
        values |= {"fp8_base": True, "fp8_scaled": True}
    return values


def _dataset(config: TrainConfig) -> dict[str, Any]:
    size = config.resolution_px
    general = {
        "resolution": [size, size], "caption_extension": ".txt", "batch_size": config.batch_size, "num_repeats": 1,
        "enable_bucket": config.data.buckets, "bucket_no_upscale": config.data.max_upscale <= 1,
    }  # fmt: skip
    pictures = {"image_directory": "/path/to/pictures", "cache_directory": "/path/to/pictures/cache"}
    return {"general": general, "datasets": [pictures]}
