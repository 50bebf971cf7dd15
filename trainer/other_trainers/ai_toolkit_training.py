"""What a config of ai-toolkit trains and how it learns: adapter, layers, rates, optimizer, loss and timesteps."""

from __future__ import annotations

import re

from trainer.other_trainers import bases, learning
from trainer.other_trainers.reading import Reading


def put_adapter(reading: Reading) -> None:
    kind = reading.text("network.type", "lora").lower()
    method = {"lora": "lora", "locon": "lora", "lokr": "lokr", "dora": "dora", "loha": "loha"}.get(kind)
    if method is None:
        reading.cannot("network.type", "no such method here; plain LoRA is set")
    reading.put("adapter.method", method or "lora", "network.type")
    rank_key = "network.rank" if reading.has("network.rank") else "network.linear"
    rank = max(1, reading.whole(rank_key, 4))
    alpha_key = "network.linear_alpha" if reading.has("network.linear_alpha") else "network.alpha"
    if method == "lokr" and reading.flag("network.lokr_full_rank", True):
        reading.put(
            "adapter.rank",
            256,
            rank_key,
            "network.lokr_full_rank",
            why="the whole matrix, which is as much as this rank is here",
        )
        reading.put("adapter.alpha", 256.0, alpha_key, why="a whole matrix is unscaled there")
    else:
        reading.put("adapter.rank", rank, rank_key)
        reading.put("adapter.alpha", reading.number(alpha_key, 1.0), alpha_key)
    if method == "lokr":
        reading.put("adapter.factor", reading.whole("network.lokr_factor", -1), "network.lokr_factor")
    reading.put("adapter.dropout", reading.number("network.dropout"), "network.dropout")


def put_layers(reading: Reading) -> None:
    family, conv = reading.settings["family"], reading.whole("network.conv")
    if family in ("sd", "sdxl"):
        keys = ("network.conv", "network.transformer_only")
        if conv > 0:
            rank, alpha = reading.settings["adapter.rank"], reading.settings["adapter.alpha"]
            reading.put("adapter.targets", "all", *keys)
            if conv != rank and reading.settings["adapter.method"] != "lokr":
                reading.put(
                    "adapter.block_ranks", [f"{part}={conv}" for part in ("conv1", "conv2", "samplers")], "network.conv"
                )
            if abs(reading.number("network.conv_alpha", conv) / conv - alpha / rank) > 1e-9:
                reading.cannot(
                    "network.conv_alpha", f"convolutions have the scale {alpha / rank:g} of the other layers here"
                )
        else:  # all linear layers and convolutions of 1x1
            reading.put("adapter.targets", "linear" if family == "sdxl" else "all", *keys)
            if family == "sd":
                reading.put("optimizer.block_rates", ["conv1=0", "conv2=0", "samplers.=0"], *keys)
    else:
        reading.put(
            "adapter.targets",
            "linear" if reading.flag("network.transformer_only", True) else "all",
            "network.transformer_only",
        )
        reading.no_effect("network.conv", "the family has no convolutions to adapt")
    _put_filters(reading)


def _put_filters(reading: Reading) -> None:
    """Lists of texts in paths: layers left out, or alone taken."""
    for key in ("network.network_kwargs.ignore_if_contains", "model.ignore_if_contains"):
        if words := _words(reading, key):
            held = reading.settings.get("adapter.without_layers", [])
            reading.put("adapter.without_layers", [*words, *held][:64], key)
    for key in ("network.network_kwargs.only_if_contains", "model.only_if_contains"):
        words = _words(reading, key)
        if words and {word.strip(".") for word in words} <= {"attn", "attn1", "attn2", "attention"}:
            reading.put("adapter.targets", "attention", key)
        elif words:
            reading.put("adapter.only_layers", words, key)


def _words(reading: Reading, key: str) -> list[str]:
    """The texts of a list, the component of a path parted from it as here."""
    words = [word.strip() for word in reading.texts(key) if word.strip()]
    return [re.sub(r"^(transformer|unet)\.", r"\1/", word) for word in words][:64]


def put_rates(reading: Reading) -> None:
    main = reading.number("train.lr", 1e-6)
    key = "train.unet_lr" if reading.has("train.unet_lr") else "train.lr"
    denoiser = reading.number("train.unet_lr", main) if reading.flag("train.train_unet", True) else 0.0
    text: dict[str, float] = {}
    if reading.flag("train.train_text_encoder"):
        if reading.settings["family"] in bases.CLIP_FAMILIES:
            rate = reading.number("train.text_encoder_lr", main)
            names = ("text_encoder", "text_encoder_2")[: 2 if reading.settings["family"] in ("sdxl", "sd3") else 1]
            text = dict.fromkeys(names, rate)
        else:
            reading.cannot(
                "train.train_text_encoder", f"no text encoder of {reading.settings['family']} is adapted here"
            )
    else:
        reading.no_effect("train.text_encoder_lr", "no text encoder is trained")
    learning.put_part_rates(reading, denoiser, text, (key,), ("train.train_text_encoder", "train.text_encoder_lr"))


def put_optimizer(reading: Reading) -> None:
    prefix = "train.optimizer_params."
    options = {key[len(prefix) :]: value for key, value in reading.seen.items() if key.startswith(prefix)}
    learning.put_optimizer(reading, reading.text("train.optimizer", "adamw"), options, "train.optimizer", prefix + "{}")
    name = reading.text("train.lr_scheduler", "constant")
    if name == "linear":
        reading.cannot(
            "train.lr_scheduler", "it rises from a third to the whole there (torch's LinearLR); constant is set"
        )
        reading.put("optimizer.schedule", "constant")
    elif name == "cosine_with_restarts":
        reading.put("optimizer.schedule", "cosine", "train.lr_scheduler", why="its only cycle is as long as the run")
    else:
        learning.put_schedule(reading, name, "train.lr_scheduler")
    warmup = reading.whole("train.lr_scheduler_params.num_warmup_steps", 1000 if name == "constant_with_warmup" else 0)
    learning.put_warmup(reading, warmup, reading.settings["max_steps"], "train.lr_scheduler_params.num_warmup_steps")
    for key in reading.seen:
        if key.startswith("train.lr_scheduler_params.") and not key.endswith("num_warmup_steps"):
            reading.cannot(key, "the schedules here have no such arguments")
    learning.put_clip(reading, "train.max_grad_norm")
    if reading.flag("train.ema_config.use_ema"):
        reading.put(
            "optimizer.ema_decay",
            reading.number("train.ema_config.ema_decay", 0.999),
            "train.ema_config.ema_decay",
            "train.ema_config.use_ema",
        )
    else:
        reading.no_effect("train.ema_config.ema_decay", "no mean is kept")


def put_objective(reading: Reading) -> None:
    kind = reading.text("train.loss_type", "mse")
    if kind not in ("mse", "l2"):
        reading.cannot("train.loss_type", "no such loss here; squared is set")
    reading.put("objective.loss", "l2", "train.loss_type")
    gamma_key = "train.snr_gamma" if reading.number("train.snr_gamma") > 0 else "train.min_snr_gamma"
    if (gamma := reading.number(gamma_key)) > 0:
        if reading.settings["family"] in bases.DIFFUSION:
            reading.put("objective.weighting", "min-snr", gamma_key)
            reading.put("objective.min_snr_gamma", gamma, gamma_key)
        else:
            reading.no_effect(gamma_key, "a flow model has no SNR schedule to weigh by")
    if (offset := reading.number("train.noise_offset")) > 0:
        reading.put("objective.noise_offset", offset, "train.noise_offset")
    if reading.flag("train.diff_output_preservation"):
        keys = ("train.diff_output_preservation", "train.diff_output_preservation_multiplier")
        reading.put("objective.preservation_weight", reading.number(keys[1], 1.0), *keys)
        name = reading.text("train.diff_output_preservation_class").strip()
        reading.put("data.class_caption", name or "a picture", "train.diff_output_preservation_class")
    else:
        for key in ("diff_output_preservation_multiplier", "diff_output_preservation_class"):
            reading.no_effect(f"train.{key}", "diff_output_preservation is off")


def put_timesteps(reading: Reading) -> None:
    low, high = reading.number("train.min_denoising_steps"), reading.number("train.max_denoising_steps", 999)
    if low > 0:
        reading.put("objective.timesteps_low", low / 1000, "train.min_denoising_steps")
    if high < 999:
        reading.put("objective.timesteps_high", (high + 1) / 1000, "train.max_denoising_steps")
    if reading.text("train.content_or_style", "balanced") != "balanced":
        reading.cannot(
            "train.content_or_style",
            "use objective.timesteps = logit-normal with a mean above 0 for content, below for style",
        )
    reading.no_effect("train.noise_scheduler", "the base says how it is noised")
    if reading.settings["family"] in bases.DIFFUSION:
        reading.put("objective.timesteps", "uniform", "train.content_or_style")
        reading.no_effect("train.timestep_type", "only flow models read it")
        return
    kind = reading.text("train.timestep_type", "sigmoid")
    if reading.flag("train.linear_timesteps") or reading.flag("train.linear_timesteps2"):
        reading.cannot("train.linear_timesteps", "noise levels count alike here; only which are trained can be chosen")
    if kind in ("shift", "flux_shift", "lumina2_shift"):
        reading.put("objective.timesteps", "uniform", "train.timestep_type")
        reading.put("objective.shift", "resolution", "train.timestep_type")
    elif kind in ("linear", "weighted"):
        reading.put("objective.timesteps", "uniform", "train.timestep_type")
        if kind == "weighted":
            reading.cannot("train.timestep_type", "noise levels are drawn alike, as there, but count alike here")
            reading.notes.append("timestep_type weighted counts the middle noise levels more; here they count alike")
    else:
        reading.put("objective.timesteps", "sigmoid", "train.timestep_type")
        if kind != "sigmoid":
            reading.cannot("train.timestep_type", "no such density here; sigmoid is set")
