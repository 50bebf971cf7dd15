"""What a config of ai-toolkit trains and how it learns: adapter, layers, rates, optimizer, loss and timesteps."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

from trainer.other_trainers import bases, class_options, learning
from trainer.other_trainers.reading import Reading


def put_adapter(reading: Reading) -> None:
    kind = reading.text("network.type", "lora").lower()
    method = {"lora": "lora", "locon": "lora", "lokr": "lokr", "dora": "dora", "loha": "loha"}.get(kind)
    if method is None:
        reading.cannot("network.type", "no such method here; plain LoRA is set")
    reading.put("adapter.method", method or "lora", "network.type")

    # Rank and alpha have two names each.
    rank_key = "network.rank" if reading.has("network.rank") else "network.linear"
    rank = max(1, reading.whole(rank_key, 4))
    alpha_key = "network.linear_alpha" if reading.has("network.linear_alpha") else "network.alpha"
    # A LoKr is the whole matrix there unless it is told otherwise.
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
            # Convolutions may have their own rank here, but not their own scale.
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
            # For SD only `all` has what is meant; its 3x3 convolutions are frozen by a rate of 0.
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
        # The network's and the model's list both hold, so words are added to those before.
        if words := _words(reading, key):
            held = reading.settings.get("adapter.without_layers", [])
            reading.put("adapter.without_layers", [*words, *held][:64], key)
    for key in ("network.network_kwargs.only_if_contains", "model.only_if_contains"):
        words = _words(reading, key)
        # Words that mean attention and nothing else are a target of that name here.
        if words and {word.strip(".") for word in words} <= {"attn", "attn1", "attn2", "attention"}:
            reading.put("adapter.targets", "attention", key)
        elif words:
            reading.put("adapter.only_layers", words, key)


def _words(reading: Reading, key: str) -> list[str]:
    """The texts of a list, the component of a path parted from it as here."""
    words = [word.strip() for word in reading.texts(key) if word.strip()]
    return [re.sub(r"^(transformer|unet)\.", r"\1/", word) for word in words][:64]


def put_rates(reading: Reading) -> None:
    """Set the one rate: a LoRA's parameters have `train.lr`, whatever they are of.

    They have it in groups of their own, so that the 1.0 which ai-toolkit hands to Prodigy and D-Adaptation in place of
    a rate below 0.1, and prints, is read by none (BaseSDTrainProcess.py:2024, kohya_lora.py:1030, optimizer.py:40).
    """
    main = reading.number("train.lr", 1e-6)
    denoiser = main if reading.flag("train.train_unet", True) else 0.0
    for key in ("train.unet_lr", "train.text_encoder_lr"):
        reading.no_effect(key, "ai-toolkit reads it nowhere for a LoRA; all of it has the rate lr")
    text: dict[str, float] = {}
    if reading.flag("train.train_text_encoder"):
        if reading.settings["family"] in bases.CLIP_FAMILIES:
            # T5, the third of SD3, is adapted nowhere here.
            names = ("text_encoder", "text_encoder_2")[: 2 if reading.settings["family"] in ("sdxl", "sd3") else 1]
            text = dict.fromkeys(names, main)
        else:
            reading.cannot(
                "train.train_text_encoder", f"no text encoder of {reading.settings['family']} is adapted here"
            )
    learning.put_part_rates(reading, denoiser, text, ("train.lr",), ("train.train_text_encoder",))


def put_optimizer(reading: Reading) -> None:
    # The optimizer: what the recipe leaves out is what the class has there.
    prefix = "train.optimizer_params."
    options = {key[len(prefix) :]: value for key, value in reading.seen.items() if key.startswith(prefix)}
    name = reading.text("train.optimizer", "adamw")
    options = class_options.with_left_out(class_options.AI_TOOLKIT, name, options)
    learning.put_optimizer(reading, name, options, "train.optimizer", prefix + "{}")
    if reading.settings["learning_rate"] < 0.1 and name.lower().startswith(("prodigy", "dadapt")):
        reading.notes.append(
            f"ai-toolkit prints that {name[:20]} has a rate of 1, and trains at {reading.settings['learning_rate']:g} "
            f"times what it finds; it usually is 1: --set learning_rate=1"
        )

    # The schedule.
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

    # Warm-up.
    key = "train.lr_scheduler_params.num_warmup_steps"
    if name in ("constant", "linear", "cosine", "cosine_with_restarts", "step"):
        reading.put("optimizer.warmup_steps", 0)
        reading.cannot(key, f"{name}, a class of torch's there, takes no warm-up; constant_with_warmup does")
    else:
        warmup = reading.whole(key, 1000 if name == "constant_with_warmup" else 0)
        learning.put_warmup(reading, warmup, reading.settings["max_steps"], key)
    for key in reading.seen:
        if key.startswith("train.lr_scheduler_params.") and not key.endswith("num_warmup_steps"):
            reading.cannot(key, "the schedules here have no such arguments")

    # Clipping, and the mean of the weights.
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

    # Weighting by SNR: `snr_gamma` counts before `min_snr_gamma`.
    gamma_key = "train.snr_gamma" if reading.number("train.snr_gamma") > 0 else "train.min_snr_gamma"
    if (gamma := reading.number(gamma_key)) > 0:
        if reading.settings["family"] in bases.DIFFUSION:
            reading.put("objective.weighting", "min-snr", gamma_key)
            reading.put("objective.min_snr_gamma", gamma, gamma_key)
        else:
            reading.no_effect(gamma_key, "a flow model has no SNR schedule to weigh by")
    if (offset := reading.number("train.noise_offset")) > 0:
        reading.put("objective.noise_offset", offset, "train.noise_offset")

    # Preservation: with the class's caption the base's own prediction is the target.
    if reading.flag("train.diff_output_preservation"):
        keys = ("train.diff_output_preservation", "train.diff_output_preservation_multiplier")
        reading.put("objective.preservation_weight", reading.number(keys[1], 1.0), *keys)
        name = reading.text("train.diff_output_preservation_class").strip()
        reading.put("data.class_caption", name or "a picture", "train.diff_output_preservation_class")
    else:
        for key in ("diff_output_preservation_multiplier", "diff_output_preservation_class"):
            reading.no_effect(f"train.{key}", "diff_output_preservation is off")


def _put_range(reading: Reading) -> None:
    """Set the range: they are places in a list of timesteps that falls from 1000, so the first are the noisiest."""
    first, last = "train.min_denoising_steps", "train.max_denoising_steps"
    start, end = max(0.0, reading.number(first)), min(999.0, reading.number(last, 999))
    if start <= 0 and end >= 999:
        return
    low, high = 1 - end / 1000 if end < 999 else 0.0, 1 - start / 1000
    why = "a place in a list that falls from all noise, so from the other end"
    if reading.settings["family"] not in bases.DIFFUSION:
        kind = reading.text("train.timestep_type", "sigmoid")
        if kind == "sigmoid":  # the list is drawn by that density and sorted: a place is a quantile
            low, high = (_at_quantile(share) for share in (low, high))
        if kind not in ("linear", "weighted"):
            why += (
                f"; the list follows {kind[:20]}, which is cut off there and squeezed into the range here: about alike"
            )
    for setting, value, key in (("high", high, first), ("low", low, last)):
        reading.put(f"objective.timesteps_{setting}", value, key)
        reading.translated(key, f"objective.timesteps_{setting} = {value:.4g}", why)


def _at_quantile(share: float) -> float:
    """The noise level below which this share of sigmoid timesteps lies."""
    return 1 / (1 + math.exp(-NormalDist().inv_cdf(share))) if 0 < share < 1 else share


def put_timesteps(reading: Reading) -> None:
    _put_range(reading)
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

    # Flow models: how timesteps are drawn, and whether they are shifted by the picture's size.
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
