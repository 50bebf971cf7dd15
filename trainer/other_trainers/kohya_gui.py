"""kohya_ss, the graphical front-end of sd-scripts: its JSON, read as what it would hand to sd-scripts.

It hands on no zeros for what they switch off, makes `network_args` of fields, and reads text_encoder_lr = 0 beside a
unet_lr as training the UNet alone (kohya_gui/lora_gui.py).
"""

from __future__ import annotations

import math
from typing import Any

from trainer.errors import ConfigError
from trainer.other_trainers import bases, command_lines, documents, kohya_learning, sd_scripts, steps
from trainer.other_trainers.command_lines import Command
from trainer.other_trainers.contract import Tool
from trainer.other_trainers.documents import Document
from trainer.other_trainers.reading import Reading
from trainer.other_trainers.sd_scripts import NETWORK_ARGS, TRAINING
from trainer.other_trainers.tables import groups

VERSION = "July 2026 (45088f0)"
_OTHERS = ("hunyuan", "anima")  # families of the front-end that aren't trained here
# Its name for a key of sd-scripts where it has its own.
_RENAMED = {
    "optimizer": "optimizer_type", "max_resolution": "resolution", "sdxl_no_half_vae": "no_half_vae",
    "sd3_clip_l": "clip_l", "sd3_t5xxl": "t5xxl", "sd3_clip_l_dropout_rate": "clip_l_dropout_rate",
    "sd3_t5_dropout_rate": "t5_dropout_rate", "sd3_enable_scaled_pos_embed": "enable_scaled_pos_embed",
    "sd3_disable_mmap_load_safetensors": "disable_mmap_load_safetensors",
    "sd3_fused_backward_pass": "fused_backward_pass", "sd3_text_encoder_batch_size": "text_encoder_batch_size",
    "lumina_gemma2": "gemma2", "lumina_ae": "ae", "lumina_discrete_flow_shift": "discrete_flow_shift",
    "lumina_model_prediction_type": "model_prediction_type", "lumina_timestep_sampling": "timestep_sampling",
    "lumina_sigmoid_scale": "sigmoid_scale", "lumina_gemma2_max_token_length": "gemma2_max_token_length",
    "lumina_system_prompt": "system_prompt", "lumina_use_flash_attn": "use_flash_attn",
    "lumina_use_sage_attn": "use_sage_attn", "additional_parameters": "", "lora_network_weights": "network_weights",
}  # fmt: skip
# Zero or empty means that sd-scripts isn't told.
_UNSET_AT_ZERO = {
    "adaptive_noise_scale", "clip_skip", "ip_noise_gamma", "max_timestep", "min_timestep", "max_train_epochs",
    "max_train_steps", "min_snr_gamma", "multires_noise_iterations", "noise_offset", "sample_every_n_epochs",
    "sample_every_n_steps", "save_every_n_epochs", "save_every_n_steps", "save_last_n_steps", "save_last_n_epochs",
    "seed", "stop_text_encoder_training", "unet_lr", "v_pred_like_loss", "vae_batch_size", "scale_weight_norms",
}  # fmt: skip
_MODULES = {
    "Standard": "networks.lora", "Kohya LoCon": "networks.lora", "LoRA-FA": "networks.lora_fa",
    "Kohya DyLoRA": "networks.dylora", "Flux1": "networks.lora_flux", "Flux1 OFT": "networks.oft_flux",
    "Lumina": "networks.lora_lumina", "Kohya LoHa": "networks.loha", "Kohya LoKr": "networks.lokr",
    "Anima": "networks.lora_anima", "HunyuanImage-2.1": "networks.lora_hunyuan_image",
}  # fmt: skip
_ALGORITHMS = {
    "LyCORIS/LoCon": "locon", "LoCon": "locon", "LyCORIS/LoHa": "loha", "LyCORIS/LoKr": "lokr",
    "LyCORIS/Diag-OFT": "diag-oft", "LyCORIS/BOFT": "boft", "LyCORIS/DyLoRA": "dylora", "LyCORIS/GLoRA": "glora",
    "LyCORIS/iA3": "ia3", "LyCORIS/Native Fine-Tuning": "full",
}  # fmt: skip
_FAMILY_KEYS = ("sdxl", "flux1_checkbox", "sd3_checkbox", "lumina_checkbox")
_OF_LYCORIS = (
    "conv_dim", "conv_alpha", "dora_wd", "factor", "decompose_both", "use_tucker", "use_cp", "use_scalar", "train_norm",
    "bypass_mode", "constrain", "rescaled", "rank_dropout_scale", "train_on_input", "unit",
)  # fmt: skip
_OF_FLUX = (
    "train_blocks", "split_qkv", "train_double_block_indices", "train_single_block_indices", "img_attn_dim",
    "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim", "single_mod_dim",
    "in_dims", "train_t5xxl",
)  # fmt: skip
_ROWS = {
    **TRAINING,
    **NETWORK_ARGS,
    **{name: TRAINING[key] for name, key in _RENAMED.items() if key in TRAINING},
    **groups("kohya_gui")["front"],
}


def _recognises(document: Document) -> bool:
    values = document.values
    return document.kind == "json" and isinstance(values, dict) and "LoRA_type" in values and "network_dim" in values


def _read(reading: Reading) -> None:
    for word in _OTHERS:
        if any(reading.flag(key) for key in (f"{word}_checkbox", f"{word}_image_checkbox")):
            raise ConfigError(f"{bases.cannot_train(reading, word)}.")

    # From here on the recipe is what sd-scripts would be handed.
    derived, origin = _handed_on(reading)
    reading.seen, reading.origin = derived, origin
    family = _family(reading)
    bases.put_base(reading, family, "pretrained_model_name_or_path", family_keys=_FAMILY_KEYS)
    sd_scripts.read_training(reading, _put_steps)

    # What isn't handed on is reported too.
    for key in NETWORK_ARGS:
        if key in reading.values and f"network_args.{key}" not in derived:
            reading.no_effect(key, "this kind of LoRA doesn't read it, or it is off")


def _family(reading: Reading) -> str:
    values = reading.values
    flags = {"sdxl": "sdxl", "flux1_checkbox": "flux", "sd3_checkbox": "sd3", "lumina_checkbox": "lumina2"}
    chosen = [family for key, family in flags.items() if values.get(key) is True]
    if reading.asked_family:
        return reading.asked_family
    # Chroma is a kind of FLUX in the front-end.
    if chosen == ["flux"] and values.get("model_type") == "chroma":
        return "chroma"
    return chosen[0] if chosen else sd_scripts.family_of(reading)


def _handed_on(reading: Reading) -> tuple[dict[str, Any], dict[str, str]]:
    """What sd-scripts would be told, and which key of the front-end each comes from."""
    values = reading.values
    derived: dict[str, Any] = {}
    origin: dict[str, str] = {}

    def tell(key: str, value: Any, source: str) -> None:
        derived[key], origin[key] = value, source

    # Keys of the same or another name; those of a family that isn't chosen stay unread.
    family_prefixes = ("hunyuan_", "anima_", *(() if values.get("lumina_checkbox") is True else ("lumina_",)))
    for key, value in values.items():
        name = _RENAMED.get(key, key)
        is_unset = value in ("", None) or (name in _UNSET_AT_ZERO and value in (0, "0", 0.0))
        if name and not is_unset and not key.startswith(family_prefixes):
            tell(name, value, key)
    _tell_learning(reading, tell)
    _tell_noise(values, derived)
    for key, value in _network(values).items():
        source = key.rpartition(".")[2]
        tell(
            key,
            value,
            {"algo": "LoRA_type", "preset": "LyCORIS_preset", "network_module": "LoRA_type"}.get(source, source),
        )

    # Arguments as texts, and more of them as command line.
    if isinstance(values.get("optimizer_args"), str):
        for text in values["optimizer_args"][:2000].replace('"', "").split():
            name, _, argument = text.partition("=")
            tell(f"optimizer_args.{name}", argument, "optimizer_args")
    if isinstance(values.get("additional_parameters"), str):
        words = tuple(values["additional_parameters"][:4000].split())
        for key, value in command_lines.options(Command("", words)).items():
            tell(key, value, "additional_parameters")
    # Its parts stand for it.
    derived.pop("optimizer_args", None)
    return derived, origin


def _tell_learning(reading: Reading, tell: Any) -> None:
    values = reading.values
    text_rate, unet_rate = reading.number("text_encoder_lr"), reading.number("unet_lr")
    if text_rate == 0 and unet_rate != 0:
        tell("network_train_unet_only", True, "text_encoder_lr")
    elif unet_rate == 0 and text_rate != 0:
        tell("network_train_text_encoder_only", True, "unet_lr")
    if text_rate:
        rates = [text_rate, reading.number("t5xxl_lr")] if reading.number("t5xxl_lr") else text_rate
        tell("text_encoder_lr", rates, "text_encoder_lr")

    # Warm-up in percent of all steps.
    if reading.number("lr_warmup_steps") <= 0 and reading.number("lr_warmup") > 0:
        tell("lr_warmup_steps", min(0.99, reading.number("lr_warmup") / 100), "lr_warmup")
    if values.get("xformers") == "sdpa":
        tell("sdpa", True, "xformers")


def _tell_noise(values: dict[str, Any], derived: dict[str, Any]) -> None:
    """One kind of noise at a time."""
    kind = values.get("noise_offset_type", "Original")
    dropped = (
        ("multires_noise_iterations", "multires_noise_discount")
        if kind == "Original"
        else ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength")
    )
    for key in dropped:
        derived.pop(key, None)


def _put_steps(reading: Reading, repeats: int, batch_key: str, twice: bool) -> int:
    """Set the steps as the front-end counts them, over all epochs at once; a dataset config leaves it nothing to count.

    Returns steps of an epoch, as sd-scripts counts them.
    """
    an_epoch = kohya_learning.put_steps(reading, repeats, batch_key, twice)
    if reading.whole("max_train_steps") or reading.whole("max_train_epochs") or reading.has("dataset_config"):
        return an_epoch

    # Rounded up once for the whole run, not once for each epoch.
    pictures = (reading.pictures or steps.ASSUMED_PICTURES) * max(1, repeats) * (2 if twice else 1)
    a_step = reading.settings["batch_size"] * reading.settings["accumulation"]
    epochs = max(1, reading.whole("epoch", 1))
    source = "" if reading.pictures else ", as the recipe doesn't say how many pictures; give --pictures N"
    how = f"{epochs} epochs of {pictures} pictures, {a_step} a step{source}"
    steps.put_steps(reading, math.ceil(pictures / a_step * epochs), how, "epoch")
    return an_epoch


def _network(values: dict[str, Any]) -> dict[str, Any]:
    """`network_module` and its arguments, by the kind of LoRA."""
    kind = str(values.get("LoRA_type", "Standard"))[:60]
    told: dict[str, Any] = {}
    arguments: tuple[str, ...] = (
        "rank_dropout",
        "module_dropout",
        "loraplus_lr_ratio",
        "loraplus_unet_lr_ratio",
        "loraplus_text_encoder_lr_ratio",
    )
    if kind in _ALGORITHMS:
        told = {"network_module": "lycoris.kohya", "network_args.algo": _ALGORITHMS[kind]}
        told["network_args.preset"] = values.get("LyCORIS_preset") or "full"
        arguments += _OF_LYCORIS
    else:
        module = _MODULES.get(kind, "networks.lora")
        told["network_module"] = (
            "networks.lora_sd3" if kind == "Standard" and values.get("sd3_checkbox") is True else module
        )
        if kind == "Kohya LoCon":
            arguments += ("conv_dim", "conv_alpha")
        elif kind in ("Kohya LoHa", "Kohya LoKr"):
            arguments += ("factor", "conv_dim", "conv_alpha")
        elif kind == "Flux1":
            arguments += _OF_FLUX
    for name in arguments:
        if values.get(name) not in (None, "", False, 0, 0.0):
            told[f"network_args.{name}"] = values[name]
    return told


TOOL = Tool(
    name="kohya_ss", turn=20, title="kohya_ss (GUI)", version=VERSION, rows=_ROWS, recognises=_recognises,
    flatten=lambda document: documents.flatten(document.values), read=_read,
)  # fmt: skip
