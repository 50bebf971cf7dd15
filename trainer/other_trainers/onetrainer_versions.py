"""OneTrainer's configs of older versions under today's names, after the migrations of its own TrainConfig.

A config says its version, 11 as of 23df383. One without it is a part of a config, such as the presets that OneTrainer
brings: what only an old version can have is then told by its name.
"""

from __future__ import annotations

from typing import Any

NOW, CONCEPT_NOW = 11, 2
DENOISERS = ("unet", "transformer")
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
# Old name -> today's, of the migrations 0, 1 and 7.
RENAMED = {
    **{f"train_{part}": f"{part}.train" for part in ("unet", "prior", *_TEXT_ENCODERS)},
    **{f"train_{part}_epochs": f"{part}.stop_training_after" for part in ("unet", "prior", *_TEXT_ENCODERS)},
    **{f"{part}_learning_rate": f"{part}.learning_rate" for part in ("unet", "prior", *_TEXT_ENCODERS)},
    **{f"{part}_weight_dtype": f"{part}.weight_dtype" for part in (
        "unet", "prior", *_TEXT_ENCODERS, "vae", "effnet_encoder", "decoder", "decoder_text_encoder", "decoder_vqgan")},
    **{f"{part}_model_name": f"{part}.model_name" for part in ("prior", "vae", "effnet_encoder", "decoder")},
    **{f"optimizer_{name}": f"optimizer.{name}"
       for name in ("weight_decay", "beta1", "beta2", "eps", "d_coef", "fused")},
    "optimizer": "optimizer.optimizer",
    "lora_layers": "layer_filter",
    "lora_layer_preset": "layer_filter_preset",
    "lora_layers_regex": "layer_filter_regex",
    "enable_async_offloading": "async_offloading",
}  # fmt: skip


def as_today(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values with their keys of today, and which key of the config each of those comes from that it lacks."""
    seen, origin = dict(values), {}

    def move(old: str, new: str, value: Any) -> None:
        seen[new], origin[new] = value, old

    for old, new in RENAMED.items():
        if old in values:
            move(old, new, "full" if old == "lora_layer_preset" and values[old] is None else values[old])
    version = values.get("__version")
    if not isinstance(version, int):
        version = None

    # Migration 2: the weighting by SNR had a key of its own.
    gamma = values.get("min_snr_gamma")
    if isinstance(gamma, int | float) and gamma > 0:
        move("min_snr_gamma", "loss_weight_fn", "MIN_SNR_GAMMA")
        move("min_snr_gamma", "loss_weight_strength", gamma)

    # Migration 3: a weight other than 0 was the choice of a density.
    has_weight = "noising_weight" in values
    is_old = version <= 3 if version is not None else has_weight and "timestep_distribution" not in values
    if is_old:
        chosen = "SIGMOID" if values.get("noising_weight") else "UNIFORM"
        move("noising_weight" if has_weight else "timestep_distribution", "timestep_distribution", chosen)

    # Migration 8: every transformer was called prior.
    is_old = version <= 8 if version is not None else not any(key.startswith("transformer.") for key in values)
    for key in [key for key in seen if is_old and key.startswith("prior.")]:
        move(origin.get(key, key), f"transformer.{key.removeprefix('prior.')}", seen[key])

    # Migrations 4, 9 and 10: one setting for all parts.
    for part in DENOISERS:
        if (version is None or version <= 9) and seen.get(f"{part}.weight_dtype") == "NONE":
            move("weight_dtype", f"{part}.weight_dtype", values.get("weight_dtype", "FLOAT_32"))
        if (checkpointing := values.get("gradient_checkpointing")) is not None:
            move("gradient_checkpointing", f"{part}.gradient_checkpointing", checkpointing not in (False, "OFF"))
        if checkpointing == "CPU_OFFLOADED":
            activations = values.get("enable_activation_offloading", True)
            move("enable_activation_offloading", f"{part}.activation_offloading", activations)
            move("layer_offload_fraction", f"{part}.offload_fraction", values.get("layer_offload_fraction", 0.0))
    return seen, origin
