"""What a config of OneTrainer trains and how it learns: adapter, layers, rates, optimizer, loss and timesteps."""

from __future__ import annotations

from typing import Any

from trainer.other_trainers import bases, layer_texts, learning
from trainer.other_trainers.reading import Reading, shown

# What its presets of layers and its filters name -> our targets, by the parts of a path that they look for.
_ATTENTION = ({"attn"}, {"attn1"}, {"attn1", "attn2"}, {"attention"})
_ARGUMENTS = (
    "weight_decay", "betas", "beta1", "eps", "clip_threshold", "decay_rate", "d0", "d_coef", "growth_rate",
    "safeguard_warmup", "use_bias_correction", "decouple", "slice_p", "amsgrad", "weight_lr_power", "r", "beta3",
)  # fmt: skip
_FEED_FORWARD = {"ff", "ff.net", "ff.", "proj_mlp", "img_mlp", "txt_mlp", "feed_forward", "ff_i", "mlp"}


# What is trained.


def put_adapter(reading: Reading) -> None:
    method = reading.text("training_method", "FINE_TUNE")
    if method != "LORA":
        reading.cannot("training_method", f"{shown(method)} is not trained here; a LoRA with its usual settings is")
    kind = reading.text("peft_type", "LORA")
    ours = {
        "LORA": "dora" if reading.flag("lora_decompose") else "lora",
        "LOHA": "loha",
        "LOKR": "lokr",
        "OFT_2": "oft",
    }.get(kind)
    if ours is None:
        reading.cannot("peft_type", "no such method here; plain LoRA is set")
    method = ours or "lora"
    reading.put(
        "adapter.method", method, "peft_type", "training_method", *(["lora_decompose"] if method == "dora" else [])
    )
    if method == "oft":
        reading.put("adapter.block_size", reading.whole("oft_block_size", 32), "oft_block_size")
        return

    # Rank and alpha.
    rank_key = "lokr_dim" if method == "lokr" else "lora_rank"
    rank, alpha = max(1, reading.whole(rank_key, 16)), reading.number("lora_alpha", 1.0)
    if method == "lokr" and reading.flag("lokr_full_matrix"):
        rank, alpha = 256, 256.0
        reading.translated(
            "lokr_full_matrix", "adapter.rank = 256", "the whole matrix, which is as much as this rank is here"
        )
    reading.put("adapter.rank", rank, rank_key)
    reading.put("adapter.alpha", alpha, "lora_alpha")
    reading.put("adapter.dropout", reading.number("dropout_probability"), "dropout_probability")
    if method == "lokr":
        reading.put("adapter.factor", reading.whole("lokr_decompose_factor", -1), "lokr_decompose_factor")
        reading.put("adapter.decompose_both", reading.flag("lokr_decompose_both"), "lokr_decompose_both")


def put_layers(reading: Reading) -> None:
    """Targets of a preset of layers, or of a filter: parts of a path that are looked for."""
    family, preset = reading.settings["family"], reading.text("layer_filter_preset", "full")
    if reading.flag("layer_filter_regex") and preset not in ("attn-only", "attn-mlp", "blocks", "full"):
        _put_patterns(reading)
        return
    # A filter is parts of paths; those that mean attention, or feed-forward as well, are targets here.
    words = {word.strip() for word in reading.text("layer_filter").lower().split(",")[:32] if word.strip()}
    targets = ""
    if preset == "attn-only" or (preset not in ("attn-mlp", "blocks", "full") and words in _ATTENTION):
        targets = "attention"
    elif (
        preset == "attn-mlp"
        and family not in ("sd", "sdxl")
        or preset not in ("attn-mlp", "blocks", "full")
        and words
        and words - _FEED_FORWARD in _ATTENTION
    ):
        targets = "attention-ff"
    keys = ("layer_filter_preset", "layer_filter")
    if targets:
        reading.put("adapter.targets", targets, *keys)
    elif preset == "attn-mlp" or words == {"attentions"}:  # of a UNet: all that lies in its transformers
        reading.put("adapter.targets", "linear" if family == "sdxl" else "all", *keys)
        reading.put(
            "optimizer.block_rates", ["resnets.=0"] if family == "sdxl" else ["resnets.=0", "samplers.=0"], *keys
        )
    elif words and preset not in ("blocks", "full"):
        given = [word.strip() for word in reading.text("layer_filter").split(",")[:32] if word.strip()]
        reading.put("adapter.targets", "all", *keys)
        reading.put("adapter.only_layers", given, "layer_filter")
    elif preset == "blocks":
        reading.put("adapter.targets", "linear", *keys)
    else:
        reading.put(
            "adapter.targets", "all", *keys, why="all layers; those outside the blocks as far as the family has them"
        )


def _put_patterns(reading: Reading) -> None:
    """Layers whose paths one of several regular expressions is found in."""
    texts, strange = list[str](), ""
    for pattern in reading.text("layer_filter").split(",")[:32]:
        if (found := layer_texts.of_pattern(pattern)) is None:
            strange = strange or pattern
        else:
            texts += found
    keys = ("layer_filter_preset", "layer_filter", "layer_filter_regex")
    reading.put("adapter.targets", "all", *keys)
    if strange or not texts:
        reading.cannot(
            "layer_filter",
            f"{shown(strange)} is more than texts, numbers and alternatives; say it by texts of a path, * for any",
        )
    else:
        reading.put("adapter.only_layers", texts[: layer_texts.MOST], *keys)


def put_rates(reading: Reading) -> None:
    # The learning rate grows with the root of what a step sees, if asked for.
    batch, accumulation = reading.settings["batch_size"], reading.settings["accumulation"]
    scaler = reading.text("learning_rate_scaler", "NONE")
    scale = {"BATCH": batch, "GLOBAL_BATCH": batch, "GRADIENT_ACCUMULATION": accumulation, "BOTH": batch * accumulation,
             "GLOBAL_BOTH": batch * accumulation}.get(scaler, 1) ** 0.5  # fmt: skip
    if scale != 1:
        reading.translated("learning_rate_scaler", "learning_rate", f"rates are multiplied by {scale:g}")

    # A part's own rate, else the main rate.
    main = reading.number("learning_rate", 3e-6)
    unet = "unet" if reading.settings["family"] in ("sd", "sdxl") else "transformer"
    denoiser = reading.number(f"{unet}.learning_rate", main) * scale if reading.flag(f"{unet}.train", True) else 0.0
    text: dict[str, float] = {}
    for part in ("text_encoder", "text_encoder_2")[
        : {"sd": 1, "sdxl": 2, "sd3": 2, "flux": 1}.get(reading.settings["family"], 0)
    ]:
        trained = reading.flag(f"{part}.train", True)
        text[part] = reading.number(f"{part}.learning_rate", main) * scale if trained else 0.0
        _stops(reading, part, trained)
    main_key = f"{unet}.learning_rate" if reading.has(f"{unet}.learning_rate") else "learning_rate"
    text_keys = tuple(f"{part}.{key}" for part in text for key in ("train", "learning_rate"))
    learning.put_part_rates(reading, denoiser, text, (main_key,), text_keys)

    # Encoders that stay as they are here.
    for part in ("text_encoder_2", "text_encoder_3", "text_encoder_4", "text_encoder"):
        if part not in text and reading.flag(f"{part}.train"):
            reading.cannot(f"{part}.train", f"this text encoder of {reading.settings['family']} isn't adapted here")


def _stops(reading: Reading, part: str, trained: bool) -> None:
    """A part that stops before the end is trained to the end here."""
    unit = reading.text(f"{part}.stop_training_after_unit", "EPOCH")
    after = reading.whole(f"{part}.stop_training_after", 30)
    if trained and unit == "EPOCH" and 0 < after < reading.whole("epochs", 100):
        reading.cannot(f"{part}.stop_training_after", "every part is trained to the end here")
        reading.notes.append(f"{part} stops after {after} epochs there; here it is trained to the end")
    else:
        for key in ("stop_training_after", "stop_training_after_unit"):
            reading.no_effect(f"{part}.{key}", "it is trained to the end, as here" if trained else "it isn't trained")


def put_optimizer(reading: Reading) -> None:
    # What is unset or off is left to the class.
    options: dict[str, Any] = {}
    for key, value in reading.seen.items():
        name = key.removeprefix("optimizer.")
        if (
            key.startswith("optimizer.")
            and not any(value is off for off in (None, False))
            and value != ""
            and "." not in name
        ):
            options[name] = value
    name = str(options.pop("optimizer", "ADAMW"))[:60]

    # Betas stand apart there, and adafactor has two epsilons.
    betas = [options.pop(f"beta{number}", None) for number in (1, 2)]
    if all(isinstance(beta, int | float) for beta in betas):
        options["betas"] = betas
    elif learning.spelled(name) == "adafactor" and isinstance(betas[0], int | float):
        options["beta1"] = betas[0]
    if learning.spelled(name) == "adafactor":
        options.pop("eps", None)
        options.pop("eps2", None)
    told = {key: value for key, value in options.items() if key in _ARGUMENTS}
    learning.put_optimizer(reading, name, told, "optimizer.optimizer", "optimizer.{}")
    for key in ("beta1", "beta2"):
        if "betas" in told and reading.settings.get("optimizer.options"):
            reading.translated(f"optimizer.{key}", f"optimizer.options = betas={tuple(told['betas'])}")

    # The schedule.
    schedule = reading.text("learning_rate_scheduler", "CONSTANT")
    if schedule == "COSINE_WITH_RESTARTS":
        reading.cannot("learning_rate_scheduler", "its cosine rises again as slowly as it falls; cosine is set")
        reading.put("optimizer.schedule", "cosine")
    else:
        learning.put_schedule(reading, schedule, "learning_rate_scheduler", "learning_rate_cycles")
    if schedule == "REX":
        reading.translated(
            "learning_rate_scheduler",
            "optimizer.schedule = rex",
            "theirs stays high a little longer: d = 0.9, ours 0.5",
        )

    # Warm-up, in batches there, and clipping.
    warmup = reading.number("learning_rate_warmup_steps", 200.0)
    warmup = int(warmup / reading.settings["accumulation"]) if warmup > 1 else warmup
    learning.put_warmup(reading, warmup, reading.settings["max_steps"], "learning_rate_warmup_steps")
    learning.put_clip(reading, "clip_grad_norm")

    # A mean that is taken every few steps forgets as fast as a mean with its root at each step.
    if reading.text("ema", "OFF") != "OFF":
        decay, interval = reading.number("ema_decay", 0.999), max(1, reading.whole("ema_update_step_interval", 5))
        if 0 < decay < 1:
            reading.put(
                "optimizer.ema_decay", round(decay ** (1 / interval), 9), "ema", "ema_decay", "ema_update_step_interval"
            )
    else:
        for key in ("ema_decay", "ema_update_step_interval"):
            reading.no_effect(key, "ema is off")


def put_objective(reading: Reading) -> None:
    huber, squared = reading.number("huber_strength"), reading.number("mse_strength", 1.0)
    if huber > 0 and squared == 0:
        reading.put("objective.loss", "huber", "huber_strength", "mse_strength")
        reading.put("objective.huber_delta", reading.number("huber_delta", 1.0), "huber_delta")
    else:
        reading.put("objective.loss", "l2", "mse_strength")
        reading.no_effect("huber_delta", "no Huber loss is asked for")
        if huber > 0:
            reading.cannot("huber_strength", "one loss at a time here: squared is set")

    # Weighting.
    weight, strength = reading.text("loss_weight_fn", "CONSTANT"), reading.number("loss_weight_strength", 5.0)
    ours = {"CONSTANT": "none", "MIN_SNR_GAMMA": "min-snr", "DEBIASED_ESTIMATION": "debiased"}.get(weight)
    if ours is None:
        reading.cannot("loss_weight_fn", "no such weighting here; all noise levels count alike")
    elif ours != "none":
        reading.put("objective.weighting", ours, "loss_weight_fn")
    if ours == "min-snr":
        reading.put("objective.min_snr_gamma", strength, "loss_weight_strength")
    else:
        reading.no_effect("loss_weight_strength", f"{weight[:40]} doesn't read it")
    if (offset := reading.number("offset_noise_weight")) > 0:
        reading.put("objective.noise_offset", offset, "offset_noise_weight")


def put_timesteps(reading: Reading) -> None:
    kind = reading.text("timestep_distribution", "UNIFORM")
    weight, bias = reading.number("noising_weight"), reading.number("noising_bias")
    if kind == "LOGIT_NORMAL":
        reading.put("objective.timesteps", "logit-normal", "timestep_distribution")
        reading.put("objective.timesteps_mean", bias, "noising_bias")
        reading.put(
            "objective.timesteps_std", weight + 1.0, "noising_weight", why="their spread is 1 more than the weight"
        )
    elif kind == "HEAVY_TAIL":
        reading.put("objective.timesteps", "mode", "timestep_distribution")
        reading.put("objective.timesteps_mode_scale", weight, "noising_weight")
    else:
        reading.put("objective.timesteps", "uniform", "timestep_distribution")
        if kind != "UNIFORM":
            reading.cannot("timestep_distribution", "no such density here; uniform is set")

    # The range.
    low, high = reading.number("min_noising_strength"), reading.number("max_noising_strength", 1.0)
    if low > 0:
        reading.put("objective.timesteps_low", low, "min_noising_strength")
    if high < 1:
        reading.put("objective.timesteps_high", high, "max_noising_strength")

    # The shift.
    shift = reading.number("timestep_shift", 1.0)
    if reading.settings["family"] in bases.DIFFUSION:
        if shift != 1:
            reading.cannot("timestep_shift", "only flow models have a shift here")
        reading.no_effect("dynamic_timestep_shifting", "only flow models read it")
    elif reading.flag("dynamic_timestep_shifting"):
        reading.put("objective.shift", "resolution", "dynamic_timestep_shifting")
        reading.no_effect("timestep_shift", "the shift goes by the picture's size")
    elif shift != 1:
        reading.put("objective.shift", "fixed", "timestep_shift")
        reading.put("objective.shift_factor", shift, "timestep_shift")
